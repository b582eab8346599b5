"""Searches among some of the documents: recall and time against the share that passes.

    python benchmarks/filters.py INDEX QUERIES [--num-queries 200] [--json results.json]

INDEX is a saved index. Filters are boolean masks: a random share of the documents, and shares that go with each query by the
exact scores: the documents nearest to it, and all but the nearest. One thread, one query at a time, default num_candidates and
ef_search; recall@10 against exact MaxSim among those that pass. An expression over a column of years is timed by itself.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import lemur_ann
from lemur_ann.documents.inputs import read_queries

SHARES = (1.0, 0.5, 0.1, 0.01, 0.001)
NEAREST, ALL_BUT_NEAREST = (0.1, 0.01), (0.1, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--num-queries", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    index = lemur_ann.LemurIndex.load(args.index, verify=False)
    batch = read_queries(pq.read_table(args.queries, columns=["tokens"])[: args.num_queries])
    queries = [batch.tokens[batch.offsets[i] : batch.offsets[i + 1]] for i in range(len(batch))]
    size, random = len(index), np.random.default_rng(0)
    place = {doc_id: i for i, doc_id in enumerate(index)}
    ranked = []  # documents of each query, best first, by place
    for begin in range(0, len(queries), 16):
        found = index.search(queries[begin : begin + 16], k=size, exact=True)
        ranked += [np.array([place[doc_id] for doc_id in hits.ids.tolist()], np.int32) for hits in found]
    ids = np.array(list(index))

    def masks(name: str, share: float):
        for order in ranked:
            mask = np.zeros(size, bool)
            if name == "random":
                mask[random.random(size) < share] = True
            elif name == "nearest":
                mask[order[: int(share * size)]] = True
            else:
                mask[order[int(share * size) :]] = True
            yield mask

    results = []
    kinds = (
        [("random", s) for s in SHARES]
        + [("nearest", s) for s in NEAREST]
        + [("all but the nearest", s) for s in ALL_BUT_NEAREST]
    )
    for name, share in kinds:
        recalls, ms = [], []
        for query, order, mask in zip(queries, ranked, masks(name, share), strict=True):
            index.search(query, filter=mask, num_threads=1)
            start = time.perf_counter()
            hits = index.search(query, filter=mask, num_threads=1)
            ms.append((time.perf_counter() - start) * 1e3)
            best = ids[order[mask[order]][:10]]
            assert len(hits) == len(best)
            if len(best):
                recalls.append(np.isin(best, hits.ids).mean())
        results.append(
            {
                "filter": name,
                "share": share if name != "all but the nearest" else 1 - share,
                "recall@10": float(np.mean(recalls)),
                "ms": float(np.mean(ms)),
                "p95_ms": float(np.percentile(ms, 95)),
            }
        )
    plain, tick = [], []
    years = pa.array(random.integers(1990, 2020, size))
    table = pa.table({"id": pa.array(ids), "year": years})
    for query in queries:
        start = time.perf_counter()
        index.search(query, num_threads=1)
        plain.append((time.perf_counter() - start) * 1e3)
    import pyarrow.dataset as ds

    for i in range(20):
        start = time.perf_counter()
        ds.dataset(table).to_table(columns=["year"], filter=pc.field("year") > 1990 + i)
        tick.append((time.perf_counter() - start) * 1e3)
    shown = Table(title=f"{size:,} documents, {len(queries)} queries, one thread; without a filter {np.mean(plain):.2f} ms")
    for column in ("filter", "share that passes", "recall@10", "ms", "p95 ms"):
        shown.add_column(column)
    for r in results:
        shown.add_row(r["filter"], f"{r['share']:.1%}", f"{r['recall@10']:.3f}", f"{r['ms']:.2f}", f"{r['p95_ms']:.2f}")
    console = Console(width=120)
    console.print(shown)
    console.print(f"an expression over a column of years, once for all queries that use it: {np.median(tick):.2f} ms")
    if args.json:
        out = {"without_ms": float(np.mean(plain)), "expression_ms": float(np.median(tick)), "filters": results}
        args.json.write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()
