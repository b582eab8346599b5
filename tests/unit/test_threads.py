"""What threads share, what a forked child may do, and what a container allows.

What must be amid a change waits there for the test: in the documents that it reads, or where it tells of progress.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import lemur_ann.searching.device
from lemur_ann import IndexLocked, LemurIndex, arrays, changes, validate
from lemur_ann.learning.threads import torch_threads
from lemur_ann.searching.searcher import Searcher

WAIT_S = 60  # for what takes no time unless it hangs
DIM = 16
KINDS = ["hnsw", "faiss", "usearch"]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def learned(index: LemurIndex, documents: Any, queries: Any) -> LemurIndex:
    return index.fit(documents, queries=queries, ids=list(range(len(documents))), num_threads=1)


def options(kind: str) -> dict[str, Any]:
    if kind not in ("hnsw", "exact"):
        pytest.importorskip(kind)
    return {"num_features": 64, "epochs": 0, "rank": 15, "candidates": kind, "num_candidates": 40, "ef_search": None}


def run_in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """What they give, all at once; the first error of any."""
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result(WAIT_S) for future in [pool.submit(function) for function in functions]]


def run(program: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process of its own, in a folder where it finds no other package of our name."""
    env = {**os.environ, **environment}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


def in_child(work: Callable[[], object]) -> None:
    """Do something in a forked child: fails with what it raises, or where it hangs."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which is what this is about
        child = os.fork()
    if child == 0:
        told = b"done"
        try:
            work()
        except BaseException:
            told = traceback.format_exc().encode()[-4000:]
        finally:
            os.write(writer, told)
            os._exit(0)
    os.close(writer)
    try:
        if not select.select([reader], [], [], WAIT_S)[0]:
            os.kill(child, signal.SIGKILL)
            pytest.fail(f"the child hangs in {work}")
        told = os.read(reader, 4000).decode()
        assert told == "done", told
    finally:
        os.close(reader)
        os.waitpid(child, 0)


@contextmanager
def amid(change: Callable[[Callable[..., None]], Any]) -> Iterator[None]:
    """Run a block while ``change`` is where it calls its argument, in another thread; the change is done afterwards."""
    begun, go_on, failed = threading.Event(), threading.Event(), []

    def wait(*_: object) -> None:
        begun.set()
        go_on.wait(WAIT_S)

    def run() -> None:
        try:
            change(wait)
        except BaseException as error:
            failed.append(error)
            begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert begun.wait(WAIT_S)
        yield
    finally:
        go_on.set()
        thread.join(WAIT_S)
    assert not failed, failed


def stream(matrices: list[Any], ids: list[int], wait: Callable[..., None]) -> pa.RecordBatchReader:
    """Documents that wait before the first of them."""
    table = LemurIndex().add(matrices, ids=ids).to_arrow().read_all()

    def batches() -> Iterator[pa.RecordBatch]:
        wait()
        yield from table.to_batches()

    return pa.RecordBatchReader.from_batches(table.schema, batches())


# Forks


@needs_fork
@pytest.mark.parametrize("kind", KINDS)
def test_a_child_forked_amid_a_change_does_not_wait_for_it(tmp_path, make_matrices, kind):
    documents, queries, more = make_matrices(300, DIM), make_matrices(60, DIM), make_matrices(3, DIM)
    path = tmp_path / "index"
    index = learned(LemurIndex.open(path, **options(kind)), documents, queries)
    expected = index.search(queries[:5], k=3, num_threads=1)

    def searched() -> None:
        for hits, wanted in zip(index.search(queries[:5], k=3), expected, strict=True):
            assert hits.ids.tolist() == wanted.ids.tolist()

    def with_block() -> None:
        with index:
            searched()

    def refused() -> None:
        for change in (lambda: index.add(more, ids=[1000, 1001, 1002]), lambda: index.delete([1]), index.compact):
            with pytest.raises(PermissionError, match="forked"):
                change()

    def opened() -> None:
        with pytest.raises(IndexLocked):
            LemurIndex.open(path)
        with LemurIndex.open(path, read_only=True) as reader:
            assert len(reader) == 300
            assert reader.search(documents[7], k=1, exact=True).ids.tolist() == [7]

    def closed() -> None:
        index.close()
        searched()
        index.close()

    with amid(lambda wait: index.add(stream(more, [300, 301, 302], wait), num_threads=1)):
        for work in (index.refresh, closed, with_block, searched, refused, opened, lambda: index.save(tmp_path / "copy")):
            in_child(work)
        with pytest.raises(IndexLocked):  # no child let go of the parent's lock
            LemurIndex.open(path)
    assert len(index) == 303
    index.delete([0])
    with amid(lambda wait: index.refit(queries=queries, num_threads=1, progress=wait)):
        for work in (index.refresh, closed, with_block, refused):
            in_child(work)
        index.delete([1])
    index.check()
    index.close()
    with LemurIndex.open(path, verify=True) as again:
        assert again.ids().to_pylist() == list(range(2, 303))
        assert again.search(more[0], k=1, exact=True).ids.tolist() == [300]
    assert len(LemurIndex.load(tmp_path / "copy")) == 300


@needs_fork
@pytest.mark.parametrize("kind", KINDS)
def test_a_child_has_an_index_in_memory_for_itself(tmp_path, make_matrices, kind):
    documents, queries, more = make_matrices(300, DIM), make_matrices(60, DIM), make_matrices(3, DIM)
    index = learned(LemurIndex(**options(kind)), documents, queries)

    def changed() -> None:
        index.add(more, ids=[400, 401, 402])
        index.delete([5])
        index.compact()
        assert index.search(more[1], k=1).ids.tolist() == [401]
        index.save(tmp_path / "of the child")

    with amid(lambda wait: index.add(stream(more, [300, 301, 302], wait), num_threads=1)):
        in_child(changed)
    assert index.ids().to_pylist() == list(range(303))
    saved = LemurIndex.load(tmp_path / "of the child")
    saved.check()
    assert saved.ids().to_pylist() == [*range(5), *range(6, 300), 400, 401, 402]


ENDS = """
import gc, os, sys
import numpy as np
from lemur_ann import LemurIndex
index = LemurIndex.open(sys.argv[1], num_features=64, rank=15, epochs=0)
index.fit(np.random.default_rng(0).normal(size=(300, 2, 16)).astype(np.float32), num_threads=1)
child = os.fork()
if child == 0:
    if sys.argv[2] == "closed":
        index.close()
    elif sys.argv[2] == "collected":
        del index
        gc.collect()
    sys.exit(0)  # with all that Python does at its end
assert os.waitpid(child, 0)[1] == 0
assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", '''
import sys
from lemur_ann import IndexLocked, LemurIndex
try:
    LemurIndex.open(sys.argv[1])
except IndexLocked:
    sys.exit(7)
''', sys.argv[1]]) == 7
index.add(np.ones((1, 2, 16), np.float32))
index.check()
index.close()
with LemurIndex.open(sys.argv[1]) as again:
    assert len(again) == 301
"""


@needs_fork
@pytest.mark.parametrize("end", ["left", "closed", "collected"])
def test_the_end_of_a_child_leaves_lock_and_files_to_the_parent(tmp_path, end):
    result = run(ENDS, tmp_path, str(tmp_path / "index"), end)
    assert result.returncode == 0, result.stderr


# Threads


@pytest.mark.parametrize("kind", KINDS)
def test_threads_save_one_index_at_once(tmp_path, make_matrices, kind):
    documents, queries = make_matrices(2500, DIM, 1, 2), make_matrices(60, DIM)
    index = learned(LemurIndex(**options(kind) | {"num_features": 128, "rank": 127}), documents, queries)
    wanted = [hits.ids.tolist() for hits in index.search(queries, k=5)]
    for attempt in range(3 if kind == "hnsw" else 1):
        paths = [tmp_path / f"{attempt}-{number}" for number in range(3)]
        barrier = threading.Barrier(len(paths))

        def save(path: Path, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(WAIT_S)
            index.save(path)

        run_in_threads(*(lambda path=path: save(path) for path in paths))
        files = {file.name: file.read_bytes() for file in paths[0].iterdir() if file.suffix not in (".json", ".lock")}
        for path in paths:
            copy = LemurIndex.load(path)  # compares all checksums
            copy.check()
            assert [hits.ids.tolist() for hits in copy.search(queries, k=5)] == wanted
            copy.add(documents[:1], ids=[10**6])
            assert copy.search(documents[9], k=1, exact=True).ids.tolist() == [9]
            assert all((path / name).read_bytes() == content for name, content in files.items())


def test_threads_read_one_stream(make_matrices):
    index = LemurIndex().add(make_matrices(9000, 4, 1, 1))
    for _ in range(3):
        reader, barrier = index.to_arrow(), threading.Barrier(4)

        def read(reader: pa.RecordBatchReader = reader, barrier: threading.Barrier = barrier) -> list[int]:
            barrier.wait(WAIT_S)
            return [doc_id for batch in reader for doc_id in batch.column("id").to_pylist()]

        assert sorted(itertools.chain(*run_in_threads(*[read] * 4))) == list(range(9000))


class SlowDeviceSearch:
    made: list[SlowDeviceSearch]
    wait: Callable[[], object]

    def __init__(self, *_: object) -> None:
        self.made.append(self)
        type(self).wait()


def test_documents_are_copied_to_a_device_once(small_index, monkeypatch):
    index, _, _ = small_index(candidates="exact")
    known = index.snapshot.learned
    on_device = dataclasses.replace(known, options=dataclasses.replace(known.options, device="cuda"))
    snapshot = dataclasses.replace(index.snapshot, learned=on_device)
    monkeypatch.setattr(lemur_ann.searching.device, "DeviceSearch", SlowDeviceSearch)
    SlowDeviceSearch.made, SlowDeviceSearch.wait = [], staticmethod(lambda: time.sleep(0.1))
    searcher = Searcher()
    assert len(set(run_in_threads(*[lambda: searcher.device_search(snapshot)] * 4))) == 1
    assert len(SlowDeviceSearch.made) == 1
    if not hasattr(os, "fork"):
        return

    def copied(wait: Callable[..., None]) -> None:
        SlowDeviceSearch.wait = staticmethod(wait)
        other.device_search(snapshot)

    def copied_in_child() -> None:
        SlowDeviceSearch.wait = staticmethod(lambda: None)
        assert other.device_search(snapshot) is not None

    other = Searcher()
    with amid(copied):
        in_child(copied_in_child)


def test_each_thread_searches_usearch_with_its_own_beam(make_matrices):
    documents, queries = make_matrices(1500, DIM, 1, 2), make_matrices(60, DIM)
    index = learned(LemurIndex(**options("usearch")), documents, queries)
    settings = [{"num_candidates": 5, "ef_search": 5}, {"num_candidates": 5, "ef_search": 200}, {"num_candidates": 60}]
    settings = [{**own, "shortlist": 0} for own in settings]
    wanted = [[hits.ids.tolist() for hits in index.search(queries, k=5, **setting)] for setting in settings]
    assert wanted[0] != wanted[1]  # the beam matters

    def search(number: int) -> None:
        for _ in range(10):
            found = index.search(queries, k=5, num_threads=1 + number % 2, **settings[number])
            assert [hits.ids.tolist() for hits in found] == wanted[number]

    run_in_threads(*(lambda number=number: search(number) for number in (0, 1, 2, 0, 1, 2)))


def test_a_beam_of_usearch_stays_for_as_long_as_it_is_searched_with():
    pytest.importorskip("usearch")
    from lemur_ann.candidates.usearch import _Graph

    graph, together = _Graph(types.SimpleNamespace(expansion_search=0)), threading.Barrier(2)

    def search(beam: int) -> None:
        for _ in range(50):
            with graph.searching(beam) as index:
                time.sleep(0.0005)
                assert index.expansion_search == beam

    def beside() -> None:  # two with one beam are there at once
        with graph.searching(7):
            together.wait(WAIT_S)

    run_in_threads(*(lambda beam=beam: search(beam) for beam in (1, 2, 3, 1)))
    run_in_threads(beside, beside)


def test_an_index_is_tuned_while_it_changes(small_index, make_matrices):
    index, documents, queries = small_index(epochs=0)
    queries = queries[:6]
    new = iter(range(1000, 1006))

    def change(*_: object) -> None:
        number = next(new, None)
        if number is None:
            return
        index.add(make_matrices(1, DIM), ids=[f"doc-{number}"])
        index.delete([f"doc-{number}"] if number % 2 else [f"doc-{number - 1000}"])
        index.compact()

    tuned = index.tune(queries, 0.9, k=5, progress=lambda *_: run_in_threads(change))
    assert index.tuned == (tuned,)
    assert next(new, None) is None
    index.check()
    kept = index.tune(queries, 0.8, k=3)
    with amid(lambda wait: index.compact(progress=wait) if index.delete(["doc-150"]) else None):
        again = index.tune(queries, 0.9, k=5)
    assert index.tuned == (kept, again)

    def refit(*_: object) -> None:
        run_in_threads(lambda: index.refit(queries=queries, num_threads=1))

    with pytest.raises(RuntimeError, match="tune again"):
        index.tune(queries, 0.9, k=5, progress=refit)
    assert index.tuned == ()
    assert len(index.search(documents[3], k=5)) == 5


# One index on disk, and threads that do all there is to it


def tokens_of(number: int, version: int) -> np.ndarray:
    tokens = np.random.default_rng([number, version]).normal(size=(4, 8)).astype(np.float32)
    return tokens / np.linalg.norm(tokens, axis=1, keepdims=True)


def table_of(documents: dict[int, int]) -> pa.Table:
    """Documents by number and version, which decide their tokens: whoever reads one knows whether it is right."""
    flat = np.concatenate([tokens_of(*item) for item in documents.items()]).reshape(-1)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(flat), 8)
    tokens = pa.LargeListArray.from_arrays(pa.array(range(0, 4 * len(documents) + 1, 4), pa.int64()), rows)
    return pa.table({"id": list(documents), "tokens": tokens, "version": list(documents.values())})


def read(table: pa.Table) -> dict[int, int]:
    """The numbers and versions; fails where tokens are not those of a version, or a document is there twice."""
    found = dict(zip(table["id"].to_pylist(), table["version"].to_pylist(), strict=True))
    assert len(found) == len(table)
    if found:
        np.testing.assert_array_equal(
            table["tokens"].combine_chunks().flatten().flatten().to_numpy(),
            np.concatenate([tokens_of(*item) for item in found.items()]).reshape(-1),
        )
    return found


TUNE_AGAIN = "the index learned another map while it was tuned: tune again"


class Stress:
    """Threads on one index. Each changer has documents of its own, and knows at every moment what they are."""

    STABLE = 200  # documents that nobody changes

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.stable = dict.fromkeys(range(self.STABLE), 0)
        self.queries = [tokens_of(number, 99)[:2] for number in range(40)]
        self.index = LemurIndex.open(folder / "index", num_features=64, epochs=0, rank=15, compact_at=0.2)
        self.index.fit(table_of(self.stable), queries=self.queries, num_threads=1)
        self.counts: dict[str, int] = {}
        self.until = time.monotonic() + seconds

    def rounds(self, name: str) -> Iterator[int]:
        """One at least, on the slowest machine; each with its number."""
        number = 0
        while number == 0 or time.monotonic() < self.until:
            yield number
            number += 1
        self.counts[f"{name}, {threading.get_ident()}"] = number

    def change(self, first: int) -> dict[int, int]:
        random, own, new = np.random.default_rng(first), {}, iter(range(first, first + 100_000))
        for _ in self.rounds(f"changes from {first}"):
            some = [int(n) for n in random.permutation(list(own))[: random.integers(1, 8)]]
            kind = random.integers(5) if some else 0
            if kind < 2:
                added = {next(new): 0 for _ in range(random.integers(1, 9))}
                self.index.add(table_of(added), num_threads=1)
                own |= added
            elif kind == 2:
                newer = {number: own[number] + 1 for number in some} | {next(new): 0}
                self.index.upsert(table_of(newer), num_threads=1)
                own |= newer
            elif kind == 3:
                assert self.index.delete(some) == len(some)
                for number in some:
                    del own[number]
                assert not any(number in self.index for number in some)
            else:
                with pytest.raises(ValueError, match="already"):
                    self.index.add(table_of({next(new): 0, some[0]: 5}))
            seen = [number for number in own if number in self.index]
            assert seen == list(own)
            assert read(self.index.get(seen[-5:])) == {number: own[number] for number in seen[-5:]}
        return own

    def learn(self) -> None:
        for turn in self.rounds("rebuilt"):
            if turn % 2:
                self.index.compact(num_threads=1)
            else:
                self.index.refit(queries=self.queries, num_threads=1)

    def tune(self) -> None:
        for _ in self.rounds("tuned"):
            assert self.tuned_error() in ("", TUNE_AGAIN)

    def tuned_error(self) -> str:
        try:
            self.index.tune(self.queries, 0.9, k=5, num_threads=1)
        except RuntimeError as error:  # another map was learned meanwhile
            return str(error)
        return ""

    def save(self) -> None:
        for turn in self.rounds("saved"):
            path = self.folder / f"copy-{turn % 2}"  # in the place of the one before the last, and anew
            if turn % 4 == 0:
                shutil.rmtree(path, ignore_errors=True)
            self.index.save(path)
            copy = LemurIndex.load(path)
            copy.check()
            assert read(copy.to_arrow(vectors=False).read_all()).items() >= self.stable.items()

    def look(self) -> None:
        for turn in self.rounds("looked"):
            number = turn * 7 % self.STABLE
            for exact in (True, False):
                hits = self.index.search(tokens_of(number, 0), k=10, exact=exact, num_candidates=None if exact else 10_000)
                assert hits.ids[0] == number
                assert abs(hits.scores[0] - 4) < 1e-5
                assert len(set(hits.ids.tolist())) == 10
                assert (np.diff(hits.scores) <= 0).all()
            assert len(self.index.search(self.queries[:4], k=10)) == 4
            stats = self.index.stats()
            assert stats.num_documents >= self.STABLE
            assert not self.index.refresh()
            if turn % 4 == 0:
                everything = self.index.to_arrow()
                assert "vector" in everything.schema.names
                assert read(everything.read_all()).items() >= self.stable.items()
                self.index.check()


@pytest.mark.slow
def test_threads_do_everything_to_one_index(tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "MIN_DELETED", 20)  # so that it compacts itself
    stress = Stress(tmp_path, seconds=6)
    begins = (10_000, 200_000, 400_000)
    own = run_in_threads(
        *(lambda first=first: stress.change(first) for first in begins),
        *(stress.learn, stress.tune, stress.save, stress.look, stress.look),
    )
    index, wanted = stress.index, dict(stress.stable)
    for documents in own[: len(begins)]:
        wanted |= documents
    assert len(stress.counts) == 8, stress.counts
    index.check()
    assert read(index.to_arrow(vectors=False).read_all()) == wanted
    index.close()
    index = LemurIndex.open(tmp_path / "index", verify=True)
    index.check()
    assert read(index.to_arrow(vectors=False).read_all()) == wanted
    number, version = list(wanted.items())[-1]
    assert index.search(tokens_of(number, version), k=1, exact=True).ids.tolist() == [number]
    index.close()


# No thread, no room


def test_a_change_returns_where_no_thread_is_left(tmp_path, monkeypatch):
    index = LemurIndex.open(tmp_path / "index", compact_at=0.3)
    index.add(np.ones((3000, 1, 4), np.float32), ids=list(range(3000)))

    class NoneLeft(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(changes, "threading", types.SimpleNamespace(**vars(threading) | {"Thread": NoneLeft}))
        index.delete(list(range(1500)))
    assert len(index) == 1500
    assert index.snapshot.num_rows == 3000
    index.delete([1500])  # and the next change finds one
    index._changes.compaction.join(WAIT_S)
    assert index.snapshot.num_rows == 1499
    index.close()
    with LemurIndex.open(tmp_path / "index") as again:
        assert again.ids().to_pylist() == list(range(1501, 3000))


NO_THREAD = """
import resource, sys, threading
from pathlib import Path
import numpy as np
from lemur_ann import LemurIndex
index = LemurIndex.open(sys.argv[1], compact_at=0.3)
index.add(np.ones((3000, 1, 4), np.float32), ids=list(range(3000)), num_threads=1)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
before = resource.getrlimit(resource.RLIMIT_AS)
threading.stack_size(2**30)
resource.setrlimit(resource.RLIMIT_AS, (size + 2**29, before[1]))
try:
    threading.Thread(target=print).start()
    sys.exit(5)
except RuntimeError:
    pass
assert index.delete(list(range(1500))) == 1500
index.close()
resource.setrlimit(resource.RLIMIT_AS, before)
LemurIndex.open(sys.argv[1]).close()
"""


@needs_linux
def test_a_change_returns_where_the_system_gives_no_thread(tmp_path):
    result = run(NO_THREAD, tmp_path, str(tmp_path / "index"))
    if result.returncode == 5:
        pytest.skip("this system gives a thread all the same")
    assert result.returncode == 0, result.stderr
    assert "could not compact itself" in result.stderr


FULL_DISK = """
import resource, sys
import numpy as np
from lemur_ann import LemurIndex, arrays
random = np.random.default_rng(0)
documents = random.normal(size=(1000, 4, 8)).astype(np.float32)
queries = random.normal(size=(1000, 16, 8)).astype(np.float32)
before = resource.getrlimit(resource.RLIMIT_FSIZE)
if sys.argv[2] == "written":  # a file system that reserves nothing
    arrays._reserve = lambda descriptor, size: None
index = LemurIndex(num_features=64, rank=15, epochs=1, num_sample_tokens=500)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**23, before[1]))  # beyond that no file has room
try:
    index.fit(documents, queries, memory_limit="680MB", directory=sys.argv[1], num_threads=1)
    sys.exit("fitted")
except OSError as error:
    print(error)
assert len(index) == 0 and not index.is_fitted
resource.setrlimit(resource.RLIMIT_FSIZE, before)
index.fit(documents[:50], queries[:50], num_threads=1)
assert index.search(documents[3], k=1).ids.tolist() == [3]
"""


@needs_linux
@pytest.mark.parametrize("when", ["reserved", "written"])
def test_learning_on_a_full_disk_is_an_error(tmp_path, when):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    result = run(FULL_DISK, tmp_path, str(scratch), when)
    assert result.returncode == 0, result.stderr
    assert str(scratch) in result.stdout
    assert "directory= names another folder" in result.stdout
    assert list(scratch.iterdir()) == []


def test_rows_are_written_before_they_are_mapped(tmp_path, monkeypatch):
    rows = np.arange(12, dtype=np.float16).reshape(4, 3)
    np.testing.assert_array_equal(arrays.mapped_rows([rows[:2], rows[2:]], (4, 3), np.float16, tmp_path), rows)

    def full(descriptor, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(arrays, "_reserve", full)
    with pytest.raises(OSError, match="directory= names another folder"):
        arrays.mapped_rows([rows], (4, 3), np.float16, tmp_path)


# Cores


def quota(folder: Path, own: str, mount: str, files: dict[str, str]) -> validate._Quota:
    """A made-up tree of control groups: the group of the process, where it is mounted, and what is in its files."""
    (folder / "cgroup").write_text(own + "\n")
    (folder / "mountinfo").write_text(f"22 1 0:1 / / rw - ext4 /dev/sda rw\n30 22 0:2 {mount.format(folder / 'fs')}\n")
    for name, content in files.items():
        file = folder / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    return validate._Quota(folder)


UNIFIED, SEEN_AS_ROOT = "/ {} rw,nosuid shared:9 - cgroup2 cgroup rw", "/kube/pod {} rw - cgroup2 cgroup rw"
OLD = "/docker/abc {} rw - cgroup cgroup rw,cpu,cpuacct"


@pytest.mark.parametrize(
    ("own", "mount", "files", "cores"),
    [
        ("0::/a/b", UNIFIED, {"a/b/cpu.max": "max 100000", "a/cpu.max": "350000 100000"}, 3),
        ("0::/a/b", UNIFIED, {"a/b/cpu.max": "50000 100000", "a/cpu.max": "350000 100000"}, 1),
        ("0::/a/b", UNIFIED, {"a/b/cpu.max": "400000 100000", "a/cpu.max": "250000 100000"}, 2),
        ("0::/a/b", UNIFIED, {"a/b/cpu.max": "max 100000", "other/cpu.max": "100000 100000"}, 2**31),
        ("0::/a", UNIFIED, {"a/cpu.max": "nonsense"}, 2**31),
        ("0::/", UNIFIED, {"cpu.max": "200000 100000"}, 2),
        ("0::/kube/pod/box", SEEN_AS_ROOT, {"box/cpu.max": "150000 50000", "cpu.max": "max 100000"}, 3),
        ("0::/", SEEN_AS_ROOT, {"cpu.max": "120000 100000"}, 1),
        ("4:cpu,cpuacct:/docker/abc", OLD, {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu,cpuacct:/docker/abc", OLD, {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 2**31),
        ("4:memory:/docker/abc", OLD, {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}, 2**31),
    ],
)
def test_none_keeps_to_the_quota_of_a_group_and_of_those_above(tmp_path, own, mount, files, cores):
    assert quota(tmp_path, own, mount, files).cores() == cores


@needs_linux
def test_the_number_of_threads_by_itself_is_that_of_the_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(validate, "_quota", quota(tmp_path, "0::/a", UNIFIED, {"a/cpu.max": "100000 100000"}))
    assert validate.num_threads(None) == validate.cores() == 1
    assert validate.num_threads(3) == 3
    monkeypatch.setattr(validate, "_quota", validate._Quota(tmp_path / "nothing"))
    assert validate.num_threads(None) == len(os.sched_getaffinity(0))


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_torch_has_its_own_number_of_threads_after_learning(make_matrices):
    documents, queries = make_matrices(200, DIM), make_matrices(60, DIM)
    settings = {"num_features": 64, "epochs": 1, "rank": 15}
    seen = {}

    def note(stage: str, done: int, total: int | None) -> None:
        seen[stage] = torch.get_num_threads()

    index = LemurIndex(**settings).fit(documents, queries=queries, num_threads=2, progress=note)
    assert seen["targets"] == 2
    assert torch.get_num_threads() == 3
    index.refit(queries=queries, num_threads=8, progress=note)
    assert seen["targets"] == 3  # no more than it had
    assert torch.get_num_threads() == 3

    def fail(stage: str, done: int, total: int | None) -> None:
        if stage == "targets":
            assert torch.get_num_threads() == 1
            raise LookupError(stage)

    with pytest.raises(LookupError):
        index.refit(queries=queries, num_threads=1, progress=fail)
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_two_threads_that_learn_leave_torch_as_it_was():
    for counts in ((1, 2), (2, 1), (1, 1)):
        barrier = threading.Barrier(2)

        def learn(count: int, barrier: threading.Barrier = barrier) -> tuple[int, int]:
            with torch_threads(count):
                within = torch.get_num_threads()
                barrier.wait(WAIT_S)
            return within, torch.get_num_threads()

        first, second = run_in_threads(*(lambda count=count: learn(count) for count in counts))
        assert (first, second) == ((counts[0], 3), (counts[1], 3))
        assert torch.get_num_threads() == 3
        assert run_in_threads(torch.get_num_threads) == [3]


LOAD = """
import os, sys
import lemur_ann
from lemur_ann.learning.threads import load_torch
assert "torch" not in sys.modules
before = dict(os.environ)
try:
    load_torch()
except ImportError as error:
    print(error)
assert dict(os.environ) == before
"""


@needs_linux
def test_threads_of_torch_sleep_while_they_wait(tmp_path):
    result = run(LOAD, tmp_path, OMP_DISPLAY_ENV="true")
    assert result.returncode == 0, result.stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in result.stderr


def test_the_environment_stays_as_the_user_set_it(tmp_path):
    (tmp_path / "torch.py").write_text("import os; raise ImportError(os.environ.get('OMP_WAIT_POLICY'))")
    for environment, seen in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, "None")):
        result = run(LOAD, tmp_path, **environment)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == seen
