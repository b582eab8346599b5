"""Measures of what a search found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def recall(found: Sequence[Sequence[Any]], exact: Sequence[Sequence[Any]]) -> float:
    """Mean over queries of the share of the exact top k that was found; 1.0 where there is nothing to find."""
    shares = [len(set(f) & set(e)) / len(e) if len(e) else 1.0 for f, e in zip(found, exact, strict=True)]
    return sum(shares) / len(shares) if shares else 1.0
