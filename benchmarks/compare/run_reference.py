"""The reference recipe of LEMUR: features, a scan of the raw 2048-d weights, and its own rerank.

Needs the reference (github.com/ejaasaari/lemur) installed. Its weights are learned by lemur_ann's adapter, which has the same
interface and files and takes a tenth of the time; everything measured is the reference's code.
"""

from __future__ import annotations

from pathlib import Path

import all_cores
import common
import numpy as np
import weights

CANDIDATES = (25, 50, 100, 200, 400)


def run(corpus: common.Corpus, work: Path) -> dict:
    import torch
    from lemur import Lemur
    from lemur.maxsim import MaxSim

    folder, seconds = common.built(work, "weights", lambda path: all_cores.call(weights.build, corpus, path))
    torch.set_num_threads(1)
    model = Lemur(index=folder, device="cpu")
    model.load_mlp()
    model.load_w()
    documents = corpus.documents
    train = documents.tokens.astype(np.float32)
    counts = documents.counts.astype(np.int32)
    rerank = MaxSim(train, counts)

    def search(count: int):
        def one(query: np.ndarray, k: int) -> np.ndarray:
            own = np.array([len(query)], np.int32)
            features = model.compute_features((query, own))
            candidates = torch.topk(features @ model.W.T, count, dim=1).indices.numpy().astype(np.int32)
            return rerank.rerank_subset(query, own, min(k, count), candidates)[0]

        return one

    settings = {f"{count} candidates": search(count) for count in CANDIDATES}
    return {
        "build_s": seconds,
        "build_threads": common.ALL_CORES,
        "bytes": {"weights": model.W.numel() * 4, "tokens": train.nbytes},
        "curve": common.curve(corpus, settings),
    }


if __name__ == "__main__":
    common.main("reference recipe", run, __doc__)
