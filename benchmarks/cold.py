"""Searches of an index that does not fit in memory: how long they take, and what they read.

    python benchmarks/cold.py INDEX QUERIES [--memory 0,0.1,0.25,1] [--read-ahead never,random,"as needed"] [--json FILE]

INDEX is a saved index, QUERIES a Parquet file with a column ``tokens``. One thread, one query at a time. Each row is a process
of its own. It has room for that share of the index's files beside what it holds itself, asks --num-warmup queries, and then
measures others. Of the share 0, nothing of the files is in memory before any query. --read-ahead compares:

    as needed   searches ask for pages before they read them, where reads go to the disk: how the library works
    never       they do not; the system reads around each page that is missing, as much as the disk's read_ahead_kb says
    random      they do not, and the system was told that reads are random (MADV_RANDOM): it reads page by page

--pin names parts to pin, as ``index.warm`` does, separated by commas.

Memory is limited by a control group, of version 2 or 1, where one can be made. Else (--way drop) the files are dropped from the
page cache before every tenth query, and a random share of their pages is read back.

Linux alone. Nothing else should read the index meanwhile.
"""

from __future__ import annotations

import os

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(pool, "1")

import argparse
import ctypes
import json
import mmap
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import lemur_ann
from lemur_ann import _core
from lemur_ann.documents.inputs import read_queries

CGROUPS = Path("/sys/fs/cgroup")
MADV_RANDOM, MADV_DONTNEED = 1, 4
RUN_PAGES = 16  # that are read back together
DROP_EVERY = 10  # queries, where there is no control group
SPARE_BYTES = 2**24  # for what a search holds for a moment
COLUMNS = ("memory", "read ahead", "p50 ms", "p99 ms", "mean ms", "recall@10", "faults", "MB read")


class Group:
    """A control group for one process, under the one that this process is in; None as its folder where none can be made."""

    def __init__(self) -> None:
        self.folder, self._limit = None, ""
        groups = [line.split(":") for line in Path("/proc/self/cgroup").read_text().split()]
        for _, controllers, path in groups:
            if "memory" in controllers.split(","):
                self._try(CGROUPS / "memory" / path.strip("/"), "memory.limit_in_bytes")
        for _, controllers, path in groups:
            if not controllers:
                for own in (CGROUPS / path.strip("/"), (CGROUPS / path.strip("/")).parent):
                    self._try(own, "memory.max")

    def _try(self, parent: Path, limit: str) -> None:
        folder = parent / f"lemur-ann-cold-{os.getpid()}"
        if self.folder is not None or CGROUPS not in folder.parents:
            return
        try:
            folder.mkdir()
        except OSError:
            return
        if (folder / limit).exists() and os.access(folder / limit, os.W_OK):
            self.folder, self._limit = folder, limit
        else:
            folder.rmdir()

    def take(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def allow(self, num_bytes: int | None) -> None:
        none = "max" if self._limit == "memory.max" else "-1"
        (self.folder / self._limit).write_text(none if num_bytes is None else str(num_bytes))

    def remove(self) -> None:
        if self.folder is not None:
            self.folder.rmdir()


class Files:
    """The files of an index, in the page cache and in the memory of this process."""

    def __init__(self, folder: Path) -> None:
        self.paths = [path for path in folder.iterdir() if path.suffix in (".arrow", ".safetensors")]
        self.sizes = [path.stat().st_size for path in self.paths]
        self._names = {str(path.resolve()) for path in self.paths}
        self._random = np.random.default_rng(0)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

    def advise(self, advice: int) -> None:
        """Tell the system of all that is mapped of them."""
        for line in Path("/proc/self/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] in self._names:
                begin, end = (int(number, 16) for number in fields[0].split("-"))
                self._libc.madvise(begin, end - begin, advice)

    def drop(self) -> None:
        """Nothing of them is in memory."""
        self.advise(MADV_DONTNEED)  # pages that are mapped would stay
        for path in self.paths:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def read_back(self, share: float) -> None:
        """A random share of their pages is."""
        run = RUN_PAGES * mmap.PAGESIZE
        for path, size in zip(self.paths, self.sizes, strict=True):
            with path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no more than these
                for i in np.flatnonzero(self._random.random(size // run + 1) < share).tolist():
                    os.pread(file.fileno(), run, i * run)


def private_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def measure(args: argparse.Namespace) -> None:
    """What the process of one row does: it says what it holds, is told that it may begin, and prints what it found."""
    sys.stdin.readline()  # it is in its group now
    files, share = Files(args.index), args.share
    files.drop()
    index = lemur_ann.LemurIndex.load(args.index, verify=False)
    _core.read_ahead("never" if args.how == "random" else args.how)
    if args.how == "random":
        files.advise(MADV_RANDOM)
    batch = read_queries(pq.read_table(args.queries, columns=["tokens"])[: args.num_warmup + args.num_queries])
    tokens = np.ascontiguousarray(batch.tokens, dtype=np.float32)
    queries = [tokens[begin:end] for begin, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
    for query in queries[:20]:  # what is made in the first search is there
        index.search(query, num_threads=1)
    print(private_bytes(), flush=True)
    sys.stdin.readline()  # memory is limited now
    pinned = index.warm(args.pin.split(","), pin=True) if args.pin else 0
    for query in queries[: args.num_warmup] if share > 0 else []:
        index.search(query, num_threads=1)
    if share == 1:
        index.warm(list(index.stats().parts))
    times, ids, faults, read = [], [], 0, 0
    for i, query in enumerate(queries[args.num_warmup :]):
        if share == 0:
            files.drop()
        elif not args.in_group and share < 1 and i % DROP_EVERY == 0:
            files.drop()
            files.read_back(share)
        faults_before, read_before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, bytes_read()
        start = time.perf_counter()
        hits = index.search(query, num_threads=1)
        times.append(1000 * (time.perf_counter() - start))
        faults += resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults_before
        read += bytes_read() - read_before
        ids.append([str(doc_id) for doc_id in hits.ids])
    print(json.dumps({"ms": times, "ids": ids, "faults": faults / len(times), "read": read / len(times), "pinned": pinned}))


def row(args: argparse.Namespace, share: float, how: str, group: Group) -> dict:
    command = [sys.executable, __file__, str(args.index), str(args.queries), "--share", str(share), "--how", how]
    command += ["--num-queries", str(args.num_queries), "--num-warmup", str(args.num_warmup), "--pin", args.pin]
    command += ["--in-group"] if group.folder else []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if group.folder:
            group.allow(None)
            group.take(process.pid)
        print(file=process.stdin, flush=True)
        held = int(process.stdout.readline())
        if group.folder and 0 < share < 1:
            group.allow(held + SPARE_BYTES + int(share * sum(Files(args.index).sizes)))
        print(file=process.stdin, flush=True)
        found = json.loads(process.stdout.read())
    if process.returncode:
        raise SystemExit(f"the process for {share} of the index in memory ended with {process.returncode}")
    return {"memory": share, "read_ahead": how, "private_bytes": held, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--memory", default="0,0.1,0.25,1", help="shares of the index")
    parser.add_argument("--read-ahead", default="never,random,as needed")
    parser.add_argument("--pin", default="")
    parser.add_argument("--num-queries", type=int, default=200)
    parser.add_argument("--num-warmup", type=int, default=200)
    parser.add_argument("--way", choices=("group", "drop"))
    parser.add_argument("--json", type=Path)
    for name, kind in (("--share", float), ("--how", str)):  # of the process of one row
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--in-group", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.share is not None:
        measure(args)
        return
    os.sync()  # what was just written could not be dropped
    group = Group() if args.way != "drop" else argparse.Namespace(folder=None, remove=lambda: None)
    if args.way == "group" and group.folder is None:
        parser.error("no control group with a limit of memory can be made here")
    try:
        shares, hows = [float(share) for share in args.memory.split(",")], args.read_ahead.split(",")
        rows = [row(args, share, how, group) for share in shares for how in hows]
        whole = next((r for r in rows if r["memory"] == 1), None) or row(args, 1.0, hows[0], group)
    finally:
        group.remove()
    way = "a control group" if group.folder else "dropping pages"
    size = sum(Files(args.index).sizes) / 1e6
    pinned = f", {rows[0]['pinned'] / 1e6:.0f} MB pinned" if args.pin else ""
    table = Table(title=f"{size:,.0f} MB of files{pinned}, {args.num_queries} queries, memory limited by {way}")
    for name in COLUMNS:
        table.add_column(name)
    for r in rows:
        r["recall"] = float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(r["ids"], whole["ids"], strict=True)]))
        ms = np.percentile(r["ms"], (50, 99))
        cells = f"{ms[0]:.2f}", f"{ms[1]:.2f}", f"{np.mean(r['ms']):.2f}", f"{r['recall']:.3f}", f"{r['faults']:.1f}"
        table.add_row(f"{r['memory']:.0%}", r["read_ahead"], *cells, f"{r['read'] / 1e6:.2f}")
    Console(width=120).print(table)
    if args.json:
        args.json.write_text(json.dumps({"way": way, "size_bytes": int(1e6 * size), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
