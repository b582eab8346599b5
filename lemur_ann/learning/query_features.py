"""The parameters of the feature map psi as arrays, for searches: queries on a CPU are encoded from these without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core

if TYPE_CHECKING:
    from lemur_ann.learning.features import FeatureMap


@dataclass(frozen=True)
class FeatureWeights:
    """What a :class:`~lemur_ann.learning.features.FeatureMap` learned.

    Attributes:
        config: that of the map.
        arrays: its parameters under their names in the module.
    """

    config: dict[str, Any]
    arrays: dict[str, npt.NDArray[np.float32]]

    @classmethod
    def of(cls, feature_map: FeatureMap) -> FeatureWeights:
        """Those of a map, on the CPU."""
        return cls(feature_map.config, {name: value.cpu().numpy() for name, value in feature_map.state_dict().items()})

    def module(self, device: str) -> FeatureMap:
        """The map again, on a device."""
        import torch

        from lemur_ann.learning.features import FeatureMap

        config = {**self.config, "hidden_dims": tuple(self.config["hidden_dims"])}
        feature_map = FeatureMap(config.pop("dim"), config.pop("num_features"), **config)
        feature_map.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in self.arrays.items()})
        return feature_map.to(device).freeze()

    def query_encoder(self, query_map: npt.NDArray[np.float32]) -> _core.QueryEncoder:
        """The same function of queries in C++, to float32 rounding, times ``query_map`` (num_features, dim)."""
        activation = self.config["activation"]
        if self.config["kind"] == "random":
            weight = self._array("layers.0.weight").T
            scale = math.sqrt(2.0 / self.config["num_features"])
            layers = [_core.Layer(np.ascontiguousarray(weight), None, None, None, activation, True, scale)]
        else:
            layers = [
                _core.Layer(
                    self._array(f"layers.{i}.weight"),
                    self._array(f"layers.{i}.bias"),
                    self._array(f"layers.{i + 1}.weight"),
                    self._array(f"layers.{i + 1}.bias"),
                    activation,
                    False,
                    1.0,
                )
                for i in range(0, 3 * (len(self.config["hidden_dims"]) + 1), 3)
            ]
        return _core.QueryEncoder(layers, np.ascontiguousarray(query_map), self.is_homogeneous)

    @property
    def is_homogeneous(self) -> bool:
        """Whether the length of a token multiplies its features."""
        return bool(self.config.get("homogeneous"))

    def _array(self, name: str) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(self.arrays[name], dtype=np.float32)
