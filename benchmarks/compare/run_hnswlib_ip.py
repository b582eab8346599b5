"""Stock hnswlib with inner products on the same raw 2048-d weights, and lemur_ann's exact float32 rerank."""

from __future__ import annotations

from pathlib import Path

import all_cores
import common
import exact_rerank
import numpy as np
import weights

SETTINGS = ((100, 100), (200, 200), (400, 200), (800, 200), (800, 400), (1600, 400))


def run(corpus: common.Corpus, work: Path) -> dict:
    import hnswlib
    import torch
    from lemur_ann.adapters.lemur import Lemur

    folder, seconds = common.built(work, "weights", lambda path: all_cores.call(weights.build, corpus, path))
    model = Lemur(index=folder, device="cpu")
    model.load_mlp()
    model.load_w()
    dim = model.W.shape[1]

    def build(path: Path) -> None:  # with lemur_ann's parameters
        graph = hnswlib.Index("ip", dim)
        graph.init_index(len(model.W), M=24, ef_construction=200)
        graph.add_items(model.W.numpy(), num_threads=common.ALL_CORES)
        graph.save_index(str(path / "graph.hnsw"))

    place, graph_seconds = common.built(work, "hnswlib_ip", build)
    graph = hnswlib.Index("ip", dim)
    graph.load_index(str(place / "graph.hnsw"))
    stored = corpus.documents
    rerank = exact_rerank.over(stored)
    torch.set_num_threads(1)

    def search(beam: int, count: int):
        def one(query: np.ndarray, k: int) -> np.ndarray:
            features = model.compute_features((query, np.array([len(query)], np.int32))).numpy()
            graph.set_ef(beam)
            return rerank(query, graph.knn_query(features, k=count, num_threads=1)[0][0], k)

        return one

    settings = {f"ef {beam}, {count} candidates": search(beam, count) for beam, count in SETTINGS}
    return {
        "version": hnswlib.__version__ if hasattr(hnswlib, "__version__") else "",
        "build_s": seconds + graph_seconds,
        "build_threads": common.ALL_CORES,
        "bytes": {"graph": common.size_of(place), "tokens": stored.tokens.nbytes},
        "curve": common.curve(corpus, settings),
    }


if __name__ == "__main__":
    common.main("hnswlib inner product", run, __doc__)
