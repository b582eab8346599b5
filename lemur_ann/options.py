"""How an index learns and searches; stored with it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from lemur_ann import _validate as validate
from lemur_ann.candidates import KINDS


@dataclass(frozen=True)
class Options:
    """See :class:`lemur_ann.LemurIndex` for each one's meaning."""

    num_features: int = 2048
    epochs: int = 10
    num_training_tokens: int = 100_000
    num_training_documents: int = 8192
    num_sample_tokens: int = 32_768
    ridge: float = 1e-6
    rank: int | None = 255
    distillation_steps: int = 1000
    candidates: str = "hnsw"
    M: int = 24
    ef_construction: int = 300
    num_candidates: int = 500
    ef_search: int | None = None
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "num_features",
            "num_training_tokens",
            "num_training_documents",
            "num_sample_tokens",
            "ef_construction",
            "num_candidates",
        ):
            validate.positive_int(getattr(self, name), name)
        for name in ("rank", "ef_search"):
            if getattr(self, name) is not None:
                validate.positive_int(getattr(self, name), name)
        if validate.positive_int(self.M, "M") < 2:
            raise ValueError(f"M must be at least 2, got {self.M}")
        for name in ("epochs", "distillation_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not self.ridge > 0:
            raise ValueError(f"ridge must be above 0, got {self.ridge}")
        if self.candidates not in KINDS:
            raise ValueError(f"candidates must be one of {', '.join(KINDS)}, got {self.candidates!r}")
        if str(self.device).partition(":")[0] not in ("cpu", "cuda", "mps"):
            raise ValueError(f"device must be 'cpu', 'cuda' or 'mps', got {self.device!r}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Options:
        """From a manifest; unknown names are refused."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown options {unknown}")
        return cls(**values)
