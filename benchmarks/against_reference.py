"""Fit time beside the reference implementation of LEMUR, given the same work: the same documents, query tokens, sample sizes.

    python benchmarks/against_reference.py CORPUS --work DIR [--epochs 0] [--limit 1200] [--json FILE]

Needs the reference (github.com/ejaasaari/lemur) installed beside lemur_ann: `pip install .` in a checkout of it. Each runs in a
process of its own, documents read before the clock starts, and is stopped after --limit seconds; the ratio is then a lower
bound. lemur_ann runs twice: through its adapter with the reference's own interface, which gives the same full weights, and as
an index, which gives reduced vectors in a searchable graph.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from lemur_ann.documents.inputs import read_queries

NUM_FEATURES, SAMPLE_TOKENS = 2048, 16_384
CONTENDERS = ("lemur_ann index", "lemur_ann adapter", "reference")


def fit(name: str, corpus: Path, epochs: int) -> float:
    documents = read_queries(pq.read_table(corpus / "docs.parquet", columns=["tokens"]))
    queries = read_queries(pq.read_table(corpus / "queries_train.parquet", columns=["tokens"]))
    if name == "lemur_ann index":
        import lemur_ann

        index = lemur_ann.LemurIndex(epochs=epochs, num_features=NUM_FEATURES, num_sample_tokens=SAMPLE_TOKENS)
        start = time.perf_counter()
        index.fit(documents.tokens, queries.tokens, offsets=documents.offsets, query_offsets=queries.offsets)
        return time.perf_counter() - start
    if name == "reference":
        from lemur import Lemur
    else:
        from lemur_ann.adapters.lemur import Lemur
    train, learn = (torch.from_numpy(b.tokens.astype(np.float32)) for b in (documents, queries))
    counts, learn_counts = (torch.from_numpy(np.diff(b.offsets).astype(np.int32)) for b in (documents, queries))
    model = Lemur(device="cpu")
    start = time.perf_counter()
    model.fit(
        train=train,
        train_counts=counts,
        learn=learn,
        learn_counts=learn_counts,
        epochs=epochs,
        final_hidden_dim=NUM_FEATURES,
        ols_sample_size=SAMPLE_TOKENS,
        verbose=False,
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--limit", type=float, default=1200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default=",".join(CONTENDERS))
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(fit(args.run, args.corpus, args.epochs))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    for name in args.only.split(","):
        command = [sys.executable, str(Path(__file__).resolve()), str(args.corpus.resolve()), "--work", ".", "--run", name]
        command += ["--epochs", str(args.epochs)]
        try:
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=args.limit, cwd=args.work)
            seconds[name] = float(run.stdout.split()[-1])
            print(f"{name}: {seconds[name]:.0f} s", end="")
        except subprocess.TimeoutExpired:
            seconds[name] = args.limit
            print(f"{name}: stopped after {args.limit:.0f} s", end="")
        print(f", {seconds[name] / next(iter(seconds.values())):.1f} times the first", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"epochs": args.epochs, "limit_s": args.limit, "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
