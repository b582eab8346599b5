"""How many answers the reference recipe of LEMUR loses: its features, a scan of the raw 2048-d weights, its own rerank.

    python benchmarks/compare/reference_answers.py CORPUS --work DIR [--num-queries 400]

Needs the reference (github.com/ejaasaari/lemur) installed. Its weights are learned by lemur_ann's adapter, as for
``run_reference.py``; everything measured is the reference's code. Query i of the corpus was written for the document whose name
it has. Losses are against exact MaxSim, with the paired intervals of :class:`lemur_ann.insight.relevance.Measure`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import all_cores
import common
import numpy as np
import pyarrow.parquet as pq
import weights

CANDIDATES = (50, 100, 200, 400, 800)
K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--num-queries", type=int, default=400)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    corpus = common.Corpus(arguments.corpus, arguments.work, arguments.num_queries)
    folder, seconds = common.built(arguments.work, "weights", lambda path: all_cores.call(weights.build, corpus, path))
    print(f"weights: {seconds:.0f} s")
    import torch
    from lemur import Lemur
    from lemur.maxsim import MaxSim

    from lemur_ann import LemurIndex
    from lemur_ann.insight.relevance import relevance

    names = pq.read_table(arguments.corpus / "docs.parquet", columns=["id"]).column("id").to_pylist()
    asked = pq.read_table(arguments.corpus / "queries_dev.parquet", columns=["id"]).column("id").to_pylist()
    rows: dict[str, dict[int, float]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, {})[row] = 1.0
    grades = [rows[name] for name in asked[: arguments.num_queries]]
    documents = corpus.documents
    exact_index = LemurIndex(token_codes=None).add(documents.tokens, offsets=documents.offsets, ids=np.arange(len(names)))
    exact = [hits.ids.tolist() for hits in exact_index.search(corpus.queries, k=K, exact=True)]

    model = Lemur(index=folder, device="cpu")
    model.load_mlp()
    model.load_w()
    torch.set_num_threads(common.ALL_CORES)
    tokens, counts = documents.tokens.astype(np.float32), documents.counts.astype(np.int32)
    rerank = MaxSim(tokens, counts)  # which keeps their addresses alone
    for count in CANDIDATES:
        found = []
        for query in corpus.queries:
            own = np.array([len(query)], np.int32)
            features = model.compute_features((query, own))
            candidates = torch.topk(features @ model.W.T, count, dim=1).indices.numpy().astype(np.int32)
            found.append(np.asarray(rerank.rerank_subset(query, own, K, candidates)[0]).reshape(-1).tolist())
        recall = np.mean([len(set(own) & set(best)) / K for own, best in zip(found, exact, strict=True)])
        of_answers = relevance(found, exact, grades, K, exact_index.snapshot.ids).measures
        print(f"{count} candidates: recall@{K} {recall:.4f}")
        for name in (f"success@{K}", f"MRR@{K}"):
            own = of_answers[name]
            low, high = own.loss_interval
            print(
                f"    {name} {own.found:.4f} of {own.exact:.4f}, lost {own.loss:+.1%} ({low:+.1%} to {high:+.1%})", flush=True
            )


if __name__ == "__main__":
    main()
