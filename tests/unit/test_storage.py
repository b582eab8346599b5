from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lemur_ann import CorruptIndex, LemurIndex, arrays, formats
from lemur_ann.saved import storage

FILES = ["deleted", "documents", "learned", "links", "tokens"]


def file_of(path, kind):
    (file,) = path.glob(f"{kind}-*")
    return file


@pytest.fixture
def saved(small_index, tmp_path, monkeypatch):
    monkeypatch.setattr("lemur_ann.candidates.MIN_SCANNED", 50)  # so that there is a graph
    index, documents, queries = small_index()
    index.delete(["doc-5"])
    index.save(tmp_path / "index")
    return index, documents, queries, tmp_path / "index"


def test_reload_gives_the_same_hits(saved):
    index, _, queries, path = saved
    loaded = LemurIndex.load(path)
    assert len(loaded) == 199
    assert loaded.options == index.options
    for arguments in ({}, {"exact": True}, {"num_candidates": 60}):
        assert loaded.search(queries, **arguments) == index.search(queries, **arguments)
    assert "doc-5" not in loaded


def test_files(saved):
    *_, path = saved
    assert sorted(p.name.partition("-")[0] for p in path.iterdir()) == sorted([*FILES, "manifest.json"])
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format_version"] == formats.INDEX_VERSION
    assert sorted(name.partition("-")[0] for name in manifest["files"]) == FILES
    for file in path.iterdir():
        assert not file.read_bytes().startswith(b"\x80\x04"), "no pickles"


def test_a_document_added_after_reload_gets_the_same_vector(saved, make_matrices):
    index, _, _, path = saved
    loaded = LemurIndex.load(path)
    for count in (1, 30):
        new = make_matrices(count)
        ids = [f"new-{count}-{i}" for i in range(count)]
        index.add(new, ids=ids)
        loaded.add(new, ids=ids)
    rows = np.arange(len(index.snapshot.store))
    np.testing.assert_array_equal(
        loaded.snapshot.learned.candidates.take(rows[-31:]), index.snapshot.learned.candidates.take(rows[-31:])
    )


def test_reload_in_a_new_process(saved):
    index, _, queries, path = saved
    np.save(path.parent / "query.npy", queries[0])
    program = (
        "import sys, numpy, lemur_ann; index = lemur_ann.LemurIndex.load(sys.argv[1]);"
        "print(*index.search(numpy.load(sys.argv[2])).ids)"
    )
    command = [sys.executable, "-I", "-c", program, str(path), str(path.parent / "query.npy")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == index.search(queries[0]).ids.tolist()


@pytest.mark.parametrize("ids", ["integers", "strings", "none"])
@pytest.mark.parametrize("candidates", ["hnsw", "exact"])
def test_kinds_of_index(make_matrices, tmp_path, ids, candidates):
    documents, queries = make_matrices(40, dtype=np.float16), make_matrices(10)
    names = {"integers": list(range(100, 140)), "strings": [str(i) for i in range(40)], "none": None}[ids]
    index = LemurIndex(num_features=32, epochs=0, rank=15, candidates=candidates, num_candidates=20)
    index.fit(documents, queries=queries, ids=names)
    index.save(tmp_path / "i")
    loaded = LemurIndex.load(tmp_path / "i")
    assert loaded.search(queries) == index.search(queries)
    assert loaded.add(make_matrices(1), ids=None if ids != "strings" else ["x"]).search(queries[0], k=41).ids.shape == (41,)


def test_empty_and_unfitted_indexes(make_matrices, tmp_path):
    LemurIndex(M=7).save(tmp_path / "empty")
    loaded = LemurIndex.load(tmp_path / "empty")
    assert len(loaded) == 0
    assert loaded.options.M == 7
    documents = make_matrices(5)
    loaded.add(documents, ids=list("abcde"))
    loaded.save(tmp_path / "unfitted")
    again = LemurIndex.load(tmp_path / "unfitted")
    assert again.search(documents[2], k=1).ids[0] == loaded.search(documents[2], k=1).ids[0]
    assert not list((tmp_path / "unfitted").glob("learned-*"))


def test_saving_over_an_index(saved, make_matrices):
    _index, _, queries, path = saved
    loaded = LemurIndex.load(path)  # its tokens are mapped from the directory that is replaced
    loaded.add(make_matrices(3), ids=["x", "y", "z"])
    loaded.save(path)
    assert len(LemurIndex.load(path)) == 202
    assert loaded.search(queries[0], exact=True) == LemurIndex.load(path).search(queries[0], exact=True)
    assert sorted(p.name for p in path.parent.iterdir()) == ["index"]  # nothing left behind


def test_saving_over_something_else_is_refused(small_index, tmp_path):
    index, _, _ = small_index()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match="is not a lemur_ann index"):
            index.save(tmp_path / name)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"
    (tmp_path / "fresh").mkdir()
    index.save(tmp_path / "fresh")  # an empty folder is no loss


def test_files_of_others_in_an_index_folder_are_kept(saved):
    index, *_, path = saved
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds 'notes.txt' beside its index"):
        index.save(path)
    assert (path / "notes.txt").exists()


def test_a_failed_rename_leaves_the_old_index(saved, monkeypatch):
    index, _, queries, path = saved
    expected, files = index.search(queries[0]), sorted(path.iterdir())
    index.delete("doc-7")

    def fail(*_):
        raise PermissionError("no")

    monkeypatch.setattr(storage, "move", fail)
    for target in (path, path.parent / "fresh"):
        with pytest.raises(PermissionError):
            index.save(target)
    monkeypatch.undo()
    assert LemurIndex.load(path).search(queries[0]) == expected
    assert [p for p in sorted(path.iterdir()) if p.name != "writer.lock"] == files
    assert sorted(p.name for p in path.parent.iterdir()) == ["index"]


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_saving_through_a_symbolic_link(saved):
    index, *_, path = saved
    link = path.parent / "link"
    link.symlink_to(path)
    index.save(link)
    assert link.is_symlink()
    assert len(LemurIndex.load(link)) == 199


def test_a_failed_save_leaves_the_old_index(saved, monkeypatch):
    index, _, queries, path = saved
    expected = index.search(queries[0])

    def fail(*_):
        raise OSError("No space left on device")

    files = sorted(path.iterdir())
    monkeypatch.setattr(arrays, "write_arrays", fail)
    with pytest.raises(OSError, match="No space left"):
        index.save(path)
    assert [p for p in sorted(path.iterdir()) if p.name != "writer.lock"] == files
    monkeypatch.undo()
    assert LemurIndex.load(path).search(queries[0]) == expected
    assert sorted(p.name for p in path.parent.iterdir()) == ["index"]


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(saved, name):
    *_, path = saved
    file = file_of(path, name)
    name = file.name
    good = file.read_bytes()
    for bad, message in [
        (good[: len(good) // 2], f"{name} has {len(good) // 2} bytes, expected {len(good)}"),
        (good + b"x", "bytes, expected"),
        (good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], f"{name} was altered"),
        (b"", f"{name} has 0 bytes"),
    ]:
        file.write_bytes(bad)
        with pytest.raises(CorruptIndex, match=message):
            LemurIndex.load(path)
    file.unlink()
    with pytest.raises(CorruptIndex, match=f"{name} is missing"):
        LemurIndex.load(path)


def test_verify_false_skips_only_the_token_checksum(saved):
    *_, path = saved
    file = file_of(path, "tokens")
    tokens = bytearray(file.read_bytes())
    tokens[len(tokens) // 2] ^= 1
    file.write_bytes(tokens)
    with pytest.raises(CorruptIndex, match="altered"):
        LemurIndex.load(path)
    assert len(LemurIndex.load(path, verify=False)) == 199
    file = file_of(path, "links")
    graph = bytearray(file.read_bytes())
    graph[len(graph) // 2] ^= 1
    file.write_bytes(graph)
    with pytest.raises(CorruptIndex, match=r"links-\d+.safetensors was altered"):
        LemurIndex.load(path, verify=False)


def edit_manifest(path, change, *, sign):
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    change(manifest)
    if sign:
        manifest["manifest_sha256"] = storage._digest(manifest)
    else:
        manifest["manifest_sha256"] = "0" * 64
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_damaged_manifest(saved, tmp_path):
    *_, path = saved
    edit_manifest(path, lambda m: m["options"].update(M=99), sign=False)
    with pytest.raises(CorruptIndex, match=r"manifest.json was altered"):
        LemurIndex.load(path)
    edit_manifest(path, lambda m: m.update(format_version=99, lemur_ann_version="9.0"), sign=True)
    with pytest.raises(
        CorruptIndex, match=rf"index format 99, .* reads up to {formats.INDEX_VERSION}; it was written by lemur_ann 9.0"
    ):
        LemurIndex.load(path)
    edit_manifest(path, lambda m: (m.update(format_version=formats.INDEX_VERSION), m["options"].update(magic=1)), sign=True)
    with pytest.raises(CorruptIndex, match=r"options this version cannot read: .*magic"):
        LemurIndex.load(path)
    for text, message in [("{", "cannot be read"), ("[]", "does not describe"), ('{"format": "zip"}', "does not describe")]:
        (path / "manifest.json").write_text(text)
        with pytest.raises(CorruptIndex, match=message):
            LemurIndex.load(path)
    (path / "manifest.json").unlink()
    with pytest.raises(CorruptIndex, match="has no manifest.json"):
        LemurIndex.load(path)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        LemurIndex.load(tmp_path / "nowhere")


def test_manifest_cannot_point_outside(saved):
    *_, path = saved
    edit_manifest(path, lambda m: m["files"].update({"../secret": {"size_bytes": 1, "sha256": "0"}}), sign=True)
    with pytest.raises(CorruptIndex, match=r"names a file outside"):
        LemurIndex.load(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permission")
def test_files_are_readable_by_those_the_umask_allows(saved):
    *_, path = saved
    umask = os.umask(0)
    os.umask(umask)
    for file in path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask
