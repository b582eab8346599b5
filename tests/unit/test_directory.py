"""An index open on a directory: one writer, many readers, versions."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading

import numpy as np
import pyarrow.compute as pc
import pytest

from lemur_ann import CorruptIndex, IndexLocked, LemurIndex, _core, arrays, candidates
from lemur_ann.candidates import hnswlib_file
from lemur_ann.saved import storage
from lemur_ann.saved.folder import Folder, HeldFolder

OPTIONS = {"num_features": 64, "epochs": 0, "rank": 15, "num_candidates": 40, "ef_search": None}


@pytest.fixture
def opened(make_matrices, tmp_path, monkeypatch):
    """An index with 200 documents, open for writing, its documents, and queries."""
    monkeypatch.setattr("lemur_ann.candidates.MIN_SCANNED", 50)
    documents, queries = make_matrices(200), make_matrices(30)
    index = LemurIndex.open(tmp_path / "index", **OPTIONS)
    index.fit(documents, queries=queries, ids=[f"doc-{i}" for i in range(200)])
    yield index, documents, queries
    index.close()


def same(index, other, queries):
    assert index.ids().equals(other.ids())
    for arguments in ({}, {"exact": True}, {"k": 3, "filter": pc.field("id") > "doc-15"}):
        assert index.search(queries, **arguments) == other.search(queries, **arguments)


def files_of(index):
    return sorted(p.name for p in index._changes.directory.path.iterdir())


def test_every_change_is_on_disk_when_it_returns(opened, make_matrices):
    index, _, queries = opened
    path, new = index._changes.directory.path, make_matrices(9)
    for change in (
        lambda: index.add(new[:5], ids=list("abcde")),
        lambda: index.delete(["doc-3", "b"]),
        lambda: index.upsert(new[5:], ids=["a", "doc-7", "x", "y"]),
        lambda: index.delete(filter=pc.field("id") == "doc-9"),
        lambda: index.tune(queries, 0.9),
        lambda: index.refit(queries[:20], rank=9),
        lambda: index.add(make_matrices(100), ids=[f"more-{i}" for i in range(100)]),  # so many that the graph grows
        lambda: index.compact(),
    ):
        change()
        for other in (LemurIndex.load(path), LemurIndex.open(path, read_only=True, verify=True)):
            same(index, other, queries)
            assert (other.tuned, other.encoder.dim, other.options) == (index.tuned, index.encoder.dim, index.options)
            other.check()
        manifest = storage.read_manifest(path)
        assert files_of(index) == sorted([*manifest["files"], "manifest.json", "writer.lock"]), "nothing is left behind"


def test_reopened_it_goes_on(opened, make_matrices, tmp_path):
    index, _, queries = opened
    index.add(make_matrices(3), ids=["a", "b", "c"])
    index.delete(["a", "doc-1"])
    index.close()
    with LemurIndex.open(tmp_path / "index") as again:
        same(index, again, queries)
        again.add(make_matrices(70), ids=[f"d{i}" for i in range(70)])
        again.compact()
        assert len(again) == 271
    with pytest.raises(PermissionError, match="open read-only, or closed"):
        again.add(make_matrices(1), ids=["z"])
    assert len(again.search(queries[0])) == 10, "it can be searched still"


def test_vectors_do_not_depend_on_how_an_index_lived(opened, make_matrices):
    index, _, queries = opened
    new = make_matrices(120)
    memory = LemurIndex.load(index._changes.directory.path)
    memory.add(new, ids=[f"new-{i}" for i in range(120)])
    for i, matrix in enumerate(new):
        index.add([matrix], ids=[f"new-{i}"])
    rows = np.arange(320)
    codes = [_core.int8_codes(one.snapshot.learned.candidates.take(rows), 1)[0] for one in (index, memory)]
    np.testing.assert_array_equal(*codes)  # which is all that a graph keeps of them
    assert len(storage.read_manifest(index._changes.directory.path)["segments"]) < 10
    assert index.search(queries, exact=True) == memory.search(queries, exact=True)


def test_one_writer(opened, tmp_path):
    index, *_ = opened
    path = tmp_path / "index"
    here = rf"is open for writing in this process already \(process {os.getpid()}\), .* call close\(\) .*; read_only=True opens"
    with pytest.raises(IndexLocked, match=here):
        LemurIndex.open(path)
    with pytest.raises(IndexLocked):
        LemurIndex(**OPTIONS).save(path)
    program = "import sys, lemur_ann; lemur_ann.LemurIndex.open(sys.argv[1])"
    result = subprocess.run([sys.executable, "-I", "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert "IndexLocked" in result.stderr
    assert f"is open for writing in process {os.getpid()}: close() it there first; read_only=True opens" in result.stderr
    index.close()
    LemurIndex.open(path).close()


def test_a_reader_follows_an_index_that_was_emptied_and_filled_anew(make_matrices, tmp_path):
    """Its files have the names of those before then, and other content."""
    old, new = make_matrices(2, dim=8)
    with LemurIndex.open(tmp_path / "index") as index:
        index.add([old], ids=["old"])
        reader = LemurIndex.open(tmp_path / "index", read_only=True)
        names = files_of(index)
        index.delete("old")
        index.compact()
        index.add([new], ids=["new"])
        assert files_of(index) == names
        assert reader.refresh()
        same(reader, index, [old, new])


def test_readers_keep_their_version_until_they_refresh(opened, make_matrices, tmp_path):
    index, documents, queries = opened
    reader = LemurIndex.open(tmp_path / "index", read_only=True)
    before = reader.search(queries)
    for step in range(12):
        index.upsert(make_matrices(10), ids=[f"doc-{step * 10 + i}" for i in range(10)])
        if step % 4 == 3:
            index.compact()
    assert reader.search(queries) == before, "its files are gone from the folder, and still mapped"
    assert reader.refresh()
    same(reader, index, queries)
    assert not reader.refresh()
    for call in (lambda: reader.add(documents[:1], ids=["z"]), lambda: reader.delete("doc-150"), reader.compact, reader.refit):
        with pytest.raises(PermissionError, match="open read-only"):
            call()
    with pytest.raises(ValueError, match="not open on a directory"):
        LemurIndex().refresh()


def test_readers_open_while_a_writer_writes(opened, make_matrices, tmp_path):
    """Files go between the reading of a manifest and of what it names; then the next manifest is read."""
    index, _, queries = opened
    stop, failures, opened_versions = threading.Event(), [], []

    def read():
        try:
            while not stop.is_set():
                reader = LemurIndex.open(tmp_path / "index", read_only=True)
                assert len(reader) == 200
                assert len(reader.search(queries[0])) == 10
                opened_versions.append(reader._changes.directory._version.manifest["version"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for step in range(60):
        index.upsert(make_matrices(3), ids=["doc-1", "doc-2", f"doc-{step + 3}"])
        if step % 20 == 19:
            index.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert len(set(opened_versions)) > 2


@pytest.mark.parametrize("by", ["a given map", "refit"])
def test_a_program_that_names_its_options_runs_again(opened, make_matrices, tmp_path, by):
    encoder = opened[0].encoder
    asked = {**OPTIONS, "num_features": 32, "rank": 7}
    with LemurIndex.open(tmp_path / "other", **asked) as index:
        if by == "refit":
            index.fit(make_matrices(60), queries=make_matrices(30)).refit(rank=15, num_features=64)
        else:
            index.fit(make_matrices(60), encoder=encoder)
        assert (index.options.rank, index.options.num_features) == (15, 64)
    for _ in range(2):
        with LemurIndex.open(tmp_path / "other", **asked) as index:
            index.add(make_matrices(1))
            assert (index.options.rank, index.encoder.dim) == (15, 16)
        LemurIndex.open(tmp_path / "other", read_only=True, **OPTIONS).close()  # as they are now
    with pytest.raises(TypeError, match="rank is 15, not 9"):
        LemurIndex.open(tmp_path / "other", **asked | {"rank": 9})
    LemurIndex.load(tmp_path / "other").save(tmp_path / "copy")
    LemurIndex.open(tmp_path / "copy", **asked).close()
    index = LemurIndex.open(tmp_path / "other", **asked)
    index.delete(list(index))
    index.close()
    with LemurIndex.open(tmp_path / "other", **asked) as index:
        assert index.add(make_matrices(2)).options.rank == 15


def test_options_are_for_a_new_index(opened, tmp_path):
    index, *_ = opened
    index.close()
    with pytest.raises(TypeError, match=r"options \(rank\) are for a new index"):
        LemurIndex.open(tmp_path / "index", rank=7)
    LemurIndex.open(tmp_path / "index", **OPTIONS, ridge=np.float32(1e-6), compact_at=np.float32(0.3), M=np.int64(16)).close()
    with pytest.raises(TypeError, match=r"ridge is 1e-06, not 1\.00001"):
        LemurIndex.open(tmp_path / "index", ridge=1.00001e-6)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        LemurIndex.open(tmp_path / "nowhere", read_only=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("x")
    with pytest.raises(FileExistsError, match="holds 'chapter' and no index"):
        LemurIndex.open(tmp_path / "thesis")
    with LemurIndex.open(tmp_path / "deep" / "new", M=9) as new:
        assert (new.options.M, len(new)) == (9, 0)
    assert LemurIndex.open(tmp_path / "deep" / "new", read_only=True).options.M == 9


def test_save_of_an_open_index_is_a_copy(opened, tmp_path):
    index, _, queries = opened
    index.save(tmp_path / "copy")
    index.save(tmp_path / "index")  # where it is already
    copy = LemurIndex.open(tmp_path / "copy")
    same(index, copy, queries)
    copy.delete("doc-0")
    assert "doc-0" in index


def test_leftovers_of_a_crash_go_when_it_is_opened_for_writing(opened, tmp_path):
    index, *_ = opened
    index.close()
    left = ["tokens-000099.arrow", ".manifest.json.123", ".building-xyz"]
    for name in left:
        (tmp_path / "index" / name).write_bytes(b"half")
    LemurIndex.open(tmp_path / "index", read_only=True)
    assert set(left) <= set(files_of(index))
    LemurIndex.open(tmp_path / "index").close()
    assert not set(left) & set(files_of(index))


def test_pickled_it_travels_as_its_path(opened, tmp_path, make_matrices):
    index, _, queries = opened
    copy = pickle.loads(pickle.dumps(index))
    same(index, copy, queries)
    with pytest.raises(PermissionError):
        copy.delete("doc-1")
    loaded = LemurIndex.load(tmp_path / "index")
    same(pickle.loads(pickle.dumps(loaded)), index, queries)
    loaded.delete("doc-1")
    for unsaved in (loaded, LemurIndex()):
        with pytest.raises(TypeError, match="pickled as the path it is at: save it first"):
            pickle.dumps(unsaved)
    loaded.save(tmp_path / "other")
    assert "doc-1" not in pickle.loads(pickle.dumps(loaded))


def _search(task):
    index, query = task
    return index.search(query).ids.tolist()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_workers_search(opened):
    index, _, queries = opened
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(_search, [(index, query) for query in queries[:8]])
    assert found == [hits.ids.tolist() for hits in index.search(queries[:8])]
    index.delete("doc-0")  # and the writer is still the writer
    with pytest.raises(IndexLocked):
        LemurIndex.open(index._changes.directory.path)


def test_other_processes_search(opened, tmp_path):
    index, _, queries = opened
    (tmp_path / "task.pickle").write_bytes(pickle.dumps((index, queries[0])))
    program = "import pickle, sys; index, query = pickle.load(open(sys.argv[1], 'rb')); print(*index.search(query).ids)"
    command = [sys.executable, "-I", "-c", program, str(tmp_path / "task.pickle")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert found == index.search(queries[0]).ids.tolist()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_write(opened, make_matrices):
    index, *_ = opened
    child = os.fork()
    if child == 0:
        try:
            index.delete("doc-0")
        except PermissionError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    index.delete("doc-0")


def test_a_damaged_file(opened, tmp_path):
    index, *_ = opened
    index.close()
    (file,) = (tmp_path / "index").glob("documents-*")
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)
    for read_only in (True, False):
        with pytest.raises(CorruptIndex, match=rf"{file.name} was altered"):
            LemurIndex.open(tmp_path / "index", read_only=read_only)
    file.unlink()
    with pytest.raises(CorruptIndex, match=rf"{file.name} is missing"):
        LemurIndex.open(tmp_path / "index")


def test_check_finds_what_checksums_cannot(opened, tmp_path):
    """Files that were written wrong, with checksums of their own."""
    index, *_ = opened
    index.close()
    path = tmp_path / "index"
    (file,) = path.glob("links-*")
    searched = {name: np.array(array) for name, array in arrays.map_arrays(file).items()}
    searched["links"][3, 0] = 5000
    arrays.write_arrays(file, searched)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    manifest["files"][file.name] = storage.describe(file)
    swap = storage.Swap(path, manifest)
    swap.prepare()
    swap.do()
    with pytest.raises(CorruptIndex, match="links of the graph lead out of its 200 rows"):
        LemurIndex.load(path).check()


# The folder is the index, not its name


def small(path, count, name):
    """An index of ``count`` documents, open."""
    index = LemurIndex.open(path, **OPTIONS)
    index.add(np.random.default_rng(count).normal(size=(count, 3, 16)).astype(np.float32), ids=ids_of(count, name))
    return index


def ids_of(count, name):
    return [f"{name}-{i}" for i in range(count)]


def ids_at(path):
    with LemurIndex.open(path, read_only=True, verify=True) as reader:
        return reader.ids().to_pylist()


def refused(index, error, match, make_matrices):
    """Every change is refused, and what the index holds stays searchable."""
    before = index.ids().to_pylist()
    for change in (
        lambda: index.add(make_matrices(1), ids=["new"]),
        lambda: index.upsert(make_matrices(1), ids=[before[0]]),
        lambda: index.delete(before[0]),
        lambda: index.delete(filter=pc.field("id") == before[0]),
        lambda: index.fit(queries=make_matrices(5)),
    ):
        with pytest.raises(error, match=match):
            change()
    assert index.ids().to_pylist() == before
    assert len(index.search(make_matrices(1)[0], k=1, exact=True)) == 1


def test_a_relative_path_is_that_of_when_it_was_opened(make_matrices, tmp_path, monkeypatch):
    for name, count in (("one", 5), ("two", 7)):
        (tmp_path / name).mkdir()
        small(tmp_path / name / "index", count, name).close()
    monkeypatch.chdir(tmp_path / "one")
    index, reader = LemurIndex.open("index"), LemurIndex.open("index", read_only=True)
    monkeypatch.chdir(tmp_path / "two")
    index.add(make_matrices(1), ids=["new"])
    index.save("index-too")
    assert reader.refresh()
    assert reader.ids().to_pylist() == [*ids_of(5, "one"), "new"] == pickle.loads(pickle.dumps(reader)).ids().to_pylist()
    index.compact()
    index.delete("one-0")
    index.compact()
    index.close()
    assert ids_at(tmp_path / "one" / "index") == [*ids_of(5, "one")[1:], "new"]
    assert ids_at(tmp_path / "two" / "index") == ids_of(7, "two")
    assert ids_at(tmp_path / "two" / "index-too") == [*ids_of(5, "one"), "new"]


@pytest.mark.skipif(os.name == "nt", reason="Windows does not rename folders of open files")
@pytest.mark.parametrize("how", ["renamed", "moved away", "deleted", "made anew", "linked elsewhere", "parent renamed"])
def test_a_writer_whose_folder_was_swapped(make_matrices, tmp_path, how):
    """It writes nothing, and neither index loses anything."""
    path, kept = tmp_path / "in" / "index", tmp_path / "in" / "old"
    path.parent.mkdir()
    small(tmp_path / "other", 7, "b").close()
    if how == "linked elsewhere":
        kept.mkdir()
        path.symlink_to(kept)
    index = small(path, 5, "a")
    reader = LemurIndex.open(path, read_only=True)
    if how == "linked elsewhere":
        path.unlink()
        path.symlink_to(tmp_path / "other")
    elif how == "parent renamed":
        path.parent.rename(tmp_path / "out")
        path.parent.mkdir()
        kept = tmp_path / "out" / "index"
        (tmp_path / "other").rename(path)
    elif how in ("deleted", "made anew"):
        shutil.rmtree(path)
        if how == "made anew":
            small(path, 7, "b").close()
    else:
        path.rename(kept)
        if how == "renamed":
            (tmp_path / "other").rename(path)
    is_gone = how in ("moved away", "deleted")
    error, match = (FileNotFoundError, "was moved away or deleted") if is_gone else (IndexLocked, "leads to another folder")
    refused(index, error, match, make_matrices)
    with pytest.raises(error, match=match):
        index.refresh()
    if is_gone:
        with pytest.raises(FileNotFoundError, match="no index at"):
            reader.refresh()
        index.save(path)  # what it holds can be kept, in the same place too
        assert ids_at(path) == ids_of(5, "a")
    else:
        assert reader.refresh(), "a reader reads what its name leads to"
        assert reader.ids().to_pylist() == ids_of(7, "b") == ids_at(path)
        with small(path, 0, "b") as next_one:  # which nobody has a lock on
            next_one.add(make_matrices(1), ids=["new"])
    index.close()
    if how not in ("deleted", "made anew"):
        assert ids_at(kept) == ids_of(5, "a")
        LemurIndex.open(kept).close()


@pytest.mark.skipif(os.name == "nt", reason="Windows does not delete files that are open")
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_lock_that_was_removed_lets_nobody_in(make_matrices, tmp_path, how):
    path = tmp_path / "index"
    index = small(path, 5, "a")
    if how == "replaced":
        (tmp_path / "lock").touch()
        (tmp_path / "lock").rename(path / "writer.lock")
    else:
        (path / "writer.lock").unlink()
    refused(index, IndexLocked, rf"writer.lock was {how} while", make_matrices)
    with pytest.raises(IndexLocked, match="is open for writing"):
        LemurIndex.open(path)
    with pytest.raises(IndexLocked):
        LemurIndex().save(path)
    index.close()
    with LemurIndex.open(path) as again:
        again.add(make_matrices(1), ids=["new"])
    assert ids_at(path) == [*ids_of(5, "a"), "new"]


def test_a_manifest_that_another_wrote(make_matrices, tmp_path):
    """A backup is restored in place, beneath a writer that is open."""
    path = tmp_path / "index"
    index = small(path, 5, "a")
    shutil.copytree(path, tmp_path / "backup")
    index.add(make_matrices(1), ids=["later"])
    for file in path.iterdir():
        if file.name != "writer.lock":
            file.unlink()
    refused(index, IndexLocked, "was changed by something else than this index", make_matrices)
    for file in (tmp_path / "backup").iterdir():
        if file.name != "writer.lock":
            shutil.copy(file, path)
    refused(index, IndexLocked, r"changed by something else .* refresh\(\) reads what is there", make_matrices)
    index.save(tmp_path / "kept")
    assert ids_at(tmp_path / "kept") == [*ids_of(5, "a"), "later"]
    assert index.refresh()
    index.add(make_matrices(1), ids=["new"])
    assert index.ids().to_pylist() == [*ids_of(5, "a"), "new"] == ids_at(path)
    index.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows does not rename folders of open files")
def test_a_folder_swapped_amid_a_change(make_matrices, tmp_path, monkeypatch):
    """Its files go to the folder that was opened, and the change is refused."""
    path = tmp_path / "index"
    index = small(path, 5, "a")
    small(tmp_path / "other", 7, "b").close()
    describe = storage.describe

    def swapped(file):
        monkeypatch.setattr(storage, "describe", describe)
        path.rename(tmp_path / "old")
        (tmp_path / "other").rename(path)
        return describe(file)

    monkeypatch.setattr(storage, "describe", swapped)
    with pytest.raises(IndexLocked, match="leads to another folder"):
        index.add(make_matrices(1), ids=["new"])
    index.close()
    assert ids_at(path) == ids_of(7, "b")
    assert ids_at(tmp_path / "old") == ids_of(5, "a")
    for folder in (path, tmp_path / "old"):
        manifest = storage.read_manifest(folder)
        assert {file.name for file in folder.iterdir()} == {*manifest["files"], "manifest.json", "writer.lock"}


def test_options_that_the_index_has(tmp_path):
    """A cell that makes an index and is run again."""
    path = tmp_path / "index"
    for _ in range(2):
        with LemurIndex.open(path, rank=7, candidates="exact"):
            pass
    assert LemurIndex.open(path, read_only=True, rank=7).options.rank == 7
    for read_only in (False, True):
        with pytest.raises(TypeError, match=r"options \(M, rank\) are for .* has others: M is 16, not 9, rank is 7, not 8"):
            LemurIndex.open(path, read_only=read_only, rank=8, M=9, candidates="exact")
    LemurIndex.open(path).close()


def test_what_killed_processes_were_building(make_matrices, tmp_path):
    """Files, and the folder in which a library writes its graph, go with the next writer; a save's with the next save."""
    index = small(tmp_path / "index", 5, "a")
    index.close()
    (tmp_path / "index" / ".building-file").write_bytes(b"half")
    (tmp_path / "index" / ".building-folder").mkdir()
    (tmp_path / "index" / ".building-folder" / "graph").write_bytes(b"half")
    LemurIndex.open(tmp_path / "index").close()
    assert not [name for name in files_of(index) if name.startswith(".building")]
    names = [f".copy.new-{'0' * 11}{i}" for i in range(3)]
    for name in [*names, ".copy.new-mine", ".copy.newer-000000000000"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens-000001.arrow").write_bytes(b"half")
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / names[2])  # which may have been begun just now
    with Folder(tmp_path / names[1]) as busy:
        busy.lock()
        index.save(tmp_path / "copy")
    left = {path.name for path in tmp_path.glob(".copy*")} - {".copy.new-mine", ".copy.newer-000000000000"}
    assert left == (set(names) if os.name == "nt" else set(names[1:]))


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    small(tmp_path / "index", 5, "a").close()
    for code in (errno.EACCES, errno.EROFS):

        def refuse(*_, code=code):
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(HeldFolder, "_take", refuse)
            with pytest.raises(PermissionError, match=rf"cannot be written \({os.strerror(code)}\); read_only=True opens"):
                LemurIndex.open(tmp_path / "index")
    assert ids_at(tmp_path / "index") == ids_of(5, "a")


# A lock that is no file


def make_link(path):
    path.symlink_to(path.parent.parent / "file of another")


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # such names are short


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files, or needs rights for them")
@pytest.mark.parametrize(
    ("what", "make"),
    [("a link", make_link), ("a folder", os.mkdir), ("a pipe", os.mkfifo), ("a socket", make_socket)],
    ids=["link", "folder", "pipe", "socket"],
)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_lock_that_is_no_file(tmp_path, monkeypatch, what, make, is_there):
    """It is refused with its name, at once, and nothing is written through it."""
    monkeypatch.chdir(tmp_path)
    path, foreign = tmp_path / "index", tmp_path / "file of another"
    small(tmp_path / "other", 5, "a").save(path)
    foreign.write_text("text of another")
    make(path / "writer.lock")
    if not is_there:
        for file in path.glob("*[a-z0-9].[a-z]*"):
            if file.name != "writer.lock":
                file.unlink()
    kind = os.lstat(path / "writer.lock").st_mode
    files = sorted(path.iterdir())
    with pytest.raises(CorruptIndex, match=rf"writer.lock is {what}, expected a file .* remove it"):
        LemurIndex.open(path)
    if is_there:
        with pytest.raises(CorruptIndex, match=rf"writer.lock is {what}"):
            LemurIndex().save(path)
        assert ids_at(path) == ids_of(5, "a")  # who only reads needs no lock
    assert foreign.read_text() == "text of another"
    assert sorted(path.iterdir()) == files
    assert os.lstat(path / "writer.lock").st_mode == kind
    (path / "writer.lock").rename(tmp_path / "moved away")
    LemurIndex.open(path).close()


@pytest.mark.skipif(os.name == "nt", reason="Windows needs rights for links, and has no second names here")
def test_a_lock_of_two_names_is_not_written_to(tmp_path):
    path, foreign = tmp_path / "index", tmp_path / "file of another"
    small(path, 5, "a").close()
    foreign.write_text("text of another")
    (path / "writer.lock").unlink()
    os.link(foreign, path / "writer.lock")
    with LemurIndex.open(path) as index:
        index.delete("a-0")
        with pytest.raises(IndexLocked):
            LemurIndex.open(path)
    assert foreign.read_text() == "text of another"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files, or needs rights for them")
@pytest.mark.parametrize("make", [make_link, os.mkdir, os.mkfifo], ids=["link", "folder", "pipe"])
def test_a_manifest_that_is_no_file(tmp_path, make_matrices, make):
    """Nobody waits for it or follows it, whether it was there before the index was opened or came later."""
    path, foreign = tmp_path / "index", tmp_path / "file of another"
    index = small(path, 5, "a")
    os.rename(path / "manifest.json", foreign)
    make(path / "manifest.json")
    refused(index, IndexLocked, "was changed by something else", make_matrices)
    with pytest.raises(CorruptIndex, match=r"manifest.json is (a link|no file)"):
        index.refresh()
    index.close()
    for read_only in (False, True):
        with pytest.raises(CorruptIndex, match=r"manifest.json is (a link|no file)"):
            LemurIndex.open(path, read_only=read_only)
    (path / "manifest.json").rename(tmp_path / "moved away")
    foreign.rename(path / "manifest.json")
    assert ids_at(path) == ids_of(5, "a")


# Where graphs are built


@pytest.mark.parametrize("is_nameless", [True, False])
def test_graphs_are_built_in_temporary_files(tmp_path, make_matrices, monkeypatch, is_nameless):
    """Without a name on Linux, so that a kill leaves nothing; elsewhere they go with the index, and where writing fails."""
    monkeypatch.setattr(candidates, "MIN_SCANNED", 20)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    save, seen, full = hnswlib_file._save, [], [False]

    def watched(graph, path, folder):
        save(graph, path, folder)
        seen.extend(file.name for file in [*tmp_path.glob("*/.*"), *(tmp_path / "temporary").iterdir()])
        if full[0]:
            raise OSError(errno.ENOSPC, "full", folder)

    monkeypatch.setattr(hnswlib_file, "_save", watched)
    if not is_nameless:
        monkeypatch.setattr(hnswlib_file, "_nameless", lambda *_: None)
    documents, queries = make_matrices(40), make_matrices(5)
    index = LemurIndex(**OPTIONS).fit(documents, queries=queries)
    opened = LemurIndex.open(tmp_path / "index", **OPTIONS).fit(documents, queries=queries)
    expected = [] if is_nameless and sys.platform == "linux" else [".building-"]
    assert sorted({name[:10] for name in seen}) == expected
    assert index.search(queries, k=5) == opened.search(queries, k=5)
    full[0] = True
    for one in (index, opened):
        with pytest.raises(OSError, match="full"):
            one.fit(queries=queries)
    opened.close()
    del index, opened, one
    gc.collect()
    assert not [*tmp_path.glob("*/.*"), *(tmp_path / "temporary").iterdir()]


# A process at its limit of open files

AT_THE_LIMIT = """
import errno, os, resource, sys
import numpy as np
from lemur_ann import LemurIndex, candidates

candidates.MIN_SCANNED = 20
tokens = np.random.default_rng(0).normal(size=(40, 3, 8)).astype(np.float32)
index = LemurIndex.open(sys.argv[1], num_features=16, epochs=0, rank=7, num_sample_tokens=40, num_candidates=20, ef_search=None)
index.add(list(tokens[:30]), ids=[f"a{i}" for i in range(30)])
if sys.argv[2] == "fitted":
    index.fit(queries=list(tokens[:10]), num_threads=1)
warm = [index.delete("a0"), index.compact(num_threads=1), index.search(tokens[1], k=3)]
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
ids, refused = index.ids().to_pylist(), 0
for number in range(30):
    tried = [
        ("add", lambda: index.add([tokens[30]], ids=[f"new{number}"], num_threads=1)),
        ("upsert", lambda: index.upsert([tokens[31]], ids=["a1"], num_threads=1)),
        ("delete", lambda: index.delete(ids[-1])),
        ("compact", lambda: index.compact(num_threads=1)),
        ("save", lambda: index.save(f"{sys.argv[1]}-copy-{number}")),
    ]
    (name, change), room = tried[number % 5], number // 5
    highest = max(int(descriptor) for descriptor in os.listdir("/dev/fd"))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest)]  # no gap is left below the limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1 + room, hard))
    try:
        change()
    except OSError as error:
        assert error.errno == errno.EMFILE, error
        assert index.ids().to_pylist() == ids, f"{name} was refused and changed the index"
        refused += 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for descriptor in held:
            os.close(descriptor)
    ids = index.ids().to_pylist()
    with LemurIndex.open(sys.argv[1], read_only=True, verify=True) as reader:
        assert reader.ids().to_pylist() == ids, f"after {name} with {room} descriptors left"
assert refused > 4, refused
index.add([tokens[35]], ids=["last"], num_threads=1)
index.close()
with LemurIndex.open(sys.argv[1], verify=True) as again:
    assert again.ids().to_pylist() == [*ids, "last"]
print("held", refused)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
@pytest.mark.parametrize("kind", ["unfitted", "fitted"])
def test_out_of_descriptors(tmp_path, kind):
    """Every change is refused whole or made whole, however many descriptors are left; then all goes on."""
    command = [sys.executable, "-c", AT_THE_LIMIT, str(tmp_path / "index"), kind]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("held")
