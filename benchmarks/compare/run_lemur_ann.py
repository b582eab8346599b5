"""lemur_ann at its defaults: fit, then the graph's beam and the number of candidates."""

from __future__ import annotations

from pathlib import Path

import all_cores
import common
import numpy as np

SETTINGS = (
    *((100, 50), (150, 70), (200, 80), (250, 90), (300, 100), (350, 120), (400, 140), (500, 160), (600, 200)),
    *((800, 250), (1200, 400), (2400, 600)),
)


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
        return lambda query, k: index.search(query, k=k, num_candidates=count, ef_search=beam, num_threads=1).ids

    # ids are document indices here; a rerank of fewer than k documents cannot find k
    settings = {f"ef_search {beam}, {count} candidates": search(beam, count) for beam, count in SETTINGS}
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    return {
        "version": lemur_ann.__version__,
        "isa": lemur_ann.maxsim.active_isa(),
        "options": dict(vars(index.options).items()),
        "build_s": seconds,
        "build_threads": common.ALL_CORES,
        "bytes": sizes,
        "curve": common.curve(corpus, settings),
    }


def in_memory(index) -> None:
    """Every page of the mapped files read once."""
    for chunk in index._store._chunks:
        np.max(chunk.tokens.view(np.uint16))
        if chunk.codes is not None:
            np.max(chunk.codes[0])


if __name__ == "__main__":
    common.main("lemur_ann", run, __doc__)
