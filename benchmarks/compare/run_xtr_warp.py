"""xtr-warp-rs, WARP in Rust: clusters, residual codes and imputed scores, by itself and before lemur_ann's exact rerank.

    pip install xtr-warp-rs

Each release is for one release of torch and installs it, so it wants an environment of its own. Its index is built as it is by
default, and searched on the CPU; "as it chooses" leaves all of a search's options to it.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import all_cores
import common
import exact_rerank
import numpy as np

PROBES = (None, 8, 16, 32, 64)  # clusters per query token; None: as it chooses
CANDIDATES = (200, 400, 800)


def build(folder: Path, corpus: common.Corpus) -> None:
    import torch
    from xtr_warp import XTRWarp

    torch.set_num_threads(common.ALL_CORES)
    stored = corpus.documents
    XTRWarp(str(folder)).create([torch.tensor(stored[i]) for i in range(len(stored))], device="cpu", show_progress=False)


def run(corpus: common.Corpus, work: Path) -> dict:
    import torch
    from xtr_warp import XTRWarp

    folder, seconds = common.built(work, "xtr_warp", lambda path: all_cores.call(build, path, corpus))
    torch.set_num_threads(1)
    index = XTRWarp(str(folder)).load(device="cpu")
    stored = corpus.documents
    rerank = exact_rerank.over(stored)

    def search(probes: int | None, count: int | None = None):
        def one(query: np.ndarray, k: int) -> np.ndarray:
            hits = index.search(torch.from_numpy(query)[None], count or k, num_threads=1, nprobe=probes, show_progress=False)
            found = np.array([document for document, _ in hits[0]], np.int64)
            return rerank(query, found, k) if count else found

        return one

    settings = {}
    for probes in PROBES:
        name = f"{probes} clusters" if probes else "as it chooses"
        settings[name] = search(probes)
        for count in CANDIDATES:
            settings[f"{name}, exact rerank of {count}"] = search(probes, count)
    return {
        "version": version("xtr-warp-rs"),
        "torch": torch.__version__,
        "build_s": seconds,
        "build_threads": common.ALL_CORES,
        "bytes": {"index": common.size_of(folder), "tokens for the rerank": stored.tokens.nbytes},
        "curve": common.curve(corpus, settings),
    }


if __name__ == "__main__":
    common.main("XTR-WARP", run, __doc__)
