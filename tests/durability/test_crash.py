"""What an index that is open on a directory promises of crashes, put to the test.

Proved here, on small indexes with and without graphs and learned maps, for add, upsert, delete, compact, fit, refit and tune:

1. a change that was acknowledged (its call returned) is there after kill -9 and after a power cut;
2. a change that did not return has happened as a whole or not at all;
3. the index opens after any crash, for reading and for writing, without help;
4. what a crash leaves behind is gone once the next writer has opened the index;
5. after a change that failed or was interrupted, the index in memory is what is on disk, and goes on working; where it failed
   for want of room, that is what was there before;
6. a writer that died does not keep out the next one.

Three ways lead there. Processes that change an index are killed at random moments, again and again, and the next opens what is
left. The steps by which directory.py touches the disk are counted, and each one fails, is interrupted, or is the last before
a kill or a power cut. ``Disk`` plays those: it knows what was synced, and files that were not are cut short or zeroed, and
entries of folders (creations, renames, deletions) that were not are kept or undone one by one, as a file system may. And disks
are full, and folders read-only, in earnest.

LEMUR_ANN_CRASHES says how many processes are killed, 50 where it is not set. From 200 on every step also fails in every way and
sees more power cuts; below, only the steps about the manifest do, and a part of the others. LEMUR_ANN_CRASH_SEED gives other
moments, changes and power cuts:

    LEMUR_ANN_CRASHES=500 LEMUR_ANN_CRASH_SEED=1 pytest tests/durability
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import pathlib
import pickle
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import lemur_ann.index
from lemur_ann import IndexLocked, LemurIndex, arrays, candidates
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.saved import storage

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no fork, SIGKILL or unlinked open files")

CRASHES = int(os.environ.get("LEMUR_ANN_CRASHES", "50"))
EVERYTHING = CRASHES >= 200
SEED = int(os.environ.get("LEMUR_ANN_CRASH_SEED", "0"))
DIM = 16
GROUPS = 6
OPTIONS = {
    "num_features": 32,
    "epochs": 0,
    "rank": 15,
    "num_sample_tokens": 150,
    "num_candidates": 20,
    "ef_search": None,
    "M": 8,
    "ef_construction": 20,
}
KINDS = ("hnsw", "exact", "unfitted")


# Documents and changes, with a dictionary as the model of an index: the seed of each document's tokens by its id, oldest first


@functools.cache
def tokens_of(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(int(rng.integers(1, 7)), DIM)).astype(np.float32)
    return tokens / np.linalg.norm(tokens, axis=1, keepdims=True)


def table_of(documents):
    """Arrow data of (id, seed) pairs, with metadata that follow from the seed."""
    matrices = [tokens_of(seed) for _, seed in documents]
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(matrices).reshape(-1)), DIM)
    offsets = np.cumsum([0, *map(len, matrices)])
    return pa.table(
        {
            "id": pa.array([doc_id for doc_id, _ in documents]),
            "tokens": pa.LargeListArray.from_arrays(pa.array(offsets), rows),
            "seed": pa.array([seed for _, seed in documents], pa.int64()),
            "group": pa.array([f"group {seed % GROUPS}" for _, seed in documents]),
        }
    )


def perform(index, change):
    """Make a change, and be told that it is made by the return of this."""
    kind, argument = change
    if kind in ("add", "upsert"):
        getattr(index, kind)(table_of(argument), num_threads=1)
    elif kind == "delete":
        index.delete(argument)
    elif kind == "delete group":
        index.delete(filter=pc.field("group") == f"group {argument}")
    elif kind == "compact":
        index.compact(num_threads=1)
    elif kind == "refit":
        index.refit(seed=argument, num_threads=1)
    else:
        queries = [tokens_of(seed) for seed in range(20)]
        if kind == "fit":
            index.fit(queries=queries, num_threads=1)
        elif kind == "tune":
            index.tune(queries, 0.9, k=argument, num_threads=1)
        else:
            raise AssertionError(kind)


def expected(model, change):
    """The model after a change."""
    kind, argument = change
    if kind in ("add", "upsert"):
        ids = {doc_id for doc_id, _ in argument}
        return {**{doc_id: seed for doc_id, seed in model.items() if doc_id not in ids}, **dict(argument)}
    if kind == "delete":
        return {doc_id: seed for doc_id, seed in model.items() if doc_id not in argument}
    if kind == "delete group":
        return {doc_id: seed for doc_id, seed in model.items() if seed % GROUPS != argument}
    return model


def random_change(rng, model, *, fitted):
    """Some change of an index that holds the documents of a model, which stays between a few and a hundred."""

    def new(count):
        free = [f"doc-{i}" for i in range(300) if f"doc-{i}" not in model]  # ids that were deleted are used again
        return [(doc_id, rng.randrange(2**40)) for doc_id in rng.sample(free, count)]

    if len(model) < 12:
        return "add", new(rng.choice([5, 30]))
    if len(model) > 90:
        return "delete group", rng.randrange(GROUPS)
    kinds = {"add": 30, "upsert": 20, "delete": 20, "many": 6, "delete group": 6, "compact": 8}
    if fitted:
        kinds |= {"refit": 4, "tune": 3}
    (kind,) = rng.choices([*kinds], [*kinds.values()])
    if kind == "add":
        return kind, new(rng.randint(1, 4))
    if kind == "many":  # more than are scanned, so that a graph is made anew
        return "add", new(25)
    if kind == "upsert":
        known = [(doc_id, rng.randrange(2**40)) for doc_id in rng.sample([*model], rng.randint(1, 3))]
        return kind, known + new(rng.randint(0, 2))
    if kind == "delete":
        return kind, rng.sample([*model], rng.randint(1, 4))
    return kind, {"compact": None}.get(kind, rng.randrange(1, GROUPS))


def make(path, kind, model):
    """A new index of the documents of a model."""
    with LemurIndex.open(path, **OPTIONS, candidates="exact" if kind == "exact" else "hnsw") as index:
        perform(index, ("add", [*model.items()]))
        if kind != "unfitted":
            perform(index, ("fit", None))


@contextlib.contextmanager
def small_limits():
    """A few documents make a graph, and a few deleted ones make the index compact itself."""
    before = candidates.MIN_SCANNED, lemur_ann.changes.MIN_DELETED
    candidates.MIN_SCANNED, lemur_ann.changes.MIN_DELETED = 20, 8
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few queries, and searches of fewer documents than were asked for
            yield
    finally:
        candidates.MIN_SCANNED, lemur_ann.changes.MIN_DELETED = before


# What is there after a crash


def documents_of(index):
    """The seed of each document by its id, all of it checked: tokens, metadata, and the count."""
    ids = index.ids()
    assert len(ids) == len(index)
    if len(ids) == 0:
        return {}
    table = index.get(ids)
    seeds = table.column("seed").to_pylist()
    assert table.column("group").to_pylist() == [f"group {seed % GROUPS}" for seed in seeds], "metadata of another document"
    rows = table.column("tokens").combine_chunks()
    rows = rows.chunk(0) if isinstance(rows, pa.ChunkedArray) else rows
    found = rows.values.flatten().to_numpy().reshape(-1, DIM)
    offsets = rows.offsets.to_numpy()
    for seed, begin, end in zip(seeds, offsets, offsets[1:], strict=False):
        np.testing.assert_array_equal(found[begin:end], tokens_of(seed), err_msg="tokens of another document")
    return dict(zip(ids.to_pylist(), seeds, strict=True))


def check_searches(index, model):
    """Every document is its own best answer, and none is found that is not there."""
    queries = [tokens_of(seed) for seed in model.values()]
    if not queries:
        assert len(index.search(tokens_of(0), exact=True)) == 0
        return
    for doc_id, hits in zip(model, index.search(queries, k=3, exact=True, num_threads=1), strict=True):
        assert hits.ids[0] == doc_id, f"{doc_id} is not found by its own tokens, but {hits.ids[0]}"
    assert sorted(index.search(queries[0], k=len(model) + 50, exact=True, num_threads=1).ids) == sorted(model)
    for hits in index.search(queries, k=5, num_threads=1):
        assert set(hits.ids) <= model.keys(), "a deleted document is found"
        assert len(hits) == min(5, len(model))


def check_no_leftovers(path):
    own = {storage.MANIFEST, storage.LOCK, *storage.read_manifest(path)["files"]}
    left = sorted({file.name for file in path.iterdir()} - own)
    assert not left, f"the writer left {left}"


def same(model, other):
    """The same documents in the same order."""
    return [*model.items()] == [*other.items()]


def check_state(path, allowed, *, exists=True):
    """Open an index as a crash left it: it must be one of the ``allowed`` models, which is returned.

    Where the crash came before there was an index (not ``exists``), only a writer need find one.
    """
    found = None
    if exists:
        with LemurIndex.open(path, read_only=True) as reader:
            found = documents_of(reader)
            check_searches(reader, found)
    with LemurIndex.open(path) as writer:
        model = documents_of(writer)
        check_no_leftovers(path)
        if found is None:
            check_searches(writer, model)
        assert found is None or same(found, model), "a writer finds other documents than a reader before it"
    for candidate in allowed:
        if same(model, candidate):
            return model
    raise AssertionError("\n".join(["no such state was allowed:", *(difference(model, other) for other in allowed)]))


def difference(found, wanted):
    lost, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    changed = [doc_id for doc_id in found.keys() & wanted.keys() if found[doc_id] != wanted[doc_id]]
    return f"  {len(found)} documents, not {len(wanted)}: lacks {sorted(lost)}, has {sorted(extra)}, replaced {sorted(changed)}"


# kill -9 at random moments. A process of its own forks the writers, since one with threads (pytest's, after torch) should not.


def in_child(work, *, alarm=60):
    """The result of ``work()`` in a forked process, which ends with it; what it raises is raised here as text."""
    pa.array(np.zeros(1))  # pyarrow imports pandas now, where it is installed: a child may not be allowed to
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        signal.alarm(alarm)
        try:
            answer = ("done", work())
        except BaseException:
            answer = ("failed", traceback.format_exc())
        with os.fdopen(writes, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    assert data, f"a child died: {status}"
    state, answer = pickle.loads(data)
    assert state == "done", answer
    return answer


def write_forever(path, seed, model, kind, report):
    """Change the index at random, telling ``report`` before and after each change; a kill ends it."""

    def tell(*record):
        os.write(report, json.dumps(record).encode() + b"\n")

    rng = random.Random(seed)
    index = LemurIndex.open(path)
    tell("open")
    while True:
        change = random_change(rng, model, fitted=kind != "unfitted")
        tell("begin", *change)
        perform(index, change)
        tell("done")
        model = expected(model, change)


def killed_writer(path, seed, model, kind):
    """Fork a writer and kill it; the records it left, those that it wrote whole."""
    rng = random.Random(f"kill {seed}")
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        signal.alarm(60)
        try:
            write_forever(path, seed, model, kind, writes)
        except BaseException:
            os.write(writes, json.dumps(["failed", traceback.format_exc()]).encode() + b"\n")
        os._exit(1)
    os.close(writes)
    data = b""
    in_opening = rng.random() < 0.1
    deadline = time.monotonic() + rng.uniform(0, 0.03) if in_opening else None
    with os.fdopen(reads, "rb", buffering=0) as pipe:
        while deadline is None or (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([pipe], [], [], None if deadline is None else left)
            if ready:
                block = pipe.read(1 << 16)
                if not block:
                    break
                data += block
                if deadline is None:  # it is open
                    deadline = time.monotonic() + rng.uniform(0, 0.2)
        os.kill(child, signal.SIGKILL)
        data += pipe.read()
    _, status = os.waitpid(child, 0)
    records = [json.loads(line) for line in data.split(b"\n")[:-1]]
    failures = [record[1] for record in records if record[0] == "failed"]
    assert not failures, failures[0]
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"the writer ended by itself: {status}"
    return records


def killed_again_and_again(folder, count, seed):
    """The whole test: ``count`` kills, every tenth of a new index, each of what the one before left."""
    rng = random.Random(seed)
    counts = dict.fromkeys(["kills", "changes acknowledged", "kills amid a change", "of those, the change had happened"], 0)
    path, model, kind, history = folder, {}, "", []
    for number in range(count):
        if number % 10 == 0:
            kind = KINDS[number // 10 % len(KINDS)]
            shutil.rmtree(path, ignore_errors=True)
            path = folder / f"{kind} {number}"
            model = {f"doc-{i}": rng.randrange(2**40) for i in range(40)}
            in_child(functools.partial(make, path, kind, model))
            history = [f"a new index ({kind})"]
        number_seed = rng.randrange(2**40)
        try:
            records = killed_writer(path, number_seed, model, kind)
            in_flight = None
            for what, *change in records:
                if what == "begin":
                    in_flight = change
                    history.append(f"{change}"[:160])
                elif what == "done":
                    model, in_flight = expected(model, in_flight), None
                    history[-1] += "; acknowledged"
                    counts["changes acknowledged"] += 1
            history.append(f"killed (kill {number}, seed {number_seed})")
            allowed = [model] if in_flight is None else [model, expected(model, in_flight)]
            found = in_child(functools.partial(check_state, path, allowed))
        except BaseException:
            print(f"seed {seed}, kill {number}, in {path}; since it was made:", *history, sep="\n  ")
            raise
        counts["kills"] += 1
        counts["kills amid a change"] += in_flight is not None
        counts["of those, the change had happened"] += in_flight is not None and same(found, allowed[1]) and not same(*allowed)
        model = found
    shutil.rmtree(path)
    return counts


def killed_while_locked(folder, count):
    """The lock of a writer that lives keeps others out, and that of a killed one nobody."""
    path = folder / "locked"
    in_child(functools.partial(make, path, "unfitted", {"doc-0": 0}))

    def opened():
        LemurIndex.open(path).close()

    def refused():
        with pytest.raises(IndexLocked):
            LemurIndex.open(path)
        with LemurIndex.open(path, read_only=True) as reader:
            assert documents_of(reader) == {"doc-0": 0}

    for _ in range(count):
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reads)
            signal.alarm(60)
            index = LemurIndex.open(path)
            os.write(writes, b"%d" % len(index))
            while True:
                signal.pause()
        os.close(writes)
        try:
            assert os.read(reads, 100) == b"1"
            in_child(refused)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reads)
        in_child(opened)
    return {"writers killed with the lock": count}


def read_only_folder(folder):
    """As a user who may not write there; root may anywhere, and becomes nobody."""
    model = {f"doc-{i}": i for i in range(40)}
    path = folder / "read-only"
    in_child(functools.partial(make, path, "hnsw", model))
    path.chmod(0o555)
    for file in path.iterdir():
        file.chmod(0o444)
    before = sorted((file.name, file.stat().st_mtime_ns) for file in path.iterdir())

    def read():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        with LemurIndex.open(path, read_only=True, verify=True) as reader:
            assert same(documents_of(reader), model)
            check_searches(reader, model)
            assert reader.refresh() is False
            with pytest.raises(PermissionError, match="open read-only"):
                reader.delete(["doc-1"])
        with pytest.raises(PermissionError) as refusal:
            LemurIndex.open(path)
        with pytest.raises(PermissionError) as no_room:
            LemurIndex.open(path / "new")
        return str(refusal.value), str(no_room.value)

    try:
        messages = in_child(read)
        assert all(str(path) in message for message in messages), messages
        assert before == sorted((file.name, file.stat().st_mtime_ns) for file in path.iterdir())
    finally:
        path.chmod(0o755)
    in_child(functools.partial(check_state, path, [model]))
    return {"messages": messages}


def run_apart(work, *arguments, timeout):
    """Run a function of this file in a process that never had threads; what it counted is printed."""
    command = [sys.executable, "-I", __file__, work, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    print(result.stdout)
    return json.loads(result.stdout.splitlines()[-1])


def test_killed_at_random_moments(tmp_path):
    counts = run_apart("kills", tmp_path, CRASHES, SEED, timeout=120 + 5 * CRASHES)
    assert counts["kills"] == CRASHES
    assert counts["changes acknowledged"] > 0


def test_a_killed_writer_keeps_nobody_out(tmp_path):
    run_apart("locks", tmp_path, 5, timeout=120)


def test_read_only_folder():
    """In a folder that anyone may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        run_apart("read-only", folder, timeout=120)


# Faults at every step, and power cuts


class File:
    """What was written to one file, and how much of it was synced."""

    def __init__(self, descriptor=None, data=b"", durable=None):
        self._descriptor, self._data, self.durable = descriptor, data, durable

    @property
    def data(self):
        if self._descriptor is None:
            return self._data
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def frozen(self):
        return File(None, self.data, self.durable)

    def close(self):
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def after_power_cut(self, rng):
        data = self.data
        if data == self.durable:
            return data
        choices = [data, data[: rng.randrange(len(data) + 1)], bytes(len(data)), b""]
        half = rng.randrange(len(data) + 1)
        choices += [data[:half] + bytes(len(data) - half)]
        if self.durable is not None:
            choices.append(self.durable)
        return rng.choice(choices)


FOLDER = File(durable=b"")  # in place of a file


class Disk:
    """A folder, and what a power cut may make of it.

    ``entries`` has for each name all that it may be then (a file, FOLDER, or None for nothing): first what it was when its
    folder was synced last, and last what it is now.
    """

    def __init__(self, root, entries=None):
        self.root = root
        self._open = {}  # files by inode; open, so that no other file gets that inode
        self.entries = {} if entries is None else {name: list(values) for name, values in entries.items()}
        if entries is None:
            self.look()
            for name in [*self.entries]:
                self.entries[name] = self.entries[name][-1:]
                self.entries[name][0].durable = self.entries[name][0].data
        else:  # of the image that was just written here
            for name in self.entries:
                if (root / name).is_file():
                    self._known(root / name, self.entries[name][-1].durable)
                    self.entries[name][-1] = self._known(root / name)

    def _known(self, path, durable=None):
        key = path.stat().st_ino
        if key not in self._open:
            self._open[key] = File(os.open(path, os.O_RDONLY), durable=durable)
        return self._open[key]

    def look(self):
        """Take in what has changed."""
        now = {}
        folders = [""]
        for folder in folders:
            with os.scandir(self.root / folder) as found:
                for entry in found:
                    name = os.path.join(folder, entry.name)
                    now[name] = FOLDER if entry.is_dir() else self._known(entry)
                    if now[name] is FOLDER:
                        folders.append(name)
        for name in {*now, *self.entries}:
            values = self.entries.setdefault(name, [None])
            value = now.get(name)
            if values[-1] is not value:
                values.append(value)

    def synced(self, path):
        self.look()
        if path.is_file():
            file = self._known(path)
            file.durable = file.data
            return
        for name in [*self.entries]:
            if (self.root / name).parent == path:
                self.entries[name] = self.entries[name][-1:]
                if self.entries[name][0] is None:
                    del self.entries[name]

    def image(self):
        """What is known now, of no folder."""
        frozen = {}

        def freeze(value):
            if value is None or value is FOLDER:
                return value
            return frozen.setdefault(value, value.frozen())

        return {name: [freeze(value) for value in values] for name, values in self.entries.items()}

    def close(self):
        for file in self._open.values():
            file.close()
        self._open = {}


def facts_of(image):
    """All that there is to know of an image, but for names that are drawn at random."""
    return [
        ("" if ".manifest" in name else name, *(value and (value.data, value.durable) for value in values))
        for name, values in sorted(image.items())
    ]


def after_kill(image):
    """All as it was written: the system outlives its processes."""
    now = {name: values[-1] for name, values in image.items() if values[-1] is not None}
    return {name: None if value is FOLDER else value.data for name, value in now.items()}


def after_power_cut(image, rng, choose):
    """A state that a power cut may leave; ``choose`` picks one of the values of an entry."""
    chosen = {name: choose(values) for name, values in sorted(image.items())}
    state = {}
    contents = {}
    for name, value in chosen.items():
        parents = [str(parent) for parent in Path(name).parents][:-1]
        if value is None or any(chosen.get(parent) is not FOLDER for parent in parents):
            continue
        if value is not FOLDER and value not in contents:
            contents[value] = value.after_power_cut(rng)
        state[name] = contents.get(value)
    return state


def power_cuts(image, rng, count):
    """Of what was not synced: all undone; all kept; all deletions kept, or all but the creations; and ``count`` mixtures."""
    yield after_power_cut(image, rng, lambda values: values[0])
    yield after_power_cut(image, rng, lambda values: values[-1])
    yield after_power_cut(image, rng, lambda values: None if None in values else values[0])
    yield after_power_cut(image, rng, lambda values: None if values[0] is None else values[-1])
    for _ in range(count):
        yield after_power_cut(image, rng, rng.choice)


def write_state(root, state):
    root.mkdir()
    for name, data in sorted(state.items()):
        if data is None:
            (root / name).mkdir(parents=True)
        else:
            (root / name).write_bytes(data)


class Steps:
    """Counts the steps by which an index touches the disk, and lets one of them fail, be interrupted, or be watched."""

    def __init__(self, monkeypatch):
        self.disk = None
        self.watch = None  # called before and after each step with its name
        self.fault = None  # (number of the step, kind)
        self.names = []
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # Disk knows what it would have done
        for owner, name in (
            (storage, "sync"),
            (storage, "move"),
            (storage, "remove"),
            (storage, "describe"),
            (arrays, "write_arrays"),
            (storage, "write_documents"),
            (TokenStore, "write"),
        ):
            monkeypatch.setattr(owner, name, self._counted(name, getattr(owner, name)))

    def start(self, disk=None, watch=None, fault=None):
        self.disk, self.watch, self.fault, self.names = disk, watch, fault, []

    def stop(self):
        """What the steps were."""
        names = self.names
        self.start()
        return names

    def _counted(self, name, function):
        def step(*arguments, **keywords):
            path = next(argument for argument in arguments if isinstance(argument, Path))
            path = Path(os.path.realpath(path))  # a writer reaches its folder by a descriptor
            kind = "new manifest" if path.name.startswith(".manifest") else path.name.partition("-")[0]
            self.names.append(f"{name} {kind}")
            label = f"step {len(self.names)}, {self.names[-1]}"
            fault = self.fault[1] if self.fault is not None and len(self.names) == self.fault[0] else None
            self._look(name, f"before {label}")
            if fault == "disk full":
                self._fail(name, function, arguments, keywords, path)
                return None
            if fault == "interrupted before":
                raise KeyboardInterrupt(label)
            result = function(*arguments, **keywords)
            if self.disk is not None and name == "sync":
                self.disk.synced(path)
            self._look(name, f"after {label}")
            if fault == "interrupted after":
                raise KeyboardInterrupt(label)
            return result

        return step

    def _look(self, name, label):
        if self.disk is not None and (self.watch is not None or name in ("move", "remove")):
            self.disk.look()
        if self.watch is not None:
            self.watch(label)

    def _fail(self, name, function, arguments, keywords, path):
        """Fail as the system does it: writing leaves half a file, and a deletion is refused within ``remove``."""

        def refuse(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        if name == "remove":
            unlink = pathlib.Path.unlink
            pathlib.Path.unlink = refuse
            try:
                function(*arguments, **keywords)
            finally:
                pathlib.Path.unlink = unlink
            return
        if name in ("write", "write_arrays", "write_documents", "copy_to"):
            function(*arguments, **keywords)
            os.truncate(path, path.stat().st_size // 2)
        refuse()


FAULTS = ("disk full", "interrupted before", "interrupted after")
START = {f"doc-{i}": 1000 + i for i in range(40)}
CHANGES = [
    ("add", [("new-0", 1), ("new-1", 2), ("new-2", 3)]),
    ("upsert", [("doc-3", 4), ("new-3", 5)]),
    ("delete", ["doc-4", "new-1"]),
    ("delete group", 2),
    ("add", [(f"more-{i}", 100 + i) for i in range(25)]),  # which makes the graph anew
    ("tune", 3),
    ("compact", None),
    ("refit", 1),
    ("upsert", [("doc-5", 6)]),
]
SEQUENCES = {
    "hnsw": CHANGES,
    "exact": [CHANGES[0], CHANGES[1], CHANGES[3], CHANGES[6]],
    "new": [("open", None), ("add", [*START.items()]), ("fit", None), ("add", [("new-0", 1)])],
}


class Trial:
    """A sequence of changes, in which one after the other is tried with faults."""

    def __init__(self, sequence, folder, monkeypatch):
        self.changes = SEQUENCES[sequence]
        self.rng = random.Random(f"{SEED} {sequence}")
        self.folder = folder
        self.steps = Steps(monkeypatch)
        self.counts = dict.fromkeys(["steps", "failures", "interrupts", "kills", "recoveries", "power cuts", "states"], 0)
        self.seen = set()  # hashes of what was looked at
        self.failures = []
        self._number = 0
        self.is_new = sequence == "new"
        root = self.root()
        root.mkdir()
        self.path = Path("deep", "deeper", "index") if self.is_new else Path("index")
        if not self.is_new:
            make(root / self.path, sequence, START)
        self.models = [{} if self.is_new else START]
        self.states = [self.state_of(root)]  # before each change
        for change in self.changes:
            self.models.append(expected(self.models[-1], change))
            self.change(self.opened(root, len(self.states) - 1), change, root).close()
            self.states.append(self.state_of(root))
        shutil.rmtree(root)

    def root(self):
        self._number += 1
        return self.folder / f"disk {self._number}"

    @staticmethod
    def state_of(root):
        return {str(p.relative_to(root)): None if p.is_dir() else p.read_bytes() for p in sorted(root.rglob("*"))}

    def opened(self, root, number):
        """The index before change ``number``; None where that is what makes it."""
        return None if self.is_new and number == 0 else LemurIndex.open(root / self.path)

    def change(self, index, change, root):
        if change[0] == "open":
            assert index is None
            return LemurIndex.open(root / self.path, **OPTIONS)
        perform(index, change)
        return index

    @contextlib.contextmanager
    def prepared(self, number):
        """A disk with the index, in memory too, just before a change; the one before that was made with nothing else synced."""
        first = max(number - 1, 0)
        root = self.root()
        write_state(root, self.states[first])
        disk = Disk(root)
        index = None
        try:
            index = self.opened(root, first)
            if first < number:
                self.steps.start(disk)
                index = self.change(index, self.changes[first], root)
                self.steps.stop()
            yield root, disk, index
        finally:
            self.steps.stop()
            if index is not None:
                index.close()
            disk.close()
            shutil.rmtree(root)

    def run(self):
        """All faults at all steps; AssertionError with what went wrong where."""
        for number, change in enumerate(self.changes):
            names = self.kills(number)
            self.counts["steps"] += len(names)
            for step, name in enumerate(names, 1):
                for place, fault in enumerate(FAULTS):
                    if EVERYTHING or (step + place + SEED) % 6 == 0 or name in ("move new manifest", "sync index"):
                        self.guarded((number, change, f"{fault} at step {step}, {name}"), self.fails, number, (step, fault))
        print(self.counts)
        lines = [f"{len(self.failures)} failures of {self.counts}, seed {SEED}; the changes were:"]
        lines += [f"  {number}: {str(change)[:160]}" for number, change in enumerate(self.changes)]
        if self.failures:
            pytest.fail("\n".join([*lines, *self.failures[: None if EVERYTHING else 30]]), pytrace=False)

    def guarded(self, where, work, *arguments):
        try:
            return work(*arguments)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            number, _, what = where
            reason = str(error).partition("\nassert ")[0]  # without what pytest says of it
            text = f"change {number}, {what}:\n    {type(error).__name__}: {reason} ({Path(last.filename).name}:{last.lineno})"
            self.failures.append(text)

    def kills(self, number):
        """Kills and power cuts before and after every step of a change, and once it is acknowledged; the names of the steps."""
        change, before, after = self.changes[number], self.models[number], self.models[number + 1]
        images = []
        with self.prepared(number) as (root, disk, index):
            self.steps.start(disk, lambda label: images.append((label, disk.image())))
            made = self.change(index, change, root)
            names = self.steps.stop()
            disk.look()
            images.append(("once acknowledged", disk.image()))
            if index is None:
                made.close()
        for label, image in images:
            if self.is_known("kill", label == "once acknowledged", *facts_of(image)):
                continue  # nothing has happened since the last step
            is_done = label == "once acknowledged"
            allowed = [after] if is_done else [before, after]
            exists = is_done or not (self.is_new and number == 0)
            self.counts["kills"] += 1
            self.guarded((number, change, f"killed {label}"), self.check, after_kill(image), allowed, exists)
            if EVERYTHING or is_done or "manifest" in label or self.counts["kills"] % 3 == 0:
                self.guarded((number, change, f"killed {label}"), self.recover, image, allowed, (number, label), exists)
            self.cut((number, change, f"power cut {label}"), image, allowed, exists)
        return names

    def is_known(self, *facts):
        """Whether the same has been looked at; bytes hash once, and what was seen need not be kept."""
        key = hash(tuple(tuple(fact.items()) if isinstance(fact, dict) else fact for fact in facts))
        was = key in self.seen
        self.seen.add(key)
        return was

    def cut(self, where, image, allowed, exists):
        """States after a power cut."""
        if self.is_known("power cut", *facts_of(image), *allowed):
            return
        for state in power_cuts(image, self.rng, 6 if EVERYTHING else 1):
            self.counts["power cuts"] += 1
            self.guarded(where, self.check, state, allowed, exists)

    def check(self, state, allowed, exists):
        if self.is_known("state", *state.items(), *allowed):
            return
        self.counts["states"] += 1
        root = self.root()
        write_state(root, state)
        try:
            check_state(root / self.path, allowed, exists=exists)
        finally:
            shutil.rmtree(root)

    def recover(self, image, allowed, where, exists):
        """After a kill the next writer opens the index and makes a change, and the power may go at any step of that."""
        state = after_kill(image)
        self.counts["recoveries"] += 1
        root = self.root()
        write_state(root, state)
        lock = root / self.path / storage.LOCK
        disk = Disk(root, image)
        images = []
        try:
            self.steps.start(disk, lambda label: images.append((label, disk.image())))
            with LemurIndex.open(root / self.path) as index:
                disk.look()
                images.append(("once it is open", disk.image()))
                found = documents_of(index)
                self.steps.start(disk)
                perform(index, ("add", [("last", 7)]))
                self.steps.stop()
                disk.look()
                final = disk.image()
            assert lock.exists()
        finally:
            self.steps.stop()
            disk.close()
            shutil.rmtree(root)
        number, label = where
        what = f"killed {label}; the next writer opened it, with a power cut"
        for later, image in images:
            self.cut((number, None, f"{what} {later}"), image, allowed, exists and found in allowed)
        self.cut((number, None, f"{what} after its next change"), final, [{**found, "last": 7}], True)

    def fails(self, number, fault):
        """A change fails or is interrupted; memory and disk must agree, and the change be possible afterwards."""
        change, before, after = self.changes[number], self.models[number], self.models[number + 1]
        _, kind = fault
        with self.prepared(number) as (root, disk, index):
            path = root / self.path
            raised = None
            self.steps.start(disk, fault=fault)
            try:
                made = self.change(index, change, root)
            except (OSError, KeyboardInterrupt) as error:
                raised, made = error, index
            self.steps.stop()
            if raised is None:
                allowed = [after]
                assert kind == "disk full", "an interrupt was lost"
            else:
                allowed = [before] if kind == "disk full" else [before, after]
                assert isinstance(raised, OSError) == (kind == "disk full"), raised
            self.counts["failures" if kind == "disk full" else "interrupts"] += 1
            if made is None:
                self.steps.start(disk)
                made = LemurIndex.open(path)
                self.steps.stop()
            in_memory = documents_of(made)
            check_searches(made, in_memory)
            with LemurIndex.open(path, read_only=True) as reader:
                on_disk = documents_of(reader)
            for what, found in (("in memory", in_memory), ("on disk", on_disk)):
                assert any(same(found, model) for model in allowed), f"{what}: {difference(found, allowed[0])}"
            assert same(in_memory, on_disk), f"on disk is not what is in memory: {difference(on_disk, in_memory)}"
            self.steps.start(disk)
            if same(in_memory, before) and not same(before, after):
                self.change(made, change, root)
                final = after
            else:
                perform(made, ("add", [("last", 7)]))
                final = {**after, "last": 7}
            self.steps.stop()
            assert same(documents_of(made), final), difference(documents_of(made), final)
            check_searches(made, final)
            disk.look()
            image = disk.image()
            made.close()
        self.check(after_power_cut(image, self.rng, self.rng.choice), [final], True)
        if EVERYTHING:
            self.check(after_kill(image), [final], True)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_faults_at_every_step(sequence, tmp_path, monkeypatch):
    with small_limits(), monkeypatch.context() as patch:
        patch.setattr(lemur_ann.changes, "MIN_DELETED", 1024)  # compactions of their own would come between
        Trial(sequence, tmp_path, patch).run()


# Disks that are full in earnest


def test_full_disk(tmp_path):
    """A limit for the size of files stands for the end of the disk."""
    import resource

    with small_limits():
        make(tmp_path / "start", "hnsw", START)
        sizes = sorted({file.stat().st_size for file in (tmp_path / "start").iterdir()})
        changes = {
            "add": ("add", [(f"more-{i}", 100 + i) for i in range(25)]),
            "compact": ("compact", None),
            "refit": ("refit", 1),
        }
        for name, change in changes.items():
            failed = 0
            for limit in [0, 100, *(size - 1 for size in sizes if size)]:
                path = tmp_path / f"{name} {limit}"
                shutil.copytree(tmp_path / "start", path)
                with LemurIndex.open(path) as index:
                    index.delete(["doc-1", "doc-2"])
                    model = documents_of(index)
                    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
                    try:
                        perform(index, change)
                    except OSError:
                        failed += 1
                    else:
                        model = expected(model, change)
                    finally:
                        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                        signal.signal(signal.SIGXFSZ, handler)
                    assert same(documents_of(index), model), f"{name}, files of {limit} bytes"
                    check_searches(index, model)
                    with LemurIndex.open(path, read_only=True, verify=True) as reader:
                        assert same(documents_of(reader), model), f"{name}, files of {limit} bytes"
                    check_no_leftovers(path)
                    last = ("upsert", [("more-1", 7), ("last", 8)])
                    for again in (changes["compact"], last):
                        perform(index, again)
                        model = expected(model, again)
                check_state(path, [model])
            assert failed > 2, f"{name} found room everywhere"


def main(work, folder, *arguments):
    import torch

    torch.set_num_threads(1)  # no threads, which a fork would lose
    functions = {"kills": killed_again_and_again, "locks": killed_while_locked, "read-only": read_only_folder}
    with small_limits():
        print(json.dumps(functions[work](Path(folder), *map(int, arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
