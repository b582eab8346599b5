"""Token maxima over a fixed sample of tokens: what document weights are solved from, and the linear maps that follow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.memory import DOCUMENTS_PER_BLOCK
from lemur_ann.tokens import TokenStore


class Targets:
    """The largest inner product of each sample token with a token of each document, less one mean.

    Args:
        sample_tokens: float32 (num_sample_tokens, dim), drawn from the queries' distribution.
        mean: subtracted.
        precision: "int8", which gives the same bits on every machine, or "float32".
        documents_per_block: bounds the matrix of maxima: 64 MiB for 16,384 sample tokens and 1024 documents.
    """

    def __init__(
        self,
        sample_tokens: npt.NDArray[np.float32],
        mean: float,
        precision: str = "int8",
        documents_per_block: int = DOCUMENTS_PER_BLOCK,
    ) -> None:
        self.sample_tokens = np.ascontiguousarray(sample_tokens, dtype=np.float32)
        self.mean = mean
        self.precision = precision
        self.documents_per_block = documents_per_block

    def blocks(
        self, store: TokenStore, indices: npt.NDArray[np.int64], num_threads: int = 1
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Block by block: (slice of ``indices``, float32 (block, num_sample_tokens)).

        Args:
            store: where the documents are.
            indices: ascending document indices.
            num_threads: threads to use.
        """
        for begin in range(0, len(indices), self.documents_per_block):
            block = slice(begin, min(begin + self.documents_per_block, len(indices)))
            documents = store.select(indices[block])
            maxima = _core.token_maxima(self.sample_tokens, documents, num_threads, self.precision, by_document=True)
            maxima -= np.float32(self.mean)
            yield block, maxima

    def projected(
        self, store: TokenStore, indices: npt.NDArray[np.int64], matrix: npt.NDArray[np.float32], num_threads: int = 1
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """The same times ``matrix`` (num_sample_tokens, n): (slice of ``indices``, float32 (block, n)).

        A document's row has the same bits whatever the block it is in and the number of threads.
        """
        for block, maxima in self.blocks(store, indices, num_threads):
            yield block, _core.products(maxima, matrix, num_threads).astype(np.float32)
