"""A folder that is there already is saved into, not replaced; files of an index without its manifest are nobody's to delete."""

import os
import pickle
import shutil

import numpy as np
import pytest

from lemur_ann import CorruptIndex, LemurIndex
from lemur_ann.saved import storage

TOKENS = np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32)


@pytest.mark.skipif(os.name == "nt", reason="the rights of a folder are others there")
def test_save_into_the_working_directory_keeps_it(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o770)
    folder.chmod(0o770)
    before = os.stat(folder)
    monkeypatch.chdir(folder)
    LemurIndex().add(TOKENS).save(".")
    after = os.stat(folder)
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert os.path.samefile(".", folder)
    assert "manifest.json" in os.listdir(".")
    LemurIndex().add(TOKENS[:2]).save(".")
    assert len(LemurIndex.load(".")) == 2


def test_a_save_that_fails_leaves_a_folder_that_can_be_saved_into(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    index = LemurIndex().add(TOKENS)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "describe", fails)
        with pytest.raises(OSError, match="No space"):
            index.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"writer.lock"}
    index.save(tmp_path)
    assert len(LemurIndex.load(tmp_path)) == 3


def test_files_of_an_index_whose_manifest_is_missing_stay(tmp_path):
    LemurIndex().add(TOKENS).save(tmp_path / "index")
    shutil.move(tmp_path / "index" / "manifest.json", tmp_path / "manifest.json")  # a copy that has not come to it
    there = {path.name for path in (tmp_path / "index").iterdir()}
    with pytest.raises(CorruptIndex, match="not complete"):
        LemurIndex.open(tmp_path / "index")
    with pytest.raises(FileExistsError):
        LemurIndex().add(TOKENS[:1]).save(tmp_path / "index")
    assert {path.name for path in (tmp_path / "index").iterdir()} == there
    shutil.move(tmp_path / "manifest.json", tmp_path / "index" / "manifest.json")
    with LemurIndex.open(tmp_path / "index") as index:
        assert len(index) == 3


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_pickled_reader_goes_by_the_same_name(tmp_path):
    for name in ("one", "two"):
        LemurIndex().add(TOKENS, ids=[f"{name}{i}" for i in range(3)]).save(tmp_path / name)
    (tmp_path / "current").symlink_to("one")
    reader = LemurIndex.open(tmp_path / "current", read_only=True)
    other = pickle.loads(pickle.dumps(reader))
    (tmp_path / "next").symlink_to("two")
    os.replace(tmp_path / "next", tmp_path / "current")
    for index in (reader, other):
        assert index.refresh()
        assert "two0" in index


def test_an_index_is_not_said_to_be_saved_where_another_is(tmp_path):
    with LemurIndex.open(tmp_path / "index") as writer:
        writer.add(TOKENS)
        reader = LemurIndex.open(tmp_path / "index", read_only=True)
        reader.save(tmp_path / "index")
        writer.add(TOKENS, ids=[3, 4, 5])
        writer.save(tmp_path / "index")
        with pytest.raises(FileExistsError, match="another version"):
            reader.save(tmp_path / "index")
        reader.save(tmp_path / "kept")
        assert len(LemurIndex.load(tmp_path / "kept")) == 3
        assert reader.refresh()
        reader.save(tmp_path / "index")
    writer.save(tmp_path / "index")
    assert len(LemurIndex.load(tmp_path / "index")) == 6
