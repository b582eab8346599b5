"""Fewer tokens: how quickly they are pooled, and what exact MaxSim over pooled tokens finds.

    python benchmarks/pooling.py CORPUS [--limit N] [--num-queries N] [--dominated] [--json FILE]

Prints tokens a second on one core for each way; then, for the queries of queries_dev whose document is among the first N
documents, recall@10 of the exact top 10 over all tokens, success@10 and MRR@10, at several factors. "sequential" pools runs of
256 tokens at most, and so short documents as "ward" does; what shorter runs lose says what its runs lose of longer documents.
The mean of each two, three or four neighbours is there for comparison. ``--dominated`` also says which share of document tokens
is never the best of its document for any of 25,000 sampled training query tokens, and what is found without these.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from known_answers import Known, read

import lemur_ann
from lemur_ann import _core
from lemur_ann.documents import read_queries
from lemur_ann.documents.pooling import pool

Matrices = list[npt.NDArray[Any]]

FACTORS = (2, 3, 4)
RUNS = (64, 32)
K = 10
QUERY_TOKENS = 25_000


def in_runs(documents: Matrices, factor: int, size: int) -> Matrices:
    """Pooled by Ward's method in runs of so many neighbours at most; the first token stays."""
    offsets = np.cumsum([0, *map(len, documents)])
    tokens, bounds, _ = _core.pool(np.concatenate(documents), offsets, factor, 1, size, 1)
    return [own.astype(documents[0].dtype) for own in np.split(tokens[: bounds[-1]], bounds[1:-1])]


def neighbours(documents: Matrices, factor: int) -> Matrices:
    """The mean of each so many neighbours, of length 1; the first token stays."""
    pooled = []
    for tokens in documents:
        rest = tokens[1:].astype(np.float32)
        if len(rest) == 0:
            pooled.append(tokens)
            continue
        count = max(len(rest) // factor, 1)
        begins = np.arange(count) * len(rest) // count
        means = np.add.reduceat(rest, begins, axis=0)
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        pooled.append(np.concatenate([tokens[:1], means.astype(tokens.dtype)]))
    return pooled


def ranked(documents: Matrices, queries: Matrices, num_threads: int) -> list[list[int]]:
    """The exact top K of each query."""
    index = lemur_ann.LemurIndex(token_codes=None).add(documents)
    return [hits.ids.tolist() for hits in index.search(queries, K, exact=True, num_threads=num_threads)]


def measures(found: list[list[int]], exact: list[list[int]], known: Known) -> dict[str, float]:
    """recall of the exact top K, and success and MRR of the known documents."""
    shares = [len(set(own) & set(wanted)) / len(wanted) for own, wanted in zip(found, exact, strict=True)]
    places = [
        next((place for place, row in enumerate(own, 1) if row in grades), 0)
        for own, grades in zip(found, known.grades, strict=True)
    ]
    return {
        f"recall@{K}": float(np.mean(shares)),
        f"success@{K}": float(np.mean([place > 0 for place in places])),
        f"MRR@{K}": float(np.mean([1 / place if place else 0.0 for place in places])),
    }


def speeds(documents: Matrices) -> dict[str, float]:
    """Tokens a second of the processor's time on one core, by way; the best of three."""
    found = {}
    pages = [np.concatenate(documents[i : i + 13]) for i in range(0, 390, 13)]  # of about 1,000 tokens
    for way, some in (("ward", documents), ("ward", pages), ("sequential", pages)):
        num_tokens = sum(map(len, some))
        seconds = []
        for _ in range(3):
            begin = time.process_time()
            pool(some, 2, pooling=way, num_threads=1)
            seconds.append(time.process_time() - begin)
        name = f"{way}, {num_tokens / len(some):.0f} tokens a document"
        found[name] = num_tokens / min(seconds)
        print(f"{name}: {found[name]:,.0f} tokens a second on one core")
    return found


def without_dominated(documents: Matrices, corpus: Path) -> tuple[Matrices, float]:
    """Documents without tokens that are the best of their document for none of the sampled query tokens; their share."""
    training = read_queries(pq.read_table(corpus / "queries_train.parquet", columns=["tokens"])[:4000]).tokens
    rows = np.sort(np.random.default_rng(0).choice(len(training), min(QUERY_TOKENS, len(training)), replace=False))
    sample = np.asarray(training[rows], np.float32)
    kept = []
    for tokens in documents:
        best = np.unique((sample @ tokens.astype(np.float32).T).argmax(axis=1))
        kept.append(tokens[best])
    return kept, 1 - sum(map(len, kept)) / sum(map(len, documents))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--limit", type=int, help="documents")
    parser.add_argument("--num-queries", type=int, default=1000)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--dominated", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    known = read(args.corpus, args.limit, args.num_queries)
    batch = read_queries(known.documents.select(["tokens"]))
    documents = [batch.matrix(i) for i in range(len(batch))]
    print(f"{len(documents):,} documents, {len(batch.tokens):,} tokens of {batch.tokens.dtype}; {len(known.queries):,} queries")
    results: dict[str, Any] = {"tokens a second": speeds(documents[:2000])}
    exact = ranked(documents, known.queries, args.num_threads)
    print(f"{'way':22}{'tokens':>8}" + "".join(f"{name:>12}" for name in measures(exact, exact, known)))

    def show(name: str, made: Matrices) -> None:
        found = measures(ranked(made, known.queries, args.num_threads), exact, known)
        share = sum(map(len, made)) / len(batch.tokens)
        results[name] = {"tokens": share, **found}
        print(f"{name:22}{share:8.3f}" + "".join(f"{value:12.4f}" for value in found.values()), flush=True)

    show("all tokens", documents)
    for factor in FACTORS:
        show(f"ward {factor}", pool(documents, factor, num_threads=args.num_threads).documents)
        for size in RUNS:
            show(f"runs of {size}, {factor}", in_runs(documents, factor, size))
        show(f"neighbours, {factor}", neighbours(documents, factor))
    if args.dominated:
        kept, share = without_dominated(documents, args.corpus)
        print(f"{share:.1%} of document tokens are the best of their document for none of {QUERY_TOKENS:,} query tokens")
        show("without dominated", kept)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
