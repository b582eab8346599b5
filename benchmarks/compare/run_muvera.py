"""MUVERA: fixed dimensional encodings (arXiv 2405.19504) in plain NumPy, and lemur_ann's exact float32 rerank.

Tokens fall into 2^k_sim buckets by the signs of random projections. A query sums its tokens by bucket; a document averages
them, and fills an empty bucket with its token that is nearest in Hamming distance. Each bucket is projected to d_proj
dimensions by random signs, and all of it is repeated R times. The encodings are scanned exactly in float32.

"centred" takes the mean document token off all tokens first, of documents and of queries: it is long, so that without it most
tokens share a bucket's signs, and its projection is most of the noise. Nothing to install. The bytes and the time to build
are those of the largest variant; those of each are under "variants".
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import common
import exact_rerank
import numpy as np

TOKENS_AT_ONCE = 20_000
CANDIDATES = (100, 400, 1600)


@dataclass(frozen=True)
class Encoder:
    """Random directions, drawn once, that queries and documents share."""

    repetitions: int
    k_sim: int
    d_proj: int
    directions: np.ndarray  # (dim, repetitions * k_sim)
    signs: np.ndarray  # (dim, repetitions * d_proj)
    mean: np.ndarray  # (dim,), zero for raw tokens

    @classmethod
    def drawn(cls, repetitions: int, k_sim: int, d_proj: int, mean: np.ndarray) -> Encoder:
        rng = np.random.default_rng(0)
        directions = rng.standard_normal((len(mean), repetitions * k_sim), dtype=np.float32)
        signs = rng.choice(np.array([-1, 1], np.float32), (len(mean), repetitions * d_proj)) / np.float32(np.sqrt(d_proj))
        return cls(repetitions, k_sim, d_proj, directions, signs, mean)

    @property
    def num_buckets(self) -> int:
        return 2**self.k_sim

    @property
    def dim(self) -> int:
        return self.repetitions * self.num_buckets * self.d_proj

    def buckets(self, centred: np.ndarray) -> np.ndarray:
        """(num_tokens, repetitions)."""
        bits = (centred @ self.directions > 0).reshape(len(centred), self.repetitions, self.k_sim)
        return bits @ (1 << np.arange(self.k_sim))

    def projected(self, tokens: np.ndarray) -> np.ndarray:
        """(num_tokens, repetitions, d_proj)."""
        return (tokens @ self.signs).reshape(len(tokens), self.repetitions, self.d_proj)

    def query(self, tokens: np.ndarray) -> np.ndarray:
        """(dim,)."""
        centred = tokens - self.mean
        cells = self.buckets(centred) + np.arange(self.repetitions) * self.num_buckets
        sums = np.zeros((self.repetitions * self.num_buckets, self.d_proj), np.float32)
        np.add.at(sums, cells, self.projected(centred))
        return sums.reshape(-1)

    def documents(self, tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """(num_documents, dim), of documents that all have tokens."""
        count, firsts = len(offsets) - 1, offsets[:-1]
        centred = tokens.astype(np.float32) - self.mean
        buckets, projected = self.buckets(centred), self.projected(centred)
        owners = np.repeat(np.arange(count), np.diff(offsets))
        rows = np.arange(len(tokens))
        every = np.arange(self.num_buckets)
        encodings = np.empty((count, self.repetitions, self.num_buckets, self.d_proj), np.float32)
        for r in range(self.repetitions):
            # the nearest token of each bucket first, the earlier one among equals; means then overwrite it where there are any
            distances = np.bitwise_count(buckets[:, r, None] ^ every).astype(np.int64)
            nearest = np.minimum.reduceat(distances * len(tokens) + rows[:, None], firsts, axis=0) % len(tokens)
            encodings[:, r] = projected[nearest, r]
            cells = owners * self.num_buckets + buckets[:, r]
            order = np.argsort(cells, kind="stable")
            own, begins, sizes = np.unique(cells[order], return_index=True, return_counts=True)
            sums = np.add.reduceat(projected[order, r], begins, axis=0)
            encodings[own // self.num_buckets, r, own % self.num_buckets] = sums / sizes[:, None]
        return encodings.reshape(count, -1)


def encoded(encoder: Encoder, stored: common.Ragged, path: Path) -> None:
    """The encodings of all documents in a .npy file."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (len(stored), encoder.dim))

    def fill(begin: int, end: int) -> None:
        bounds = stored.offsets[begin : end + 1]
        out[begin:end] = encoder.documents(stored.tokens[bounds[0] : bounds[-1]], bounds - bounds[0])

    with ThreadPoolExecutor(common.ALL_CORES) as pool:
        list(pool.map(lambda part: fill(*part), parts(stored.offsets)))
    out.flush()


def parts(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of documents with about TOKENS_AT_ONCE tokens each."""
    begin, count = 0, len(offsets) - 1
    while begin < count:
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + TOKENS_AT_ONCE, side="right")) - 1)
        yield begin, end
        begin = end


def run(corpus: common.Corpus, work: Path) -> dict:
    stored = corpus.documents
    rerank = exact_rerank.over(stored)
    zero = np.zeros(stored.tokens.shape[1], np.float32)
    mean = stored.tokens.mean(axis=0, dtype=np.float32)
    points: list[dict] = []
    variants = {}
    for repetitions, k_sim, d_proj in ((10, 4, 16), (20, 5, 16)):
        for kind, middle in (("raw", zero), ("centred", mean)):
            encoder = Encoder.drawn(repetitions, k_sim, d_proj, middle)
            label = f"{encoder.dim} {kind}"
            folder, seconds = common.built(
                work, f"muvera-{encoder.dim}-{kind}", lambda path, e=encoder: encoded(e, stored, path / "encodings.npy")
            )
            encodings = np.load(folder / "encodings.npy")
            variants[label] = {"build_s": seconds, "bytes": encodings.nbytes}

            def search(count: int, encoder: Encoder = encoder, encodings: np.ndarray = encodings):
                count = min(count, len(encodings))

                def one(query: np.ndarray, k: int) -> np.ndarray:
                    found = np.argpartition(encodings @ encoder.query(query), -count)[-count:]
                    return rerank(query, found, k)

                return one

            points += common.curve(corpus, {f"{label}, {count} candidates": search(count) for count in CANDIDATES})
            del encodings, search
    return {
        "version": np.__version__,
        "build_s": variants[label]["build_s"],
        "build_threads": common.ALL_CORES,
        "bytes": {"encodings": variants[label]["bytes"], "tokens": stored.tokens.nbytes},
        "variants": variants,
        "curve": points,
    }


if __name__ == "__main__":
    common.main("MUVERA", run, __doc__)
