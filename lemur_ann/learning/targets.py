"""Token maxima over a fixed sample of tokens: what document weights are solved from, and the linear maps that follow.

On a CPU they come from the C++ kernels, and torch is not imported to encode a document. On another device they are computed
there by torch (torch_targets.py), with the same bits in int8, and stay there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.learning.memory import DOCUMENTS_PER_BLOCK

if TYPE_CHECKING:
    import torch


class Targets:
    """The largest inner product of each sample token with a token of each document, less one mean.

    Args:
        sample_tokens: float32 (num_sample_tokens, dim), drawn from the queries' distribution.
        mean: subtracted.
        precision: "int8", which gives the same bits on every machine, or "float32".
        documents_per_block: bounds the matrix of maxima: 64 MiB for 16,384 sample tokens and 1024 documents.
        device: where to compute: "cpu" means the C++ kernels.
    """

    def __init__(
        self,
        sample_tokens: npt.NDArray[np.float32],
        mean: float,
        precision: str = "int8",
        documents_per_block: int = DOCUMENTS_PER_BLOCK,
        device: str = "cpu",
    ) -> None:
        self.sample_tokens = np.ascontiguousarray(sample_tokens, dtype=np.float32)
        self.mean = mean
        self.precision = precision
        self.documents_per_block = documents_per_block
        self.device = device

    def blocks(
        self, store: TokenStore, indices: npt.NDArray[np.int64], num_threads: int = 1
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Block by block: (slice of ``indices``, float32 (block, num_sample_tokens) on the device).

        Args:
            store: where the documents are.
            indices: ascending document indices.
            num_threads: threads to use on a CPU.
        """
        for block in self._cuts(len(indices)):
            maxima = token_maxima(self.sample_tokens, store, indices[block], self.precision, self.device, num_threads)
            maxima -= self.mean
            yield block, maxima

    def projected(
        self,
        store: TokenStore,
        indices: npt.NDArray[np.int64],
        matrix: npt.NDArray[np.float32] | _core.Columns,
        num_threads: int = 1,
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """The same times ``matrix`` (num_sample_tokens, n): (slice of ``indices``, float32 (block, n)).

        On a CPU a document's row has the same bits whatever the block it is in and the number of threads.
        """
        if self.device == "cpu":
            columns = matrix if isinstance(matrix, _core.Columns) else _core.Columns(matrix, num_threads)
            for block in self._cuts(len(indices)):
                maxima = _cpu_maxima(self.sample_tokens, store, indices[block], self.precision, num_threads)
                maxima -= np.float32(self.mean)
                yield block, _core.products(maxima, columns, num_threads).astype(np.float32)
            return
        import torch

        assert not isinstance(matrix, _core.Columns)
        there = torch.from_numpy(matrix).to(self.device)
        for block, on_device in self.blocks(store, indices, num_threads):
            yield block, (on_device @ there).cpu().numpy()

    def _cuts(self, size: int) -> Iterator[slice]:
        for begin in range(0, size, self.documents_per_block):
            yield slice(begin, min(begin + self.documents_per_block, size))


def token_maxima(
    sample_tokens: npt.NDArray[np.float32],
    store: TokenStore,
    indices: npt.NDArray[np.int64],
    precision: str,
    device: str,
    num_threads: int = 1,
) -> torch.Tensor:
    """float32 (len(indices), num_sample_tokens) on the device: by the C++ kernels for "cpu", by torch elsewhere."""
    import torch

    from lemur_ann.learning.torch_targets import torch_token_maxima

    if device == "cpu":
        return torch.from_numpy(_cpu_maxima(sample_tokens, store, indices, precision, num_threads))
    tokens, offsets = store.gather(indices)
    return torch_token_maxima(torch.from_numpy(sample_tokens).to(device), tokens, offsets, precision)


def _cpu_maxima(
    sample_tokens: npt.NDArray[np.float32],
    store: TokenStore,
    indices: npt.NDArray[np.int64],
    precision: str,
    num_threads: int,
) -> npt.NDArray[np.float32]:
    return _core.token_maxima(sample_tokens, store.select(indices), num_threads, precision, by_document=True)
