"""How an index learns and searches; stored with it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

from lemur_ann import validate
from lemur_ann.candidates.kinds import OWN_KINDS, check_kind
from lemur_ann.candidates.look import MAX_CENTROIDS
from lemur_ann.documents.pooling import Pooling

# More than these nobody has a use for. Memory and time follow from them, and they come from a file of anyone's too.
MAX_FEATURES, MAX_TRAINING, MAX_STEPS = 65_536, 2**31, 10**7
MAX_M, MAX_EF_CONSTRUCTION = 512, 10_000
SMALL_BITS = {"int4": 4, "int3": 3, "int2": 2, "int1": 1}  # a component, of small codes


@dataclass(frozen=True)
class Options:
    """See :class:`lemur_ann.LemurIndex` for each one's meaning."""

    num_features: int = 2048
    epochs: int = 3
    num_training_tokens: int = 50_000
    num_training_documents: int = 4096
    num_sample_tokens: int | None = None
    target_precision: str = "int8"
    ridge: float = 1e-6
    rank: int | None = 255
    distillation_steps: int | None = None
    token_codes: str | None = "int8"
    keep_tokens: str = "exact"
    pool_factor: int = 1
    pooling: str = "ward"
    protected_tokens: int = 1
    candidates: str = "hnsw"
    candidates_options: dict[str, Any] | None = None
    num_centroids: int | None = None
    M: int = 16
    ef_construction: int = 100
    num_candidates: int | None = None
    ef_search: int | None = None
    shortlist: int | None = None
    compact_at: float | None = 0.3
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("num_training_tokens", 1, MAX_TRAINING),
            ("num_training_documents", 1, MAX_TRAINING),
            ("ef_construction", 1, MAX_EF_CONSTRUCTION),
            ("num_features", 2, MAX_FEATURES),
            ("M", 2, MAX_M),
            ("epochs", 0, MAX_STEPS),
            ("seed", 0, 2**63 - 1),
        ):
            self._set(name, validate.integer(getattr(self, name), name, least=least, most=most))
        for name, least, most in (
            ("rank", 1, MAX_FEATURES),
            ("num_candidates", 1, MAX_TRAINING),
            ("ef_search", 1, MAX_TRAINING),
            ("shortlist", 0, MAX_TRAINING),
            ("num_centroids", 0, MAX_CENTROIDS),
            ("num_sample_tokens", 1, MAX_TRAINING),
            ("distillation_steps", 0, MAX_STEPS),
        ):
            if getattr(self, name) is not None:
                self._set(name, validate.integer(getattr(self, name), name, least=least, most=most))
        if hasattr(self.ridge, "item"):  # NumPy's, whose comparison with a larger kind of number warns
            self._set("ridge", self.ridge.item())
        is_number = isinstance(self.ridge, (int, float)) and not isinstance(self.ridge, bool)
        if not is_number or not 0 < self.ridge <= sys.float_info.max:
            raise ValueError(f"ridge must be a number above 0, got {self.ridge!r}")
        self._set("ridge", float(self.ridge))
        if self.compact_at is not None:
            self._set("compact_at", validate.share(self.compact_at, "compact_at"))
        if self.target_precision not in ("int8", "float32"):
            raise ValueError(f"target_precision must be 'int8' or 'float32', got {self.target_precision!r}")
        if self.token_codes not in (None, "int8", *SMALL_BITS):
            raise ValueError(f"token_codes must be 'int8', 'int4', 'int3', 'int2', 'int1' or None, got {self.token_codes!r}")
        if self.small_bits and self.num_centroids == 0:
            raise ValueError(f"token_codes={self.token_codes!r} are relative to centroids, and num_centroids=0 has none")
        if self.keep_tokens not in ("exact", "none"):
            raise ValueError(f"keep_tokens must be 'exact' or 'none', got {self.keep_tokens!r}")
        if self.keep_tokens == "none" and not self.small_bits:
            raise ValueError(
                "keep_tokens='none' keeps small codes alone: token_codes must be 'int4', 'int3', 'int2' or 'int1', got "
                f"{self.token_codes!r}"
            )
        if self.keep_tokens == "none" and self.device != "cpu":
            raise ValueError(f"keep_tokens='none' is searched on the processor: device must be 'cpu', got {self.device!r}")
        for name, value in vars(self.pooled_by).items():
            self._set(name, value)
        check_kind(self.candidates)
        if self.candidates_options is not None and not isinstance(self.candidates_options, dict):
            raise TypeError(f"candidates_options must be a dict, got {type(self.candidates_options).__name__}")
        if self.candidates_options and self.candidates in OWN_KINDS:
            raise ValueError(f"candidates={self.candidates!r} has no options of its own, got {sorted(self.candidates_options)}")
        self._set("device", re.sub(r"^cpu:[0-9]+$", "cpu", str(self.device)))  # torch has one, whatever its number
        if not re.fullmatch(r"(cpu|cuda|mps)(:[0-9]{1,3})?", self.device):
            raise ValueError(f"device must be 'cpu', 'cuda' or 'mps', got {self.device!r}")

    @property
    def sample_tokens(self) -> int:
        """num_sample_tokens, or its default: half as many where features are random, which is the quick way to an index."""
        return self.num_sample_tokens or (24_576 if self.epochs else 8192)

    @property
    def steps(self) -> int:
        """distillation_steps, or its default: none where features are random."""
        default = 1000 if self.epochs else 0
        return default if self.distillation_steps is None else self.distillation_steps

    @property
    def pooled_by(self) -> Pooling:
        """How documents are pooled as they come; errors as of bad options."""
        return Pooling(self.pool_factor, self.pooling, self.protected_tokens)

    @property
    def keeps_int8(self) -> bool:
        """Whether int8 codes of all tokens are kept beside them."""
        return self.token_codes == "int8"

    @property
    def small_bits(self) -> int:
        """Bits a component of small codes; 0 where none are kept."""
        return SMALL_BITS.get(self.token_codes or "", 0)

    def _set(self, name: str, value: Any) -> None:
        """A plain Python value, which JSON can hold, in a frozen instance."""
        object.__setattr__(self, name, value)
