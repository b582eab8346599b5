"""Indexes of every storage format still load, answer as they did, and go on taking documents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lemur_ann import CorruptIndex, LemurEncoder, LemurIndex, formats
from lemur_ann.arrays import map_arrays, read_metadata, write_arrays
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
    vector = index.snapshot.learned.candidates.take([len(index.snapshot.store) - 1])[0]
    np.testing.assert_allclose(vector, expected["new_vector"], atol=1e-5 * np.abs(vector).max())
    index.save(tmp_path / "index")  # in the newest format
    assert storage.read_manifest(tmp_path / "index")["format_version"] == formats.INDEX_VERSION
    assert not list((tmp_path / "index").glob("*.hnsw"))
    again = LemurIndex.load(tmp_path / "index")
    np.testing.assert_array_equal(again.search(expected["queries"][0], k=5).ids, index.search(expected["queries"][0], k=5).ids)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7])
def test_the_file_of_hnswlib_goes(number, tmp_path):
    """With the first change where links stand beside it, else with the next compaction; whoever only reads leaves it."""
    path = shutil.copytree(FORMATS / f"format_{number}" / "index", tmp_path / "index")
    expected = np.load(FORMATS / f"format_{number}" / "expected.npz")
    assert list(path.glob("*.hnsw"))
    LemurIndex.open(path, read_only=True)
    with LemurIndex.open(path) as index:
        assert list(path.glob("*.hnsw"))
        reader = LemurIndex.open(path, read_only=True)
        index.add([expected["new_document"]], ids=["new"])
        assert bool(list(path.glob("*.hnsw"))) == (number < 4)
        assert reader.refresh()
        index.delete("doc-5")
        index.compact(num_threads=1)
        assert not list(path.glob("*.hnsw"))
    with LemurIndex.open(path, read_only=True, verify=True) as again:
        again.check()
        wide, exact = (
            [hits.ids.tolist() for hits in again.search(list(expected["queries"]), k=5, **how)]
            for how in ({"num_candidates": 400}, {"exact": True})
        )
        assert sum(len(set(a) & set(b)) for a, b in zip(wide, exact, strict=True)) > 0.8 * 5 * len(exact)


@pytest.fixture
def saved_map(tmp_path):
    """An encoder, the file of it alone, what that holds and what its header says."""
    encoder = LemurIndex.load(FORMATS / "format_4" / "index").encoder
    file = tmp_path / "map.safetensors"
    encoder.save(file)
    return encoder, file, {name: np.array(array) for name, array in map_arrays(file).items()}, read_metadata(file)


def assert_same(encoder, other):
    documents = [np.full((3, 4), i, np.float32) for i in range(5)]
    np.testing.assert_array_equal(encoder.encode_documents(documents), other.encode_documents(documents))
    np.testing.assert_array_equal(encoder.encode_queries(documents[1]), other.encode_queries(documents[1]))


def test_a_map_whose_format_was_one_string(saved_map):
    encoder, file, arrays, header = saved_map
    assert (header["format"], header.pop("format_version")) == ("lemur_ann encoder", "2")
    write_arrays(file, arrays, {**header, "format": "lemur_ann encoder 1"})
    assert_same(LemurEncoder.load(file), encoder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format_version": "3", "lemur_ann_version": "9.0"},
            rf"encoder format 3, this lemur_ann .* reads up to {formats.MAP_VERSION}; it was written by lemur_ann 9.0",
        ),
        ({"format": "lemur_ann encoder 2"}, "expected 'lemur_ann encoder', got 'lemur_ann encoder 2'"),
        ({"format": "lemur_ann"}, "expected 'lemur_ann encoder', got 'lemur_ann'"),
        ({"format_version": "newest"}, "not an encoder of this format"),
        ({"format_version": "9" * 5000}, "not an encoder of this format"),
        ({"format_version": ""}, "not an encoder of this format"),
    ],
)
def test_a_map_of_another_format(saved_map, changes, message):
    _, file, arrays, header = saved_map
    write_arrays(file, arrays, {**header, **changes})
    with pytest.raises(CorruptIndex, match=message):
        LemurEncoder.load(file)


def test_a_map_with_an_array_that_came_later(saved_map):
    """One more array needs no other number, where encoding does not need the array."""
    encoder, file, arrays, header = saved_map
    write_arrays(file, {**arrays, "of_later": np.zeros(3)}, header)
    assert_same(LemurEncoder.load(file), encoder)


def test_a_map_in_two_steps(saved_map):
    encoder, file, arrays, header = saved_map
    doubled = {"projection": 2 * arrays["projection"], "offset": 2 * arrays["offset"]}
    half = 0.5 * np.eye(len(arrays["offset"]), dtype=np.float32)
    write_arrays(file, {**arrays, **doubled, "document_map": half}, header)
    assert_same(LemurEncoder.load(file), encoder)


def test_a_manifest_that_does_not_say_how_many_rows_the_map_was_learned_from():
    manifest = json.loads((FORMATS / "format_4/index/manifest.json").read_text())
    structure = {**manifest["structure"], "files": {"links": manifest["structure"]["files"]["links"]}}
    assert formats.manifest(manifest) == {**manifest, "centroids": [], "structure": structure}
    del manifest["training"]["num_rows"]
    assert formats.manifest(manifest)["training"]["num_rows"] == 1100
    assert "num_rows" not in manifest["training"], "what was read stays as it is"
