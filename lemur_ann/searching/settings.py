"""How widely to search: numbers that the caller, a tuned choice, or the index's own options give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lemur_ann import validate
from lemur_ann.options import Options


@dataclass(frozen=True)
class Tuned:
    """What :meth:`lemur_ann.LemurIndex.tune` chose.

    Attributes:
        target_recall, k: what was asked for: the share of the exact MaxSim top k that a search finds.
        num_candidates, ef_search: how to search for it.
        recall: what this found on queries that it was not chosen on.
        recall_interval: its 95% confidence interval over queries, by :func:`lemur_ann.insight.metrics.share_found`.
        num_queries: how many queries these were; as many were used to choose.
    """

    target_recall: float
    k: int
    num_candidates: int
    ef_search: int
    recall: float
    recall_interval: tuple[float, float]
    num_queries: int

    def __post_init__(self) -> None:
        for name in ("k", "num_candidates", "ef_search", "num_queries"):
            validate.integer(getattr(self, name), name, least=1, most=2**31)
        for share in (self.target_recall, self.recall, *self.recall_interval):
            if (
                isinstance(share, bool) or not isinstance(share, (int, float)) or not -1e-9 <= share <= 1 + 1e-9
            ):  # but for rounding
                raise ValueError(f"a recall must be from 0 to 1, got {share!r}")
        low, high = self.recall_interval
        if not low <= high:
            raise ValueError(f"an interval must ascend, got {self.recall_interval}")

    def __str__(self) -> str:
        low, high = self.recall_interval
        return (
            f"num_candidates {self.num_candidates}, ef_search {self.ef_search}: recall@{self.k} {self.recall:.3f} "
            f"(95% interval {low:.3f} to {high:.3f}, {self.num_queries} queries it was not chosen on)"
        )


@dataclass(frozen=True)
class Settings:
    """Of one search.

    Attributes:
        k: hits of a query, at least 1.
        num_candidates: documents to rerank, at least k.
        ef_search: beam of the graph search that finds them, at least num_candidates.
        num_threads: at least 1.
    """

    k: int
    num_candidates: int
    ef_search: int
    num_threads: int

    @classmethod
    def of(
        cls,
        options: Options,
        tuned: tuple[Tuned, ...],
        k: Any,
        num_candidates: Any = None,
        ef_search: Any = None,
        target_recall: Any = None,
        num_threads: Any = None,
    ) -> Settings:
        """Those that a caller asked for, checked; None leaves a number to ``options``, or to what ``tuned`` has for the recall.

        Raises:
            TypeError, ValueError: a number out of range, target_recall beside what it stands for, or one not tuned for.
        """
        k = validate.positive_int(k, "k")
        if target_recall is not None:
            if num_candidates is not None or ef_search is not None:
                raise TypeError("target_recall= takes the place of num_candidates= and ef_search=; pass one or the other")
            num_candidates, ef_search = _tuned_for(tuned, target_recall, k)
        count = options.num_candidates if num_candidates is None else num_candidates
        count = max(validate.positive_int(count, "num_candidates"), k)
        beam = options.ef_search if ef_search is None else ef_search
        beam = count if beam is None else max(validate.positive_int(beam, "ef_search"), count)
        return cls(k, count, beam, validate.num_threads(num_threads))

    def within(self, num_rows: int, num_matching: int) -> Settings:
        """No wider than there are rows, and documents that match, of which there is at least one."""
        return Settings(
            min(self.k, num_matching),
            min(self.num_candidates, num_matching),
            min(self.ef_search, num_rows),
            self.num_threads,
        )


def _tuned_for(tuned: tuple[Tuned, ...], target_recall: Any, k: int) -> tuple[int, int]:
    """(num_candidates, ef_search) of the least that was tuned for this recall."""
    target = validate.share(target_recall, "target_recall")
    enough = [t for t in tuned if t.target_recall >= target and t.k >= k]
    if not enough:
        known = ", ".join(f"{t.target_recall} at k {t.k}" for t in tuned) or "nothing yet"
        raise ValueError(
            f"the index is not tuned for target_recall {target} at k {k}, but for: {known}; call tune(queries, {target}, k={k})"
        )
    best = min(enough, key=lambda t: (t.k, t.target_recall))
    return best.num_candidates, best.ef_search
