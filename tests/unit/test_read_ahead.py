"""Searches of mapped files: pages that are asked for, and parts that are read beforehand."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lemur_ann import LemurIndex, _core
from lemur_ann.documents.inputs import read_queries
from lemur_ann.insight import warming

KINDS = [("int8", "exact"), (None, "exact"), ("int4", "exact"), ("int2", "none")]
MADV_DONTNEED = 4  # pages that are mapped would stay in the cache
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped and what was read")


@pytest.fixture(scope="module")
def saved(demo_data, tmp_path_factory):
    """A folder for each kind of codes, by its name."""
    folder = tmp_path_factory.mktemp("read_ahead")
    index = LemurIndex(num_features=128, epochs=0, rank=31, num_sample_tokens=1024)
    index.fit(demo_data.documents, queries=demo_data.training_queries)
    for codes, kept in KINDS:
        index.recode(codes, keep_tokens=kept).save(folder / f"{codes}-{kept}")
    return folder


@pytest.fixture
def read_ahead():
    yield _core.read_ahead
    _core.read_ahead("as needed")


def told(found):
    return [(hits.ids.tolist(), hits.scores.tolist()) for hits in found]


@pytest.mark.parametrize(("codes", "kept"), KINDS)
def test_hits_are_the_same_with_and_without(saved, demo_data, read_ahead, codes, kept):
    index = LemurIndex.load(saved / f"{codes}-{kept}")
    wide = {"num_candidates": 100, "shortlist": 300, "ef_search": 100}
    found = {}
    for how in ("never", "always", "as needed"):
        read_ahead(how)
        found[how] = [
            told(index.search(demo_data.queries[:40], k=k, num_threads=threads, **wide)) for k, threads in ((1, 1), (50, 3))
        ]
        found[how].append(told([index.search(read_queries(demo_data.queries[:1]).tokens, num_threads=3, **wide)]))
    assert found["never"] == found["always"] == found["as needed"]


def test_threads_ask_beside_each_other(saved, demo_data, read_ahead):
    index = LemurIndex.load(saved / "int8-exact")
    expected = told(index.search(demo_data.queries[:30], num_threads=1))
    read_ahead("always")
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: told(index.search(demo_data.queries[:30], num_threads=2)), range(8)):
            assert found == expected


def test_how_is_one_of_three(read_ahead):
    with pytest.raises(ValueError, match="'as needed', 'always' or 'never', got 'sometimes'"):
        read_ahead("sometimes")


def test_offsets_beyond_the_tokens_are_an_error(rng, read_ahead):
    read_ahead("always")
    tokens, offsets = rng.normal(size=(40, 8)).astype(np.float32), np.arange(0, 41, 4)
    documents = _core.Documents([(tokens, offsets)], [_core.token_codes(tokens, 1)])
    asked = tokens[:4], np.array([0, 4]), documents, np.arange(10), np.array([0, 10])
    assert _core.rerank(*asked, 3, 1)[2].tolist() == [3]
    offsets[-1] = 10**12
    with pytest.raises(ValueError, match="do not ascend within 0 .. 40"):
        _core.rerank(*asked, 3, 1)


def drop(folder):
    """Nothing of an index's files is in memory, as long as no other process has them."""
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder) in line:
            begin, end = (int(number, 16) for number in line.split()[0].split("-"))
            libc.madvise(ctypes.c_size_t(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@on_linux
def test_what_is_asked_for_is_not_waited_for(saved, demo_data, read_ahead):
    index = LemurIndex.load(saved / "int8-exact")
    query, documents = read_queries(demo_data.queries[:1]).tokens.astype(np.float32), index.snapshot.documents
    rows = np.arange(0, len(index), 5)
    faults = {}
    for how in ("never", "always"):
        read_ahead(how)
        drop(saved / "int8-exact")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        _core.rerank(query, np.array([0, len(query)]), documents, rows, np.array([0, len(rows)]), 10, 1)
        faults[how] = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before
    if faults["never"] == 0:
        pytest.skip("a file system whose pages are not dropped")
    assert faults["always"] < faults["never"]


@on_linux
def test_warm_reads_the_parts_that_are_named(saved):
    folder = saved / "int8-exact"
    index = LemurIndex.load(folder)
    sizes = {name: part.mapped for name, part in index.stats().parts.items()}
    assert min(sizes[name] for name in ("tokens", "token codes", "token centroids")) > 0
    drop(folder)
    assert index.warm("tokens") == sizes["tokens"]
    part = index.stats().parts["tokens"]
    assert part.resident == part.size
    assert index.warm(("token centroids", "token codes")) == sizes["token centroids"] + sizes["token codes"]
    assert index.warm() == sum(size for name, size in sizes.items() if name != "tokens")
    assert index.warm([]) == 0


@on_linux
def test_an_index_in_memory_is_warm(small_index):
    index, _, _ = small_index()
    assert index.warm() == 0
    assert index.warm(list(index.stats().parts), pin=True) == 0
    assert LemurIndex().warm() == 0


def test_parts_that_there_are_not(saved):
    index = LemurIndex.load(saved / "None-exact")
    with pytest.raises(ValueError, match="parts are some of 'tokens', 'candidates', .*, got str 'token codes'"):
        index.warm(["candidates", "token codes"])
    for wrong in (3, ["tokens", 3], b"tokens"):
        with pytest.raises(TypeError, match="parts must be names of parts"):
            index.warm(wrong)
    with pytest.raises(TypeError, match="pin"):
        index.warm("tokens", pin=1)


@on_linux
def test_files_that_are_gone_are_read_still(saved, demo_data, tmp_path):
    shutil.copytree(saved / "int4-exact", tmp_path / "index")
    with LemurIndex.open(tmp_path / "index") as index:
        before = index.warm()
    shutil.rmtree(tmp_path / "index")
    assert index.warm() == before > 0
    assert len(index.search(demo_data.queries[:2])[1]) == 10


@on_linux
def test_pinned_parts_are_locked(saved):
    def locked():
        return int(re.search(r"VmLck:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    index, before = LemurIndex.load(saved / "int2-none"), locked()
    try:
        num_bytes = index.warm("token centroids", pin=True)
    except OSError as error:
        pytest.skip(str(error))
    assert locked() - before >= num_bytes > 0
    del index
    assert locked() == before


def test_a_system_that_refuses_to_pin(saved, monkeypatch):
    index = LemurIndex.load(saved / "int8-exact")
    monkeypatch.setattr(warming._core, "pin_pages", lambda memory: errno.ENOMEM)
    with pytest.raises(OSError, match="does not let this process pin [0-9,]+ bytes more; 'ulimit -l'") as found:
        index.warm("candidates", pin=True)
    assert found.value.errno == errno.ENOMEM


def test_offsets_of_codes_alone(saved, demo_data, read_ahead):
    index = LemurIndex.load(saved / "int2-none")
    assert "tokens" not in index.stats().parts
    read_ahead("always")
    everything = index.search(demo_data.queries[:3], k=5, exact=True)
    found = index.search(demo_data.queries[:3], k=5, num_candidates=len(index) - 1, shortlist=0)
    assert [hits.ids.tolist() for hits in found] == [hits.ids.tolist() for hits in everything]
