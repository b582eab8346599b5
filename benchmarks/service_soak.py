"""A service under load for minutes, beside a client that changes the index: time, errors, memory, and whether hits are right.

    python benchmarks/service_soak.py CORPUS --work DIR [--limit 10000] [--minutes 10] [--rate 300] [--workers 1]

The index is learned once, in DIR. Then clients ask ``--rate`` searches a second while another adds documents, 100 a second if
it can, and deletes as many that it added before. Each hit has to be there in the version that its answer names. A search's time
begins when it was due, whether or not a client was free then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import service

NUM_CLIENTS, DOCUMENTS_PER_CHANGE, CHANGES_PER_SECOND, KEPT = 16, 20, 5, 400
NUM_NEVER = 2**62  # a version that never comes
ARROW = "application/vnd.apache.arrow.stream"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=300)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    from lemur_ann import LemurIndex
    from lemur_ann.documents import read_queries

    folder = arguments.work / f"soak-{arguments.limit}"
    documents = pq.read_table(arguments.corpus / "docs.parquet", columns=["id", "tokens"])[: arguments.limit]
    documents = documents.set_column(0, "id", pa.array([f"old-{i}" for i in range(len(documents))]))
    if not folder.exists():
        index = LemurIndex().fit(documents, arguments.corpus / "queries_train.parquet", progress=False)
        index.save(folder)
    batch = read_queries(pq.read_table(arguments.corpus / "queries_dev.parquet", columns=["tokens"])[:400])
    bodies = [service.body(np.asarray(batch.matrix(i), np.float16)) for i in range(len(batch))]
    with tempfile.TemporaryDirectory(dir=arguments.work) as scratch:
        changed = Path(scratch, "soak")
        shutil.copytree(folder, changed)
        with service.served(changed, arguments.workers, writes=True) as (address, pid):
            print(Soak(address, "soak", documents, bodies, arguments.rate, 60 * arguments.minutes).run(pid))


class Soak:
    """Clients that search, one that changes, and what they saw."""

    def __init__(self, address: str, name: str, documents: Any, bodies: list[bytes], rate: float, seconds: float) -> None:
        self._address, self._path, self._documents, self._bodies = address, f"/v1/indexes/{name}", documents, bodies
        self._rate, self._seconds = rate, seconds
        self._due: queue.Queue[float | None] = queue.Queue()
        self._times: list[float] = []
        self._statuses: dict[int, int] = {}
        self._seen: list[tuple[int, list[str]]] = []
        self._added: dict[str, int] = {}  # the version that a document came with, and the one it went with
        self._deleted: dict[str, int] = {}
        self._lock = threading.Lock()
        self._changes: list[float] = []

    def run(self, pid: int) -> str:
        stop = threading.Event()
        searching = [threading.Thread(target=self._search) for _ in range(NUM_CLIENTS)]
        changing = threading.Thread(target=self._change, args=(stop,))
        for thread in (*searching, changing):
            thread.start()
        begin, sizes = time.perf_counter(), []
        for number in range(int(self._rate * self._seconds)):
            due = begin + number / self._rate
            time.sleep(max(0.0, due - time.perf_counter()))
            self._due.put(due)
            if number % int(10 * self._rate) == 0:
                sizes.append(resident(pid))
        for _ in searching:
            self._due.put(None)
        for thread in searching:
            thread.join()
        stop.set()
        changing.join()
        wrong = sum(self._is_wrong(version, ids) for version, ids in self._seen)
        p50, p99 = np.quantile(self._times, [0.5, 0.99])
        change50, change99 = np.quantile(self._changes, [0.5, 0.99])
        quarter = max(len(sizes) // 4, 1)
        return (
            f"{len(self._times):,} searches, {self._rate:.0f} a second: p50 {p50:.2f} ms, p99 {p99:.2f} ms, {self._statuses}; "
            f"{len(self._changes):,} changes of {DOCUMENTS_PER_CHANGE}: p50 {change50:.0f} ms, p99 {change99:.0f} ms; "
            f"{wrong} answers wrong for their version; "
            f"memory {np.mean(sizes[:quarter]):.0f} MB at first, {np.mean(sizes[-quarter:]):.0f} MB at the end"
        )

    def _search(self) -> None:
        with service.Raw(self._address, f"{self._path}/search") as raw:
            number = 0
            while (due := self._due.get()) is not None:
                status, answer = raw.asked(self._bodies[number % len(self._bodies)])
                number += 1
                took = 1e3 * (time.perf_counter() - due)
                with self._lock:
                    self._statuses[status] = self._statuses.get(status, 0) + 1
                    if status == 200:
                        told = json.loads(answer)
                        self._times.append(took)
                        new = [hit["id"] for hit in told["hits"] if hit["id"].startswith("new-")]
                        self._seen.append((told["version"], new))

    def _change(self, stop: threading.Event) -> None:
        number, live = 0, []
        with httpx.Client(base_url=self._address, timeout=60) as client:
            while not stop.wait(1 / CHANGES_PER_SECOND):
                rows = [(number + i) % len(self._documents) for i in range(DOCUMENTS_PER_CHANGE)]
                ids = [f"new-{number + i}" for i in range(DOCUMENTS_PER_CHANGE)]
                number += DOCUMENTS_PER_CHANGE
                table = self._documents.take(rows).set_column(0, "id", pa.array(ids))
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table)
                version = self._changed(client, "documents", content=bytes(sink.getvalue()), headers={"content-type": ARROW})
                self._added |= dict.fromkeys(ids, version)
                live += ids
                if len(live) > KEPT:
                    gone, live = live[:DOCUMENTS_PER_CHANGE], live[DOCUMENTS_PER_CHANGE:]
                    version = self._changed(client, "delete", json={"ids": gone})
                    self._deleted |= dict.fromkeys(gone, version)

    def _changed(self, client: httpx.Client, where: str, **how: Any) -> int:
        begin = time.perf_counter()
        answer = client.post(f"{self._path}/{where}", **how)
        answer.raise_for_status()
        self._changes.append(1e3 * (time.perf_counter() - begin))
        return int(answer.json()["version"])

    def _is_wrong(self, version: int, ids: list[str]) -> bool:
        # A compaction may come between a change and the version that its answer names, which is one too many then.
        never = NUM_NEVER
        return any(not self._added.get(one, never) - 1 <= version <= self._deleted.get(one, never) + 1 for one in ids)


def resident(pid: int) -> float:
    """Memory of a process and those it began, in MB, shared pages in proportion."""
    total = 0
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            number = int(folder.name)
            if number == pid or os.getpgid(number) == pid:
                rollup = (folder / "smaps_rollup").read_text()
                total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(("Pss_Anon:", "SwapPss:")))
    return total / 1e3


if __name__ == "__main__":
    main()
