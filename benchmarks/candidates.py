"""Candidate indexes beside each other: recall, time, bytes and build time on the same vectors.

    python benchmarks/candidates.py INDEX QUERIES [--only hnsw,faiss,...] [--num-candidates 250] [--json FILE]

INDEX is a saved index, QUERIES a Parquet file with a column ``tokens``. Each kind is built anew from the index's vectors with
two threads, and asked one query at a time on one. Recall@10 is the share of the exact MaxSim top 10 among the candidates,
which is what the exact rerank behind them gives. Bytes are those of the files that a saved index would have for it.
"""

from __future__ import annotations

import os

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(pool, "2")

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lemur_ann import LemurIndex
from lemur_ann.candidates.kinds import kind_of

K = 10
CONTENDERS = {  # name: kind, options of its library, beams
    "hnsw": ("hnsw", None, (150, 300, 600)),
    "faiss, HNSW32": ("faiss", None, (300, 600, 1200)),
    "faiss, HNSW32_SQ8": ("faiss", {"factory": "HNSW32_SQ8"}, (300, 600, 1200)),
    "faiss, IVF512,SQ8, 16 lists": ("faiss", {"factory": "IVF512,SQ8", "nprobe": 16}, (300,)),
    "faiss, IVF512,SQ8, 64 lists": ("faiss", {"factory": "IVF512,SQ8", "nprobe": 64}, (300,)),
    "usearch, f16": ("usearch", None, (300, 600, 1200)),
    "usearch, i8": ("usearch", {"dtype": "i8"}, (300, 600, 1200)),
    "svs": ("svs", None, (250, 300, 600)),
    "svs, float16": ("svs", {"dtype": "float16"}, (250, 300, 600)),
    "exact": ("exact", None, (300,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--only", default=",".join({kind for kind, _, _ in CONTENDERS.values()}))
    parser.add_argument("--num-queries", type=int, default=400)
    parser.add_argument("--num-candidates", type=int, default=250)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    index = LemurIndex.load(args.index)
    column = pq.read_table(args.queries, columns=["tokens"])["tokens"][: args.num_queries]
    queries = [np.array(query.values.to_pylist(), np.float32) for query in column]
    row_of = {doc_id: row for row, doc_id in enumerate(index)}
    truth = [{row_of[doc_id] for doc_id in hits.ids.tolist()} for hits in index.search(queries, k=K, exact=True)]
    blocks = [batch.column("vector") for batch in index.to_arrow(tokens=False)]
    vectors = np.concatenate([block.flatten().to_numpy().reshape(len(block), -1) for block in blocks])
    encoded = index.encoder.encode_queries(queries)
    print("| candidates | beam | recall@10 | us a query | build s | MB |\n" + "| --- " * 6 + "|")
    results = []
    for name, (kind, own, beams) in CONTENDERS.items():
        if kind not in args.only.split(","):
            continue
        options = {**asdict(index.options), "candidates": kind, "candidates_options": own}
        start = time.perf_counter()
        builder = kind_of(kind).builder(vectors.shape[1], options, len(vectors))
        builder.add(vectors, num_threads=2)
        candidates = builder.finish()
        build_s = time.perf_counter() - start
        size = size_of(candidates, kind_of(kind).files)
        for beam in beams:
            found, us = searched(candidates, encoded, args.num_candidates, beam)
            shares = [len(best & set(rows.tolist())) / len(best) for best, rows in zip(truth, found, strict=True)]
            recall = float(np.mean(shares))
            results.append({"candidates": name, "beam": beam, "recall": recall, "us": us, "build_s": build_s, "bytes": size})
            print(f"| {name} | {beam} | {recall:.3f} | {us:,.0f} | {build_s:.0f} | {size / 1e6:.0f} |", flush=True)
    if args.json:
        body = {
            "num_documents": len(vectors),
            "dim": vectors.shape[1],
            "num_candidates": args.num_candidates,
            "results": results,
        }
        args.json.write_text(json.dumps(body, indent=2) + "\n")


def searched(candidates, encoded: np.ndarray, num_candidates: int, beam: int) -> tuple[list[np.ndarray], float]:
    """What it finds, and microseconds a query: the quicker of two rounds."""
    rounds = []
    for _ in range(2):
        start = time.perf_counter()
        found = [candidates.search(encoded[i : i + 1], num_candidates, beam, num_threads=1)[0] for i in range(len(encoded))]
        rounds.append((time.perf_counter() - start) / len(encoded) * 1e6)
    return found, min(rounds)


def size_of(candidates, files: dict[str, str]) -> int:
    """Of the files that it is saved in, those that searches do not read included."""
    size = sum(part.nbytes for part in candidates.parts)
    if candidates.structure is not None:
        with tempfile.TemporaryDirectory() as folder:
            candidates.structure.save({role: Path(folder) / f"part{suffix}" for role, suffix in files.items()})
            size += sum(file.stat().st_size for file in Path(folder).iterdir())
    return size


if __name__ == "__main__":
    main()
