"""Calls of the file system that fail, in every change of an index, with the way back failing too.

Every call by which a change touches the file system is counted: of os, of open, of pyarrow. Each one fails in turn, once or
with all that come after it: no descriptors, no room, a handle gone stale, a disk that breaks. Renames and links fail after the
fact too, as network file systems have it. Whatever happens, the folder opens, with all or nothing of the change; the index in
memory is what is on disk, and goes on working; no descriptor stays open; what could not be deleted then, the next change does.

LEMUR_ANN_CRASHES from 200 on has every call fail in every way with every error. Below, the errors take turns, and of all calls
but links and renames only a part fails, the same in every run.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import gc
import io
import itertools
import os
import shutil
import sys
import warnings

import numpy as np
import pyarrow as pa
import pytest

from lemur_ann import LemurIndex, candidates
from lemur_ann.saved import storage

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the calls are those of POSIX")

EVERYTHING = int(os.environ.get("LEMUR_ANN_CRASHES", "50")) >= 200
ERRORS = [errno.EMFILE, errno.ENFILE, errno.EDQUOT, errno.ENOSPC, errno.ESTALE, errno.EIO]
OPTIONS = {"num_features": 16, "epochs": 0, "rank": 7, "num_sample_tokens": 40, "num_candidates": 20, "ef_search": None, "M": 4}
PART = 7  # one of so many trials is made of those that decide nothing; it has no factor with the ways a call fails in
ALWAYS = ("link", "rename", "replace")
DECISIVE = ("link", "rename", "replace", "unlink", "fsync")
CALLS = [
    *((os, name) for name in ("open", "link", "rename", "replace", "unlink", "rmdir", "mkdir", "stat", "lstat", "fsync")),
    *((os, name) for name in ("scandir", "listdir", "access")),
    (io, "open"),
    (pa, "OSFile"),
    (pa, "memory_map"),
]


class Faults:
    """Counts calls, and lets some fail."""

    def __init__(self, monkeypatch):
        self.names = None
        self.stop()
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # which takes long, and shows nothing where no power is cut
        for owner, name in CALLS:
            monkeypatch.setattr(owner, name, self._counted(name, getattr(owner, name)))

    def start(self, at=None, code=0, lasting=False, afterwards=False):
        """From here on the call number ``at`` fails, and those after it if it is ``lasting``; each once it is done, perhaps."""
        self.names, self._at, self._code, self._lasting, self._afterwards = [], at, code, lasting, afterwards

    def stop(self):
        names, self.names = self.names, None
        return names

    def _counted(self, name, function):
        def call(*arguments, **keywords):
            if self.names is None:
                return function(*arguments, **keywords)
            self.names.append(name)
            number = len(self.names)
            if self._at is not None and (number == self._at or (self._lasting and number > self._at)):
                if self._afterwards and name in DECISIVE:
                    function(*arguments, **keywords)
                raise OSError(self._code, os.strerror(self._code), str(arguments[0]))
            return function(*arguments, **keywords)

        return call


def tokens_of(seed):
    return np.random.default_rng(seed).normal(size=(3, 8)).astype(np.float32)


def documents(first, count):
    return [tokens_of(seed) for seed in range(first, first + count)], [f"doc-{seed}" for seed in range(first, first + count)]


def state(index):
    """What an index holds: ids and tokens, and whether it has learned; each document is its own best answer."""
    ids = index.ids().to_pylist()
    tokens = index.get(ids).column("tokens").to_pylist() if ids else []
    if ids:
        hits = index.search(np.array(tokens[-1], np.float32), k=1, exact=True, num_threads=1)
        assert hits.ids[0] == ids[-1], "a document is not its own best answer"
    return ids, tokens, index.snapshot.learned is not None


def on_disk(path):
    with LemurIndex.open(path, read_only=True, verify=True) as reader:
        return state(reader)


def open_files():
    """What each descriptor of this process leads to, counted; those that only garbage holds are closed first."""
    gc.collect()
    found = collections.Counter()
    for descriptor in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # that by which they were listed
            found[os.readlink(f"/dev/fd/{descriptor}").removesuffix(" (deleted)")] += 1
    return found


def left_over(path):
    """The files in the folder of an index that are not its own."""
    own = {storage.MANIFEST, storage.LOCK, *storage.read_manifest(path)["files"]}
    return {file.name for file in path.iterdir()} - own


def add(index, _):
    matrices, ids = documents(100, 2)
    index.add(matrices, ids=ids, num_threads=1)


def upsert(index, _):
    matrices, _ = documents(200, 2)
    index.upsert(matrices, ids=["doc-3", "other"], num_threads=1)


def delete(index, _):
    index.delete(["doc-2", "doc-5"])


def compact(index, _):
    index.compact(num_threads=1)


def fit(index, _):
    index.fit(queries=[tokens_of(seed) for seed in range(12)], num_threads=1)


def save(index, target):
    index.save(target)


CHANGES = [add, upsert, delete, compact, fit]


class Trial:
    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.faults = Faults(monkeypatch)
        self.errors = itertools.cycle(ERRORS)
        self.counts = {"calls": 0, "faults": 0, "of them refused": 0, "undone": 0}
        self._number = 0
        for name in ("unfitted", "fitted"):
            with LemurIndex.open(folder / name, **OPTIONS) as index:
                matrices, ids = documents(0, 12)
                index.add(matrices, ids=ids)
                if name == "fitted":
                    fit(index, None)
                index.delete(["doc-1"])
        self.after = {}  # what each change makes

    def each(self, work):
        """Faults at every call that ``work`` makes while nothing fails, or at a part of them."""
        names = work(None)
        self.counts["calls"] += len(names)
        ways = ((False, False), (True, False), (False, True))  # lasting, afterwards
        trials = [
            ({"at": at, "lasting": lasting, "afterwards": afterwards}, name)
            for at, name in enumerate(names, 1)
            for lasting, afterwards in ways
            if name in DECISIVE or not afterwards
        ]
        if not EVERYTHING:
            trials = [trial for number, trial in enumerate(trials) if trial[1] in ALWAYS or number % PART == 0]
        for fault, name in trials:
            for code in ERRORS if EVERYTHING else [next(self.errors)]:
                self.counts["faults"] += 1
                try:
                    work({**fault, "code": code})
                except Exception as error:
                    raise AssertionError(f"{work}, {name} with {errno.errorcode[code]}: {fault}") from error

    def copy(self, name):
        self._number += 1
        path = self.folder / f"copy {self._number}"
        shutil.copytree(self.folder / name, path)
        return path

    @contextlib.contextmanager
    def failing(self, fault):
        """What was raised in the block, in a list, and the calls that it made after that."""
        raised = []
        self.faults.start(**(fault or {}))
        try:
            yield raised
        except Exception as error:
            if fault is None or not isinstance(error, (OSError, ValueError)):
                raise
            raised.append(str(error))
            self.counts["of them refused"] += 1
        finally:
            self.faults.names, self.names = None, self.faults.names

    def change(self, fault, name, change):
        path = self.copy(name)
        try:
            with LemurIndex.open(path) as index:
                before, snapshot = state(index), index.snapshot
                if index.snapshot.learned is not None:  # whose file is mapped when it is first read
                    index.snapshot.learned.candidates.take(np.arange(1))
                descriptors = open_files()
                with self.failing(fault) as raised:
                    change(index, None)
                in_memory = state(index)
                if raised:
                    is_undone = index.snapshot is snapshot  # a compaction that happened shows by nothing else
                    self.counts["undone"] += is_undone
                    assert is_undone or fault["lasting"], "it failed, and did not end as it began"
                    assert not is_undone or open_files() - descriptors == collections.Counter(), "descriptors were left open"
                assert on_disk(path) == in_memory, "memory and disk are not the same"
                if fault is None:
                    self.after[change] = in_memory
                expected = before if raised and is_undone else self.after[change]
                assert in_memory == expected, "neither all nor nothing"
                index.add([tokens_of(70)], ids=["last"], num_threads=1)
                assert on_disk(path) == state(index)
                if sys.platform == "linux":  # elsewhere a graph is built in a file with a name, which the next writer deletes
                    assert left_over(path) == set(), "the next change left files over"
            LemurIndex.open(path).close()
            assert left_over(path) == set(), "the next writer left files over"
        finally:
            shutil.rmtree(path)
        return self.names

    def save(self, fault, is_over):
        """Over another index, or in a new place."""
        path = self.copy("unfitted")
        if not is_over:
            shutil.rmtree(path)
        try:
            with LemurIndex.open(self.folder / "fitted", read_only=True) as index:
                with self.failing(fault) as raised:
                    index.save(path)
                allowed = [state(index)]
                if raised:
                    allowed.append(on_disk(self.folder / "unfitted") if is_over else None)
                assert (on_disk(path) if path.exists() else None) in allowed
                index.save(path)
                assert on_disk(path) == allowed[0]
                assert left_over(path) == set(), "the next save left files over"
        finally:
            shutil.rmtree(path)
            for left in self.folder.glob(".copy*"):
                shutil.rmtree(left)
        return self.names

    def open(self, fault, name):
        """A new index, or one that is there."""
        path = self.folder / "new" if name is None else self.copy(name)
        try:
            descriptors = open_files()
            with self.failing(fault) as raised:
                LemurIndex.open(path, **OPTIONS).close()
            if raised:
                assert open_files() - descriptors == collections.Counter(), "descriptors were left open"
            with LemurIndex.open(path, **OPTIONS) as index:
                assert state(index) == (([], [], False) if name is None else on_disk(self.folder / name))
                index.add([tokens_of(70)], ids=["last"], num_threads=1)
                assert on_disk(path) == state(index)
                assert left_over(path) == set(), "the next writer left files over"
        finally:
            shutil.rmtree(path)
        return self.names


@pytest.fixture
def trial(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "MIN_SCANNED", 6)  # so that there is a graph
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few queries
        trial = Trial(tmp_path, monkeypatch)
        gc.collect()
        gc.freeze()  # collections are quick then
        yield trial
        gc.unfreeze()
    print(trial.counts)


class Work:
    """A function of a trial with its arguments, told by its name."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __call__(self, fault):
        return self.function(fault, *self.arguments)

    def __str__(self):
        return " ".join(
            [self.function.__name__, *(getattr(argument, "__name__", str(argument)) for argument in self.arguments)]
        )


@pytest.mark.parametrize("change", CHANGES)
def test_changes(trial, change):
    trial.each(Work(trial.change, "unfitted" if change is fit else "fitted", change))


@pytest.mark.parametrize("is_over", [False, True])
def test_saving(trial, is_over):
    trial.each(Work(trial.save, is_over))


@pytest.mark.parametrize("name", [None, "fitted"])
def test_opening(trial, name):
    trial.each(Work(trial.open, name))
