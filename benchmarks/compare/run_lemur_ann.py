"""lemur_ann at its defaults: fit, then the graph's beam and the number of candidates."""

from __future__ import annotations

import time
from pathlib import Path

import all_cores
import common
import numpy as np

SETTINGS = (
    *((80, 50), (100, 70), (120, 90), (150, 100), (150, 120), (200, 140), (250, 160), (300, 200), (300, 250)),
    *((400, 300), (600, 400), (800, 600), (1200, 800)),
)

BATCH_SETTING = (150, 120)


def build(corpus: common.Corpus, folder: Path) -> None:
    import lemur_ann

    documents, queries = corpus.documents, corpus.training_queries
    index = lemur_ann.LemurIndex()
    index.fit(documents.tokens, queries.tokens, offsets=documents.offsets, query_offsets=queries.offsets)
    index.save(folder)


def run(corpus: common.Corpus, work: Path) -> dict:
    import lemur_ann

    folder, seconds = common.built(work, "lemur_ann", lambda path: all_cores.call(build, corpus, path))
    index = lemur_ann.LemurIndex.load(folder, verify=False)
    in_memory(index)

    def search(beam: int, count: int):
        return lambda query, k: index.search(query, k=k, num_candidates=count, ef_search=beam, shortlist=0, num_threads=1).ids

    settings = {f"ef_search {beam}, {count} candidates": search(beam, count) for beam, count in SETTINGS}
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    return {
        "version": lemur_ann.__version__,
        "isa": lemur_ann.maxsim.active_isa(),
        "options": vars(index.options),
        "build_s": seconds,
        "build_threads": common.ALL_CORES,
        "bytes": sizes,
        "curve": common.curve(corpus, settings),
        "throughput": throughput(index, corpus.queries),
    }


def throughput(index, queries: list[np.ndarray]) -> list[dict]:
    """Queries a second in one call with all of them, and one by one: the same hits."""
    beam, count = BATCH_SETTING
    options = {"k": 10, "num_candidates": count, "ef_search": beam}
    rows, first = [], None
    for threads in (1, common.ALL_CORES):
        for form in ("one by one", "one call"):
            best = 0.0
            for _ in range(3):
                start = time.perf_counter()
                if form == "one call":
                    hits = index.search(queries, num_threads=threads, **options)
                else:
                    hits = [index.search(query, num_threads=threads, **options) for query in queries]
                best = max(best, len(queries) / (time.perf_counter() - start))
            first = hits if first is None else first
            if hits != first:
                raise AssertionError(f"hits of {form}, {threads} threads, differ")
            rows.append({"form": form, "threads": threads, "queries_per_s": best})
            print(f"  {form}, {threads} threads: {best:,.0f} queries a second", flush=True)
    return rows


def in_memory(index) -> None:
    """Every page of the mapped files read once."""
    for chunk in index.snapshot.store.chunks:
        np.max(chunk.tokens.view(np.uint16))
        if chunk.codes is not None:
            np.max(chunk.codes[0])


if __name__ == "__main__":
    common.main("lemur_ann", run, __doc__)
