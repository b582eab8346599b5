"""How widely to search: numbers that the caller, a tuned choice, or the index's own options give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lemur_ann import validate
from lemur_ann.options import Options

MOST_LOOKED_FOR = 200  # hits


@dataclass(frozen=True)
class Tuned:
    """What :meth:`lemur_ann.LemurIndex.tune` chose.

    Attributes:
        target_recall, k: what was asked for: the share of the exact MaxSim top k that a search finds.
        num_candidates, ef_search, shortlist: how to search for it; shortlist is 0 for a search without a second look.
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
    shortlist: int = 0

    def __post_init__(self) -> None:
        for name in ("k", "num_candidates", "ef_search", "num_queries"):
            validate.integer(getattr(self, name), name, least=1, most=2**31)
        validate.integer(self.shortlist, "shortlist", least=0, most=2**31)
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
        look = f", shortlist {self.shortlist}" if self.shortlist else ""
        return (
            f"num_candidates {self.num_candidates}, ef_search {self.ef_search}{look}: recall@{self.k} {self.recall:.3f} "
            f"(95% interval {low:.3f} to {high:.3f}, {self.num_queries} queries it was not chosen on)"
        )


@dataclass(frozen=True)
class Settings:
    """Of one search.

    Attributes:
        k: hits of a query, at least 1.
        num_candidates: documents to rerank, at least k.
        ef_search: beam of the graph search, at least num_candidates where there is no shortlist.
        num_threads: at least 1.
        shortlist: documents of largest estimate that a second look chooses the candidates from; 0 where the estimate does.
    """

    k: int
    num_candidates: int
    ef_search: int
    num_threads: int
    shortlist: int = 0

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
        *,
        shortlist: Any = None,
        looks: bool = False,
        is_taught: bool = True,
    ) -> Settings:
        """Those that a caller asked for, checked; None leaves a number to ``options``, to what ``tuned`` has for the recall, or
        to what is usual, with a second look or without, and of a map that queries taught or not.

        Raises:
            TypeError, ValueError: a number out of range, target_recall beside what it stands for, or one not tuned for.
        """
        k = validate.positive_int(k, "k")
        if target_recall is not None:
            if num_candidates is not None or ef_search is not None or shortlist is not None:
                raise TypeError(
                    "target_recall= takes the place of num_candidates=, ef_search= and shortlist=; pass one or the other"
                )
            num_candidates, ef_search, shortlist = _tuned_for(tuned, target_recall, k)
        given = options.num_candidates if num_candidates is None else num_candidates
        count = max(
            usual_candidates(k, looks=looks and is_taught) if given is None else validate.positive_int(given, "num_candidates"),
            k,
        )
        listed = options.shortlist if shortlist is None else shortlist
        listed = (
            usual_shortlist(k, count, is_taught=is_taught) if listed is None else validate.integer(listed, "shortlist", least=0)
        )
        listed = listed if looks and listed > count else 0
        beam = options.ef_search if ef_search is None else ef_search
        if beam is None:  # an index that names its candidates alone means as wide a beam
            beam = count if options.num_candidates is not None and not listed else usual_beam(count, listed)
        beam = validate.positive_int(beam, "ef_search")
        return cls(k, count, beam if listed else max(beam, count), validate.num_threads(num_threads), listed)

    def within(self, num_rows: int, num_matching: int) -> Settings:
        """No wider than there are rows, and documents that match, of which there is at least one."""
        count = min(self.num_candidates, num_matching)
        return Settings(
            min(self.k, num_matching),
            count,
            min(self.ef_search, num_rows),
            self.num_threads,
            min(self.shortlist, num_matching) if self.shortlist > count else 0,
        )


def usual_candidates(k: int, *, looks: bool) -> int:
    """Documents to rerank for k hits. They hold .97 of the exact top k, as measured up to k = 1,000, and more of the top 10."""
    if looks and k <= MOST_LOOKED_FOR:
        return max(120, math.ceil(22 * math.pow(k, 0.72)))
    return max(250, math.ceil(25 * math.pow(k, 0.72)))


def usual_shortlist(k: int, num_candidates: int, *, is_taught: bool) -> int:
    """Documents for a second look to choose so many from; 0 where estimates alone do as well.

    Twice as many of a map that learned from document tokens alone, whose estimates tell less.
    """
    return max(1000 if is_taught else 2000, 2 * num_candidates) if k <= MOST_LOOKED_FOR else 0


def usual_beam(num_candidates: int, shortlist: int) -> int:
    """The beam of a walk for so many."""
    return max(400, num_candidates, shortlist * 2 // 5) if shortlist else max(300, num_candidates * 6 // 5)


def _tuned_for(tuned: tuple[Tuned, ...], target_recall: Any, k: int) -> tuple[int, int, int]:
    """(num_candidates, ef_search, shortlist) of the least that was tuned for this recall."""
    target = validate.share(target_recall, "target_recall")
    enough = [t for t in tuned if t.target_recall >= target and t.k >= k]
    if not enough:
        known = ", ".join(f"{t.target_recall} at k {t.k}" for t in tuned) or "nothing yet"
        raise ValueError(
            f"the index is not tuned for target_recall {target} at k {k}, but for: {known}; call tune(queries, {target}, k={k})"
        )
    best = min(enough, key=lambda t: (t.k, t.target_recall))
    return best.num_candidates, best.ef_search, best.shortlist
