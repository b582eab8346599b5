"""Token maxima over a fixed sample of tokens: what document weights are solved from, and the linear maps that follow.

On a CPU they come from the C++ kernels. On another device they are computed there by torch, from the same int8 codes and exact
sums of them, so with the same bits, and stay there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lemur_ann import _core
from lemur_ann.memory import DOCUMENTS_PER_BLOCK
from lemur_ann.tokens import TokenStore

LARGEST_CODE = 127
SMALLEST = 1e-30  # as in cpp/src/int8.cpp: a token of smaller components counts as zero
PRODUCTS_PER_STEP = 2**26  # inner products on a device at a time: 256 MiB


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
        for begin in range(0, len(indices), self.documents_per_block):
            block = slice(begin, min(begin + self.documents_per_block, len(indices)))
            maxima = token_maxima(self.sample_tokens, store, indices[block], self.precision, self.device, num_threads)
            maxima -= self.mean
            yield block, maxima

    def projected(
        self, store: TokenStore, indices: npt.NDArray[np.int64], matrix: npt.NDArray[np.float32], num_threads: int = 1
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """The same times ``matrix`` (num_sample_tokens, n): (slice of ``indices``, float32 (block, n)).

        On a CPU a document's row has the same bits whatever the block it is in and the number of threads.
        """
        there = None if self.device == "cpu" else torch.from_numpy(matrix).to(self.device)
        for block, maxima in self.blocks(store, indices, num_threads):
            if there is None:
                yield block, _core.products(maxima.numpy(), matrix, num_threads).astype(np.float32)
            else:
                yield block, (maxima @ there).cpu().numpy()


def token_maxima(
    sample_tokens: npt.NDArray[np.float32],
    store: TokenStore,
    indices: npt.NDArray[np.int64],
    precision: str,
    device: str,
    num_threads: int = 1,
) -> torch.Tensor:
    """float32 (len(indices), num_sample_tokens) on the device: by the C++ kernels for "cpu", by torch elsewhere."""
    if device == "cpu":
        documents = store.select(indices)
        return torch.from_numpy(_core.token_maxima(sample_tokens, documents, num_threads, precision, by_document=True))
    tokens, offsets = store.gather(indices)
    return torch_token_maxima(torch.from_numpy(sample_tokens).to(device), tokens, offsets, precision)


@torch.inference_mode()
def torch_token_maxima(
    x: torch.Tensor, tokens: npt.NDArray[Any], offsets: npt.NDArray[np.int64], precision: str
) -> torch.Tensor:
    """Token maxima in torch, on the device of ``x``: float32 (num_documents, num_x).

    Args:
        x: float32 (num_x, dim).
        tokens: float16 or float32 (num_tokens, dim).
        offsets: (num_documents + 1,), every document with a token at least.
        precision: "int8" or "float32".
    """
    out = torch.empty((len(offsets) - 1, len(x)), device=x.device)
    x_codes, x_scales = _quantise(x) if precision == "int8" else (x, None)
    begin = 0
    while begin < len(out):
        limit = offsets[begin] + max(PRODUCTS_PER_STEP // len(x), 1)
        end = max(int(np.searchsorted(offsets, limit, side="right")) - 1, begin + 1)
        rows = torch.from_numpy(tokens[offsets[begin] : offsets[end]].astype(np.float32)).to(x.device)
        codes, scales = _quantise(rows) if precision == "int8" else (rows, None)
        products = codes @ x_codes.T  # of codes: integers below 2^24, exact in float32 and in TF32 alike
        if scales is not None:
            products *= scales[:, None]
        lengths = torch.from_numpy(np.diff(offsets[begin : end + 1])).to(x.device)
        out[begin:end] = torch.segment_reduce(products, "max", lengths=lengths, axis=0)
        begin = end
    if x_scales is not None:
        out *= x_scales
    return out


def _quantise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes, as float32, and the scale of each row: what cpp/src/int8.cpp computes."""
    largest = rows.abs().amax(1)
    is_zero = ~(largest > SMALLEST)
    # a true division: torch turns number / tensor into number * reciprocal, which rounds twice
    inverse = torch.where(is_zero, 0.0, torch.full_like(largest, LARGEST_CODE) / largest)
    codes = torch.round(rows.double() * inverse.double()[:, None]).float()
    return codes, torch.where(is_zero, 1.0, largest / LARGEST_CODE)
