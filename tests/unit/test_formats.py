"""Indexes of every storage format still load, answer as they did, and go on taking documents."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lemur_ann import LemurIndex, formats
from lemur_ann.saved import storage

FORMATS = Path(__file__).parent.parent / "formats"


def test_there_is_an_index_of_every_format():
    assert sorted(p.name for p in FORMATS.glob("format_*")) == [f"format_{i + 1}" for i in range(formats.INDEX_VERSION)]


@pytest.mark.parametrize("folder", sorted(FORMATS.glob("format_*")), ids=lambda p: p.name)
def test_load_search_add_and_save(folder, tmp_path):
    expected = np.load(folder / "expected.npz")
    shutil.copytree(folder / "index", tmp_path / "index")
    index = LemurIndex.load(tmp_path / "index")
    for query, ids, scores in zip(expected["queries"], expected["ids"], expected["scores"], strict=True):
        hits = index.search(query, k=5)
        np.testing.assert_array_equal(hits.ids.tolist(), ids)
        np.testing.assert_allclose(hits.scores, scores, rtol=1e-5)
    index.add([expected["new_document"]], ids=["new"])
    vector = index._snapshot.learned.candidates.take([len(index._snapshot.store) - 1])[0]
    np.testing.assert_allclose(vector, expected["new_vector"], atol=1e-5 * np.abs(vector).max())
    index.save(tmp_path / "index")  # in the newest format
    assert storage.read_manifest(tmp_path / "index")["format_version"] == formats.INDEX_VERSION
    again = LemurIndex.load(tmp_path / "index")
    np.testing.assert_array_equal(again.search(expected["queries"][0], k=5).ids, index.search(expected["queries"][0], k=5).ids)
