"""TACHIOM: token-aware clustering and product quantisation (arXiv 2604.28142), by itself and before lemur_ann's exact rerank.

    pip install tachiom tokenizers

Where the C library is older than its wheels ask for, unpack one onto the path instead:

    pip download --no-deps --only-binary :all: --platform manylinux_2_39_x86_64 tachiom
    python -m zipfile -e tachiom-*.whl PATH/site-packages

It clusters the vectors of each vocabulary token by themselves, so it needs the token ids, which the corpus does not hold. They
are made again from the column 'text' with the tokenizer that made the corpus, tokenizer.json in the folder that
LATE_INTERACTION_CACHE names, by default ~/.cache/late-interaction-corpus/colbert.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import all_cores
import common
import exact_rerank
import numpy as np
import pyarrow.parquet as pq

CENTROIDS, TOKENS_PER_CENTROID = 65_536, 39  # the second is the least that it gives one by itself
START, MARKER, END = 101, 2, 102  # [CLS] [D] text [SEP]
NOTHING = np.iinfo(np.uint32).max  # found where fewer than k are
# centroids per query token, documents scored with all codes, the centroid graph's beam, alpha (None: no document is pruned)
SEARCHES = ((10, 250, 20, 0.45), (20, 500, 30, 0.45), (40, 1000, 60, 0.45), (80, 2000, 120, 0.3), (160, 4000, 240, None))
CANDIDATES = (100, 200, 400, 1600)


def token_ids(texts: list[str], counts: np.ndarray) -> np.ndarray | None:
    """uint32 (total_tokens,), or None where there is no tokenizer or it is not the one that made the corpus."""
    from tokenizers import Tokenizer

    cache = Path(os.environ.get("LATE_INTERACTION_CACHE", Path.home() / ".cache" / "late-interaction-corpus" / "colbert"))
    if not (cache / "tokenizer.json").exists():
        return None
    tokenizer = Tokenizer.from_file(str(cache / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    longest = int(counts.max()) - 3
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    rows = [[START, MARKER, *encoding.ids[:longest], END] for encoding in encodings]
    return np.concatenate(rows).astype(np.uint32) if list(map(len, rows)) == counts.tolist() else None


def build(folder: Path, centroids: int | None) -> None:
    import tachiom

    files = [folder / f"{name}.npy" for name in ("vectors", "token_ids", "doclens")]
    index = tachiom.Tachiom.build(*map(str, files), total_centroids=centroids)
    index.save(str(folder / "index.bin"))
    for file in files:
        file.unlink()


def run(corpus: common.Corpus, work: Path) -> dict:
    import tachiom

    stored = corpus.documents

    def prepare_and_build(folder: Path) -> None:
        np.save(folder / "vectors.npy", stored.tokens.astype(np.float16))
        np.save(folder / "token_ids.npy", ids.astype(np.int64))
        np.save(folder / "doclens.npy", stored.counts.astype(np.int32))
        wanted = CENTROIDS if len(stored.tokens) >= CENTROIDS * TOKENS_PER_CENTROID else None  # None: as many as it recommends
        all_cores.call(build, folder, wanted)

    if not (work / "tachiom.json").exists():
        texts = pq.read_table(corpus._folder / "docs.parquet", columns=["text"]).column("text").to_pylist()
        ids = token_ids(texts, stored.counts)
        if ids is None:
            return {"reason": "it needs token ids, and there is no tokenizer.json that gives as many as there are tokens"}
    folder, seconds = common.built(work, "tachiom", prepare_and_build)
    index = tachiom.Tachiom.load(str(folder / "index.bin"))
    rerank = exact_rerank.over(stored)

    def search(probes: int, scored: int, beam: int, alpha: float | None, count: int | None = None):
        def one(query: np.ndarray, k: int) -> np.ndarray:
            found = index.search(query, count or k, k_centroids=probes, k_docs_to_score=scored, ef_search=beam, alpha=alpha)[1]
            found = found[found != NOTHING].astype(np.int64)
            return rerank(query, found, k) if count else found

        return one

    settings = {}
    for probes, scored, beam, alpha in SEARCHES:
        name = f"{probes} centroids, {scored} documents scored, ef {beam}, alpha {alpha}"
        settings[name] = search(probes, scored, beam, alpha)
        for count in (c for c in CANDIDATES if scored / 5 <= c <= scored):
            settings[f"{name}, exact rerank of {count}"] = search(probes, scored, beam, alpha, count)
    return {
        "version": version("tachiom"),
        "build_s": seconds,
        "build_threads": common.ALL_CORES,
        "centroids": index.n_centroids,
        "bytes": {"index": common.size_of(folder), "tokens for the rerank": stored.tokens.nbytes},
        "curve": common.curve(corpus, settings),
    }


if __name__ == "__main__":
    common.main("TACHIOM", run, __doc__)
