"""Token maxima in torch, for devices other than the CPU: from the same int8 codes and exact sums of them as the C++ kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

LARGEST_CODE = 127
SMALLEST = 1e-30  # as in cpp/src/int8.cpp: a token of smaller components counts as zero
PRODUCTS_PER_STEP = 2**26  # inner products on a device at a time: 256 MiB


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
