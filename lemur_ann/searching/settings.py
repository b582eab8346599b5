"""How widely to search: numbers that the caller, a tuned choice, or the index's own options give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lemur_ann import validate
from lemur_ann.options import Options

MOST_LOOKED_FOR = 200  # hits
MEASURED_DOCUMENTS, SIZE_GROWTH = 60_000, 0.3  # up to so many the widths stay, then grow with a power of their number
GROWTH = 0.72  # power of k with which the documents to rerank grow


@dataclass(frozen=True)
class Tuned:
    """What :meth:`lemur_ann.LemurIndex.tune` chose.

    Attributes:
        target_recall, k: what was asked for: the share of the exact MaxSim top k that a search finds. The first is None where
            ``max_loss`` was asked for.
        num_candidates, ef_search, shortlist: how to search for it; shortlist is 0 for a search without a second look.
        recall: what this found on queries that it was not chosen on.
        recall_interval: its 95% confidence interval over queries, by :func:`lemur_ann.insight.metrics.share_found`.
        num_queries: how many queries these were; as many were used to choose.
        max_loss: what was asked for instead: the share of success@k and of MRR@k that exact MaxSim has and a search may lose.
        loss, loss_interval: the larger of the two losses on the same queries as ``recall``, and its paired 95% interval, see
            :class:`lemur_ann.insight.relevance.Measure`; None without ``max_loss``.
    """

    target_recall: float | None
    k: int
    num_candidates: int
    ef_search: int
    recall: float
    recall_interval: tuple[float, float]
    num_queries: int
    shortlist: int = 0
    max_loss: float | None = None
    loss: float | None = None
    loss_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("k", "num_candidates", "ef_search", "num_queries"):
            validate.integer(getattr(self, name), name, least=1, most=2**31)
        validate.integer(self.shortlist, "shortlist", least=0, most=2**31)
        if (self.target_recall is None) == (self.max_loss is None):
            raise ValueError("it is tuned for a target_recall or for a max_loss, one of the two")
        if len({value is None for value in (self.max_loss, self.loss, self.loss_interval)}) > 1:
            raise ValueError("max_loss, loss and loss_interval go together")
        asked = [share for share in (self.target_recall, self.max_loss) if share is not None]
        for share in (*asked, self.recall, *self.recall_interval):
            if not _is_number(share) or not -1e-9 <= share <= 1 + 1e-9:  # but for rounding
                raise ValueError(f"a share must be from 0 to 1, got {share!r}")
        loss_interval = self.loss_interval or (0.0, 0.0)
        if not all(map(_is_number, (self.loss or 0.0, *loss_interval))):
            raise ValueError(f"a loss must be a number, got {self.loss!r} in {self.loss_interval!r}")
        for low, high in (self.recall_interval, loss_interval):
            if not low <= high:
                raise ValueError(f"an interval must ascend, got {(low, high)}")

    @property
    def asked(self) -> tuple[float | None, float | None, int]:
        """target_recall, max_loss and k: a later choice for the same takes the place of this."""
        return self.target_recall, self.max_loss, self.k

    @property
    def goal(self) -> str:
        """What was asked for, in words."""
        share = f"{self.target_recall:g}" if self.max_loss is None else f"a loss of {self.max_loss:g}"
        return f"{share} at k {self.k}"

    def __str__(self) -> str:
        low, high = self.recall_interval
        look = f", shortlist {self.shortlist}" if self.shortlist else ""
        lost = ""
        if self.loss is not None and self.loss_interval is not None:
            least, most = self.loss_interval
            lost = f", {self.loss:.1%} of the relevance of exact MaxSim lost ({least:.1%} to {most:.1%})"
        return (
            f"num_candidates {self.num_candidates}, ef_search {self.ef_search}{look}: recall@{self.k} {self.recall:.3f} "
            f"(95% interval {low:.3f} to {high:.3f}, {self.num_queries} queries it was not chosen on){lost}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


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
        shortlist: Any = None,
        max_loss: Any = None,
        *,
        looks: bool = False,
        breadth: int = 1,
        num_documents: int = 0,
    ) -> Settings:
        """Those that a caller asked for, checked; None leaves a number to ``options``, to what ``tuned`` has for the recall or
        the loss, or to what is usual among so many documents, with a second look or without, of a map that wants
        ``breadth`` times as many candidates.

        Raises:
            TypeError, ValueError: a number out of range, target_recall or max_loss beside what it stands for, or one not tuned
                for.
        """
        k = validate.positive_int(k, "k")
        if target_recall is not None and max_loss is not None:
            raise TypeError("target_recall= and max_loss= each choose how to search; pass one of them")
        if target_recall is not None or max_loss is not None:
            name = "max_loss" if target_recall is None else "target_recall"
            if num_candidates is not None or ef_search is not None or shortlist is not None:
                raise TypeError(f"{name}= takes the place of num_candidates=, ef_search= and shortlist=; pass one or the other")
            num_candidates, ef_search, shortlist = _tuned_for(
                tuned, name, max_loss if target_recall is None else target_recall, k
            )
        given = options.num_candidates if num_candidates is None else num_candidates
        count = max(
            usual_candidates(k, looks, breadth, num_documents)
            if given is None
            else validate.positive_int(given, "num_candidates"),
            k,
        )
        listed = options.shortlist if shortlist is None else shortlist
        if listed is None:
            listed = usual_shortlist(k, count, breadth, num_documents)
        else:
            listed = validate.integer(listed, "shortlist", least=0)
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


def times_wider(num_documents: int) -> float:
    """Than among MEASURED_DOCUMENTS or fewer: more documents have more that are nearly as good."""
    return math.pow(max(num_documents / MEASURED_DOCUMENTS, 1.0), SIZE_GROWTH)


def usual_candidates(k: int, looks: bool, breadth: int, num_documents: int = 0) -> int:
    """Documents to rerank for k hits: with a second look or without.

    They hold .97 of the exact top k, as measured up to k = 1,000, and more of the top 10. ``breadth`` is how many times as many
    do where the map knows no queries of the kind: it has the answers early, and their neighbours late.
    """
    wider = times_wider(num_documents)
    if looks and k <= MOST_LOOKED_FOR:
        usual = breadth * max(120, math.ceil(22 * math.pow(k, GROWTH)))
        return round(math.sqrt(wider) * usual)  # most of the rest is for the shortlist
    return round(wider * max(250, math.ceil(25 * math.pow(k, GROWTH))))


def usual_shortlist(k: int, num_candidates: int, breadth: int, num_documents: int = 0) -> int:
    """Documents for a second look to choose so many from; 0 where estimates alone do as well."""
    usual = round(times_wider(num_documents) * 1000 * min(breadth, 2))
    return max(usual, 2 * num_candidates) if k <= MOST_LOOKED_FOR else 0


def usual_beam(num_candidates: int, shortlist: int) -> int:
    """The beam of a walk for so many."""
    return max(300, num_candidates, shortlist * 3 // 10) if shortlist else max(300, num_candidates * 6 // 5)


def _tuned_for(tuned: tuple[Tuned, ...], name: str, asked: Any, k: int) -> tuple[int, int, int]:
    """(num_candidates, ef_search, shortlist) of the least that was tuned for this ``target_recall`` or ``max_loss``."""
    share = validate.share(asked, name)
    # how much is asked of a search: more recall, or less loss
    sign = 1 if name == "target_recall" else -1
    like = [(sign * value, t) for t in tuned if (value := getattr(t, name)) is not None]
    enough = [(t.k, value, i) for i, (value, t) in enumerate(like) if value >= sign * share and t.k >= k]
    if not enough:
        known = ", ".join(f"{sign * value} at k {t.k}" for value, t in like) or "nothing yet"
        how = f"{share}" if name == "target_recall" else f"relevant=..., max_loss={share}"
        raise ValueError(
            f"the index is not tuned for {name} {share} at k {k}, but for: {known}; call tune(queries, {how}, k={k})"
        )
    best = like[min(enough)[2]][1]
    return best.num_candidates, best.ef_search, best.shortlist
