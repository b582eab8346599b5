"""What small codes lose by themselves: each query's exact first documents, ranked by codes alone.

    python benchmarks/code_maps.py CORPUS [--limit 20000] [--num-queries 800] [--centroids 2048,4096,8192]

Query i of the corpus was written for the document whose name it has. Codes are made as ``fit`` makes them, balanced by training
queries or by document tokens, and after a random rotation alone; nothing else is learned.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import known_answers
import numpy as np

from lemur_ann import _core
from lemur_ann.candidates.look import CodeMaps
from lemur_ann.documents import TokenStore, opened, read_queries
from lemur_ann.documents.coded import Codebook
from lemur_ann.documents.coded_store import CodedStore
from lemur_ann.documents.inputs import read_documents
from lemur_ann.insight.metrics import recall
from lemur_ann.insight.relevance import relevance
from lemur_ann.learning.codes import HEADROOM, NUM_TOKENS, learn_codes
from lemur_ann.learning.reduction import random_rotation
from lemur_ann.learning.second_look import learn_centroids, sample_directions

FIRST, K, TRAINING = 120, 10, 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--limit", type=int, default=20_000)
    parser.add_argument("--num-queries", type=int, default=800)
    parser.add_argument("--centroids", default="2048,4096,8192")
    arguments = parser.parse_args()
    known = known_answers.read(arguments.corpus, arguments.limit, arguments.num_queries)
    queries, grades = known.batch.as_float32, known.grades
    store = TokenStore()
    for batch in read_documents(known.documents.select(["tokens"])):
        store = store.extended(batch.tokens, batch.offsets)
    del known
    training = read_queries(opened(arguments.corpus / "queries_train.parquet")).take(range(TRAINING)).as_float32.tokens
    first = []
    for i in range(len(queries)):
        own = queries.take([i])
        (scores,) = _core.scores(own.tokens, own.offsets, store.documents, 2)
        first.append(_core.top_k(scores, FIRST))
    exact = [found[:K].tolist() for found in first]
    every, random = np.arange(len(store)), np.random.default_rng(1)
    own_tokens = sample_directions(store, every, NUM_TOKENS, random).astype(np.float32)
    for count in map(int, arguments.centroids.split(",")):
        centroids = learn_centroids(store, every, count, np.random.default_rng(1), 2)
        rotation = random_rotation(store.dim or 1, np.random.default_rng(2))
        largest = np.abs(own_tokens @ rotation.T).max() * HEADROOM / 127
        kinds = {
            "rotation": CodeMaps(rotation, rotation, np.array([largest], np.float32)),
            "by document tokens": learn_codes(store, every, centroids, own_tokens, 0),
            "by query tokens": learn_codes(store, every, centroids, training, 0),
        }
        for kind, maps in kinds.items():
            for bits in (4, 3, 2, 1):
                book = Codebook(centroids, maps.token_map, maps.query_map, float(maps.unit[0]), bits)
                parts = [book.coded(chunk.tokens, chunk.offsets, num_threads=2) for chunk in store.chunks]
                coded = CodedStore(book, parts, store.dtype).documents
                bounds = FIRST * np.arange(len(queries) + 1)
                flat = np.concatenate(first)
                scores = _core.candidate_scores(queries.tokens, queries.offsets, coded, flat, bounds, 2).reshape(-1, FIRST)
                found = [own[np.argsort(-by, kind="stable")[:K]].tolist() for own, by in zip(first, scores, strict=True)]
                measures = relevance(found, exact, grades, K, _Rows(len(store))).measures
                losses = ", ".join(
                    f"{name} {100 * measures[name].loss:+.1f}% ({100 * measures[name].loss_interval[0]:+.1f} to "
                    f"{100 * measures[name].loss_interval[1]:+.1f})"
                    for name in ("success@10", "MRR@10")
                )
                print(
                    f"{count} centroids, {kind}, {bits} bits: recall@10 {recall(found, exact):.3f}; lost: {losses}", flush=True
                )


class _Rows:
    """Rows as ids."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and 0 <= row < self._count


if __name__ == "__main__":
    main()
