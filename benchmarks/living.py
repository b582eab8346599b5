"""An index that changes: what a change costs, what searches notice of it, and what is left of recall after heavy churn.

    python benchmarks/living.py CORPUS --work DIR [--num-documents 20000] [--json results.json]

CORPUS holds docs.parquet, queries_train.parquet (learned from) and queries_dev.parquet (measured with). The index is open on a
directory, default options.

churn       ten rounds: half of the documents deleted, half of the others replaced by documents that were not there; compared
            with an index made anew of what is there at the end
beside      the latency of single searches on one thread: alone, and while another thread adds 100 documents after the other,
            deletes, compacts
changes     how long adding 1, 100 and 1,000 documents and deleting one takes until it is on disk
"""

from __future__ import annotations

import argparse
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

import lemur_ann


def percentiles(seconds: list[float]) -> dict[str, float]:
    ms = np.array(seconds) * 1e3
    return {
        "mean_ms": float(ms.mean()),
        "p50_ms": float(np.percentile(ms, 50)),
        "p99_ms": float(np.percentile(ms, 99)),
        "max_ms": float(ms.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--num-documents", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console, size = Console(width=140), args.num_documents
    table = pq.read_table(args.corpus / "docs.parquet", columns=["tokens"])
    table = table.append_column("id", pa.array(np.arange(len(table))))
    training = pq.read_table(args.corpus / "queries_train.parquet", columns=["tokens"])
    queries = pq.read_table(args.corpus / "queries_dev.parquet", columns=["tokens"])[:400]
    random, out = np.random.default_rng(0), {}
    path = args.work / "living"
    shutil.rmtree(path, ignore_errors=True)
    index = lemur_ann.LemurIndex.open(path)
    index.fit(table[:size], training)
    out["fresh"] = index.evaluate(queries, num_threads=1).recall
    console.print(f"{size:,} documents: recall@10 {out['fresh']:.4f}")
    matrices = [np.array(q.as_py(), np.float32) for q in queries.column("tokens")[:50]]

    # changes
    spare = iter(range(len(table) - 1, 0, -1))
    costs: dict[str, list[float]] = {}

    def timed(name: str, call) -> None:
        start = time.perf_counter()
        call()
        costs.setdefault(name, []).append(time.perf_counter() - start)

    for count, times in ((1, 30), (100, 10), (1000, 2)):
        for _ in range(times):
            rows = [next(spare) for _ in range(count)]
            batch = table.take(rows)
            timed(f"add {count}", lambda batch=batch: index.add(batch))
            timed("delete 1", lambda rows=rows: index.delete(rows[0]))
    out["changes"] = {name: percentiles(seconds) for name, seconds in costs.items()}
    for name, found in out["changes"].items():
        console.print(f"{name}: {found['p50_ms']:.0f} ms, at most {found['max_ms']:.0f}")

    # beside
    def searches(stop) -> list[float]:
        seconds, i = [], 0
        while not stop(i):
            start = time.perf_counter()
            index.search(matrices[i % len(matrices)], num_threads=1)
            seconds.append(time.perf_counter() - start)
            i += 1
        return seconds

    searches(lambda i: i >= 200)
    out["beside"] = {"nothing": percentiles(searches(lambda i: i >= 2000))}

    def adds() -> None:
        for _ in range(20):
            index.add(table.take([next(spare) for _ in range(100)]), num_threads=1)

    def deletes() -> None:
        for doc_id in random.choice(index.ids().to_numpy(), 300, replace=False).tolist():
            index.delete(doc_id)

    for name, work in (("adding", adds), ("deleting", deletes), ("compacting", lambda: index.compact(num_threads=1))):
        done = threading.Event()
        thread = threading.Thread(target=lambda work=work, done=done: (work(), done.set()))
        thread.start()
        out["beside"][name] = percentiles(searches(lambda i, done=done: done.is_set()))
        thread.join()
    for name, found in out["beside"].items():
        console.print(f"searches beside {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()))

    # churn
    for number in range(args.rounds):
        start = time.perf_counter()
        ids = random.permutation(index.ids().to_numpy())
        index.delete(ids[: len(ids) // 2])
        kept = ids[len(ids) // 2 :]
        unused = np.setdiff1d(np.arange(len(table)), index.ids().to_numpy())
        fresh = random.choice(unused, len(ids) // 2 + len(kept) // 2, replace=False)
        batch = table.take(fresh)
        replaced = np.concatenate([fresh[: len(ids) // 2], kept[: len(kept) // 2]])  # the last take the ids of others
        replaced = pa.array(replaced)
        index.upsert(batch.set_column(batch.column_names.index("id"), "id", replaced))
        console.print(f"round {number + 1}: {len(index):,} documents, {time.perf_counter() - start:.1f} s")
        # ids name other documents now: what they hold is read back at the end
    if index._changes.compaction is not None:
        index._changes.compaction.join()
    out["churned"] = index.evaluate(queries, num_threads=1).recall
    console.print(f"after {args.rounds} rounds: recall@10 {out['churned']:.4f}; {index.stats()}")
    anew = lemur_ann.LemurIndex().fit(index.get(index.ids()), training)
    out["anew"] = anew.evaluate(queries, num_threads=1).recall
    console.print(f"an index made anew of the same documents: {out['anew']:.4f}")
    index.close()
    if args.json:
        args.json.write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()
