"""Microseconds to score a document by its small codes, for each width and instruction set.

    python benchmarks/code_speed.py [--num-documents 6000] [--num-tokens 80] [--dim 128]

Random tokens, one thread, a query of 32 tokens and a rerank of 2,000 documents here and there; the quickest of several.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lemur_ann import _core
from lemur_ann.learning.reduction import random_rotation
from lemur_ann.options import SMALL_BITS

NUM_CENTROIDS, NUM_CANDIDATES, QUERY_TOKENS, ROUNDS = 4096, 2000, 32, 9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-documents", type=int, default=6000)
    parser.add_argument("--num-tokens", type=int, default=80)
    parser.add_argument("--dim", type=int, default=128)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)

    def unit(count: int) -> np.ndarray:
        rows = random.normal(size=(count, arguments.dim)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    centroids, rotation = unit(NUM_CENTROIDS), random_rotation(arguments.dim, random)
    tokens, query = unit(arguments.num_documents * arguments.num_tokens), unit(QUERY_TOKENS)
    offsets = np.arange(arguments.num_documents + 1) * arguments.num_tokens
    ids = _core.Centroids(centroids).nearest(tokens, 2)
    step = float(np.abs(centroids @ rotation.T).max() * 1.3 / 127)
    kinds = {"int8": _core.Documents([(tokens, offsets)], [_core.token_codes(tokens, 2)])}
    kept = []  # what the documents read
    for name, bits in SMALL_BITS.items():
        codec = _core.Codec(centroids, rotation, rotation, step, bits)
        codes, scales, _ = codec.encode(tokens, ids, 2)
        kept.append(_core.SmallDocuments(codec, [(codes, ids, scales, None, offsets)]))
        kinds[name] = _core.Documents([], [], kept[-1])
    candidates = np.sort(random.permutation(arguments.num_documents)[:NUM_CANDIDATES])
    bounds, ends = np.array([0, len(candidates)]), np.array([0, QUERY_TOKENS])
    for isa in _core.supported_isas():
        _core.force_isa(isa)
        figures = []
        for name, documents in kinds.items():
            times = []
            for _ in range(ROUNDS if isa != "scalar" else 1):
                begin = time.perf_counter()
                _core.rerank(query, ends, documents, candidates, bounds, 1, 1)
                times.append(time.perf_counter() - begin)
            figures.append(f"{name} {1e6 * min(times) / len(candidates):.2f}")
        print(f"{isa}: " + ", ".join(figures), flush=True)


if __name__ == "__main__":
    main()
