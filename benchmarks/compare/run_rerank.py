"""The exact rerank alone: 200 given candidates a query, of which 100 are its exact best, on one thread.

    pip install maxsim-cpu

lemur_ann's with and without int8 codes of the tokens, the reference's (github.com/ejaasaari/lemur) and maxsim-cpu's. Those
that are not installed are left out, with the reason. "same_hits" is the share of the exact top 10 that a kernel's top 10 has;
the time is the mean over the queries, in the quickest of three rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import common
import numpy as np

K, NUM_RANDOM, ROUNDS = 10, 100, 3
Rerank = Callable[[np.ndarray, np.ndarray], np.ndarray]  # query and candidates to the indices of the best


def candidates_of(corpus: common.Corpus) -> list[np.ndarray]:
    """Of each query, its exact best 100 documents and as many others, in random order."""
    rng = np.random.default_rng(0)
    chosen = []
    for exact in corpus.exact:
        others = np.setdiff1d(np.arange(len(corpus.documents)), exact)
        chosen.append(rng.permutation(np.concatenate([exact, rng.choice(others, NUM_RANDOM, replace=False)])))
    return chosen


def lemur_ann_rerank(corpus: common.Corpus, coded: bool) -> Rerank:
    from lemur_ann import _core

    stored = corpus.documents
    codes = [_core.token_codes(stored.tokens, common.ALL_CORES)] if coded else []
    documents = _core.Documents([(stored.tokens, stored.offsets)], codes)

    def rerank(query: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        found = np.sort(candidates)
        return _core.rerank(query, np.array([0, len(query)]), documents, found, np.array([0, len(found)]), K, 1)[0][0]

    return rerank


def reference_rerank(corpus: common.Corpus) -> Rerank:
    from lemur.maxsim import MaxSim

    stored = corpus.documents
    tokens, counts = stored.tokens.astype(np.float32), stored.counts.astype(np.int32)
    kernel = MaxSim(tokens, counts)  # which reads them where they lie, and does not keep them alive

    def rerank(query: np.ndarray, candidates: np.ndarray, _alive: tuple = (tokens, counts)) -> np.ndarray:
        return kernel.rerank_subset(query, np.array([len(query)], np.int32), K, candidates[None].astype(np.int32))[0]

    return rerank


def maxsim_cpu_rerank(corpus: common.Corpus) -> Rerank:
    import maxsim_cpu

    stored = corpus.documents
    tokens = common.Ragged(stored.tokens.astype(np.float32), stored.offsets)

    def rerank(query: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        scores = np.asarray(maxsim_cpu.maxsim_scores_variable(query, [tokens[i] for i in candidates]))
        return candidates[np.argsort(-scores)[:K]]

    return rerank


def kernels(corpus: common.Corpus) -> Iterator[tuple[str, Callable[[], Rerank]]]:
    yield "lemur_ann", lambda: lemur_ann_rerank(corpus, coded=False)
    yield "lemur_ann, int8 codes", lambda: lemur_ann_rerank(corpus, coded=True)
    yield "reference", lambda: reference_rerank(corpus)
    yield "maxsim-cpu", lambda: maxsim_cpu_rerank(corpus)


def measured(name: str, rerank: Rerank, corpus: common.Corpus, candidates: list[np.ndarray]) -> dict:
    for query, own in list(zip(corpus.queries, candidates, strict=True))[: common.WARM_UP]:
        rerank(query, own)
    rounds, shares = [], []
    for _ in range(ROUNDS):
        ms = []
        for query, own, exact in zip(corpus.queries, candidates, corpus.exact, strict=True):
            start = time.perf_counter()
            best = rerank(query, own)
            ms.append((time.perf_counter() - start) * 1e3)
            shares.append(len(set(best.tolist()) & set(exact[:K].tolist())) / K)
        rounds.append(float(np.mean(ms)))
    print(f"  {name}: {min(rounds):.3f} ms, {np.mean(shares):.4f} of the exact top {K}", flush=True)
    return {"name": name, "mean_ms": min(rounds), "same_hits": float(np.mean(shares))}


def run(corpus: common.Corpus, work: Path) -> dict:
    import lemur_ann

    candidates = candidates_of(corpus)
    results = []
    for name, made in kernels(corpus):
        try:
            rerank = made()
        except ImportError as error:
            print(f"  {name}: not installed: {error}")
            results.append({"name": name, "reason": f"not installed: {error}"})
            continue
        results.append(measured(name, rerank, corpus, candidates))
        if name == "maxsim-cpu":
            results[-1]["version"] = version("maxsim-cpu")
        del rerank
    return {
        "version": lemur_ann.__version__,
        "isa": lemur_ann.maxsim.active_isa(),
        "num_candidates": len(candidates[0]),
        "tokens_per_document": float(corpus.documents.counts.mean()),
        "kernels": results,
    }


if __name__ == "__main__":
    common.main("rerank alone", run, __doc__)
