"""fast-plaid, PLAID in Rust: clusters and residual codes, by itself and before lemur_ann's exact rerank.

    pip install fast-plaid

Each release is for one release of torch and installs it, so it wants an environment of its own. Its index is built as it is by
default, and searched on the CPU.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import all_cores
import common
import exact_rerank
import numpy as np

# clusters probed per query token, documents whose codes are all scored: the second is the default
SEARCHES = ((4, 1024), (8, 4096), (16, 8192))
CANDIDATES = 200


def build(folder: Path, corpus: common.Corpus) -> None:
    import torch
    from fast_plaid.search import FastPlaid

    torch.set_num_threads(common.ALL_CORES)
    stored = corpus.documents
    FastPlaid(index=str(folder), device="cpu").create([torch.tensor(stored[i]) for i in range(len(stored))])


def run(corpus: common.Corpus, work: Path) -> dict:
    import torch
    from fast_plaid.search import FastPlaid

    folder, seconds = common.built(work, "fast_plaid", lambda path: all_cores.call(build, path, corpus))
    torch.set_num_threads(1)
    index = FastPlaid(index=str(folder), device="cpu")
    stored = corpus.documents
    rerank = exact_rerank.over(stored)

    def search(probes: int, scored: int, count: int | None = None):
        def one(query: np.ndarray, k: int) -> np.ndarray:
            hits = index.search(
                torch.from_numpy(query)[None], count or k, n_full_scores=scored, n_ivf_probe=probes, show_progress=False
            )
            found = np.array([document for document, _ in hits[0]], np.int64)
            return rerank(query, found, k) if count else found

        return one

    settings = {}
    for probes, scored in SEARCHES:
        name = f"{probes} clusters, {scored} full scores"
        settings[name] = search(probes, scored)
        settings[f"{name}, exact rerank of {CANDIDATES}"] = search(probes, scored, CANDIDATES)
    return {
        "version": version("fast-plaid"),
        "torch": torch.__version__,
        "build_s": seconds,
        "build_threads": common.ALL_CORES,
        "bytes": {"index": common.size_of(folder), "tokens for the rerank": stored.tokens.nbytes},
        "curve": common.curve(corpus, settings),
    }


if __name__ == "__main__":
    common.main("fast-plaid", run, __doc__)
