"""The feature map psi: R^dim -> R^num_features, one token at a time; a query's features are the sum over its tokens.

MaxSim orders documents alike for a query and twice that query, and a row of zeros changes no score. So psi is homogeneous:
psi(x) = |x| f(x / |x|), and 0 at 0, where f is the network. Tokens of an encoder that normalises them all have length 1.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

TOKENS_PER_BATCH = 8192

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "mish": nn.Mish}


def check_device(device: str) -> None:
    """ValueError where torch does not see this device."""
    kind, number = torch.device(device).type, torch.device(device).index or 0
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    seen = (kind == "cuda" and number < count) or (kind == "mps" and torch.backends.mps.is_available())
    if kind != "cpu" and not seen:
        raise ValueError(f"device is {device!r}, and torch {torch.__version__} sees no such device here; pass device='cpu'")


def torch_directions(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (n, dim) over their lengths, and these, (n, 1); zeros stay zeros. In two steps: squares may be beyond float32."""
    tiny = torch.finfo(torch.float32).tiny
    largest = x.abs().amax(1, keepdim=True)
    scaled = x / largest.clamp_min(tiny)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / length.clamp_min(tiny), largest * length


class RandomLayer(nn.Module):
    """sqrt(2 / num_features) * activation(x W) with a fixed Gaussian W, (dim, num_features)."""

    def __init__(self, dim: int, num_features: int, activation: str) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(dim, num_features))
        self.activation = ACTIVATIONS[activation]()
        self.scale = math.sqrt(2.0 / num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, dim) to (n, num_features)."""
        return self.scale * self.activation(x @ self.weight)  # type: ignore[no-any-return, operator]


class FeatureMap(nn.Module):
    """One hidden layer (LEMUR, arXiv 2601.21853): Linear, LayerNorm, GELU, learned; or random and fixed.

    Args:
        dim: token dimension.
        num_features: width of the output.
        kind: "trained": Linear, LayerNorm, activation, for each layer. "random": a Gaussian matrix, activation,
            sqrt(2 / num_features), and LayerNorm without parameters.
        hidden_dims, activation: widths of further layers before the last, trained kind only; "gelu", "relu", "silu" or "mish".
            They exist for ``adapters/lemur.py``, which has the reference's interface: an index keeps their defaults.
        homogeneous: as said above; False is the network alone, which the reference has.
    """

    def __init__(
        self,
        dim: int,
        num_features: int,
        *,
        kind: str = "trained",
        hidden_dims: tuple[int, ...] = (),
        activation: str = "gelu",
        homogeneous: bool = False,
    ) -> None:
        super().__init__()
        if kind not in ("trained", "random"):
            raise ValueError(f"kind must be 'trained' or 'random', got {kind!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.config: dict[str, Any] = {
            "dim": dim,
            "num_features": num_features,
            "kind": kind,
            "hidden_dims": list(hidden_dims),
            "activation": activation,
        }
        if homogeneous:
            self.config["homogeneous"] = True
        layers: list[nn.Module] = []
        if kind == "random":
            layers += [RandomLayer(dim, num_features, activation), nn.LayerNorm(num_features, elementwise_affine=False)]
        else:
            widths = [dim, *hidden_dims, num_features]
            for narrow, wide in pairwise(widths):
                layers += [nn.Linear(narrow, wide), nn.LayerNorm(wide), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)

    @property
    def dim(self) -> int:
        """Token dimension."""
        return int(self.config["dim"])

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.layers[0].weight.device  # type: ignore[return-value]

    @property
    def num_features(self) -> int:
        """Width of the output."""
        return int(self.config["num_features"])

    def freeze(self) -> FeatureMap:
        """End of learning: no gradients, and weights laid out as a single query's product reads them fastest."""
        self.requires_grad_(False).eval()
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                layer.weight.data = layer.weight.data.T.contiguous().T
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, dim) to (n, num_features)."""
        if not self.config.get("homogeneous"):
            return self.layers(x)  # type: ignore[no-any-return]
        directions, lengths = torch_directions(x)
        return lengths * self.layers(directions)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def token_features(self, tokens: npt.NDArray[Any]) -> torch.Tensor:
        """psi of each token, float32 (num_tokens, num_features), on the map's device."""
        device = self.device
        parts: list[torch.Tensor] = [
            self(torch.from_numpy(tokens[i : i + TOKENS_PER_BATCH].astype(np.float32)).to(device))
            for i in range(0, len(tokens), TOKENS_PER_BATCH)
        ]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else torch.empty((0, self.num_features), device=device)

    @torch.inference_mode()
    def query_features(self, tokens: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> torch.Tensor:
        """The sum of psi over each query's tokens.

        Args:
            tokens: (total_tokens, dim), float32 or float16.
            offsets: (num_queries + 1,).

        Returns:
            float32, (num_queries, num_features), on the map's device.
        """
        if len(offsets) == 2:
            return self.token_features(tokens[offsets[0] : offsets[1]]).sum(0, keepdim=True)
        parts = []
        begin = 0
        while begin < len(offsets) - 1:  # whole queries, about TOKENS_PER_BATCH tokens at a time
            end = int(np.searchsorted(offsets, offsets[begin] + TOKENS_PER_BATCH, side="right")) - 1
            end = max(end, begin + 1)
            features = self.token_features(tokens[offsets[begin] : offsets[end]])
            query = torch.from_numpy(np.repeat(np.arange(end - begin), np.diff(offsets[begin : end + 1])))
            sums = torch.zeros((end - begin, self.num_features), device=features.device)
            parts.append(sums.index_add_(0, query.to(features.device), features))
            begin = end
        return torch.cat(parts) if parts else torch.zeros((0, self.num_features))
