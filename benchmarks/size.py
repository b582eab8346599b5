"""Recall and time in a larger collection: real documents, and others that join halves of two of them.

    python benchmarks/size.py CORPUS --work DIR [--num-documents 300000] [--num-queries 200]

The documents are streamed to DIR/joined.parquet (some 20 KB each) and from there into an index on disk in DIR/index, learned
from queries_train with default options. Joined documents have many near ties, so that they are harder than new texts. The
queries of queries_dev are asked one at a time on one thread.
"""

from __future__ import annotations

import os

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(pool, "1")  # of the measurement; the fit sets torch's own number

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_BLOCK = 4096
SETTINGS = (  # num_candidates, ef_search, shortlist; None is what is usual
    (None, None, None),
    (120, 300, 1000),
    (120, 450, 1500),
    (150, 600, 2000),
    (250, 900, 3000),
    (400, 1200, 4000),
    (250, 300, 0),
    (1200, 1200, 0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--num-documents", type=int, default=300_000)
    parser.add_argument("--num-queries", type=int, default=200)
    arguments = parser.parse_args()
    from lemur_ann import LemurIndex
    from lemur_ann.documents import read_queries

    arguments.work.mkdir(parents=True, exist_ok=True)
    joined, folder = arguments.work / "joined.parquet", arguments.work / "index"
    if not joined.exists():
        write_joined(arguments.corpus / "docs.parquet", joined, arguments.num_documents)
    if not folder.exists():
        begin = time.perf_counter()
        with LemurIndex.open(folder) as index:
            index.fit(joined, arguments.corpus / "queries_train.parquet", progress=False)
        print(f"fit: {time.perf_counter() - begin:.0f} s")
    index = LemurIndex.open(folder, read_only=True)
    batch = read_queries(pq.read_table(arguments.corpus / "queries_dev.parquet", columns=["tokens"])[: arguments.num_queries])
    queries = [batch.matrix(i) for i in range(len(batch))]
    known = arguments.work / f"exact-{len(index)}-{len(queries)}.npy"
    if not known.exists():
        np.save(known, np.array([hits.ids for hits in index.search(queries, exact=True)]))
    exact = np.load(known)
    print(f"{len(index):,} documents, {len(queries)} queries")
    for count, beam, shortlist in SETTINGS:
        how = {"num_candidates": count, "ef_search": beam, "shortlist": shortlist, "num_threads": 1}
        for query in queries[:50]:
            index.search(query, **how)
        begin = time.perf_counter()
        found = [index.search(query, **how).ids for query in queries]
        milliseconds = (time.perf_counter() - begin) / len(queries) * 1e3
        recall = np.mean([np.isin(best, own).mean() for best, own in zip(exact, found, strict=True)])
        name = "default" if count is None else f"{count}, {beam}, {shortlist}"
        print(f"{name:16} recall@10 {recall:.4f}, {milliseconds:.2f} ms a query", flush=True)


def write_joined(source: Path, target: Path, count: int) -> None:
    """The documents of a file, and after them the first half of one and the second of another, until they are so many."""
    column = pq.read_table(source, columns=["tokens"]).column("tokens").combine_chunks()
    dim = column.type.value_type.list_size
    tokens = column.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    offsets = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy())])
    random = np.random.default_rng(0)
    schema = pa.schema([("id", pa.int64()), ("tokens", pa.list_(pa.list_(pa.float16(), dim)))])
    with pq.ParquetWriter(target, schema, compression="none") as writer:
        for first in range(0, count, ROWS_PER_BLOCK):
            matrices = []
            for row in range(first, min(first + ROWS_PER_BLOCK, count)):
                a, b = (row, row) if row < len(column) else random.integers(0, len(column), 2)
                middles = [(offsets[i] + offsets[i + 1]) // 2 for i in (a, b)]
                matrices += [tokens[offsets[a] : middles[0]], tokens[middles[1] : offsets[b + 1]]]
            lengths = np.add.reduceat([len(matrix) for matrix in matrices], np.arange(0, len(matrices), 2))
            flat = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(matrices).reshape(-1)), dim)
            ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
            ids = pa.array(range(first, first + len(lengths)))
            writer.write_table(pa.table([ids, pa.ListArray.from_arrays(ends, flat)], schema=schema))


if __name__ == "__main__":
    main()
