"""A note goes to disk in the same step as the change that it came with."""

import json

import numpy as np
import pyarrow.compute as pc
import pytest

from lemur_ann import CorruptIndex, LemurIndex, TextIndex
from lemur_ann.saved import storage
from lemur_ann.validate import MAX_NOTE

SMALL = {"num_features": 64, "epochs": 0}


def documents(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 5, 8)).astype(np.float32)


def test_comes_with_a_change_and_stays(tmp_path):
    with LemurIndex.open(tmp_path / "index", **SMALL) as index:
        assert index.note is None
        index.add(documents(20), ids=np.arange(20), note="one")
        index.upsert(documents(2), ids=[0, 1], note="two")
        assert (index.delete([3], note="three"), index.note) == (1, "three")
        index.add(documents(1), ids=[99])  # a change without one keeps the last
        index.fit(queries=documents(40, 1), progress=False)
        index.compact()
        assert index.note == "three"
        reader = LemurIndex.open(tmp_path / "index", read_only=True)
        index.delete(filter=pc.field("id") > 1000, note="four")  # which lets nothing through
        assert (reader.note, reader.refresh(), reader.note) == ("three", True, "four")
        index.delete(index.ids(), note="ümlaut 🦊")
        index.add(documents(0), ids=[], note="none came")
        assert len(index) == 0
    assert LemurIndex.load(tmp_path / "index").note == "none came"


def test_is_saved_and_is_kept_through_a_change_that_fails(tmp_path):
    index = LemurIndex().add(documents(3), ids=["a", "b", "c"], note="first")
    with pytest.raises(ValueError, match="id"):
        index.add(documents(1), ids=["a"], note="second")
    with pytest.raises(KeyError):
        index.delete(["z"], note="second")
    index.save(tmp_path / "index")
    assert LemurIndex.load(tmp_path / "index").note == index.note == "first"


@pytest.mark.parametrize(
    ("note", "error"), [(7, TypeError), (b"x", TypeError), ("x" * (MAX_NOTE + 1), ValueError), ("\ud800", ValueError)]
)
def test_what_is_no_note_is_refused(note, error):
    index = LemurIndex().add(documents(3), ids=[1, 2, 3])
    for change in (lambda: index.add(documents(1), ids=[4], note=note), lambda: index.delete([1], note=note)):
        with pytest.raises(error, match="note"):
            change()
    assert (len(index), index.note) == (3, None)


def test_the_longest_fits_into_a_manifest(tmp_path):
    LemurIndex().add(documents(3), ids=[1, 2, 3], note="é" * MAX_NOTE).save(tmp_path / "index")
    assert len(LemurIndex.load(tmp_path / "index").note) == MAX_NOTE


def test_a_note_of_another_kind_is_a_damaged_manifest(tmp_path):
    LemurIndex().add(documents(3), ids=[1, 2, 3]).save(tmp_path / "index")
    path = tmp_path / "index" / storage.MANIFEST
    manifest = json.loads(path.read_text()) | {"note": ["a"]}
    del manifest["manifest_sha256"]
    path.write_text(json.dumps({**manifest, "manifest_sha256": storage._digest(manifest)}))
    with pytest.raises(CorruptIndex, match="note"):
        LemurIndex.load(tmp_path / "index")


def test_of_texts():
    def encode(texts):
        return [np.ones((2, 8), np.float32) for _ in texts]

    texts = TextIndex((encode, encode)).add(["a", "b"], ids=[1, 2], note="two")
    texts.add([], note="none")
    assert texts.index.note == "none"
    texts.upsert(["c"], ids=[2], note="replaced")
    assert texts.index.note == "replaced"
    texts.delete([1], note="one less")
    assert (texts.index.note, len(texts)) == ("one less", 1)
