"""Why a search does not find a document: which stage loses it, and with which settings it is found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lemur_ann.insight.case import Case
from lemur_ann.searching.settings import Settings


@dataclass(frozen=True, eq=False)
class Miss:
    """What :meth:`lemur_ann.LemurIndex.explain_miss` found.

    Attributes:
        doc_id: the document.
        stage: what lost it, the first of these that did:

            - "found": nothing; it is among the hits.
            - "filter": the filter keeps it out.
            - "score": k others have higher exact scores. No search that is right returns it: ask for more.
            - "estimate": the learned map puts it behind the documents that were reranked: rerank more, or learn from queries
              like this one.
            - "look": it was on the shortlist, and the second look chose other candidates: rerank more.
            - "graph": its estimate is good enough, and the walk of the graph did not come to it: search with a wider beam.
            - "codes": it was a candidate, and the first pass of the rerank, over int8 codes of the tokens, lost it. Codes err
              by more than a search allows for where, for example, one component of its tokens is far larger than all others.
        found_at: its place among the hits, from 1; None unless found.
        score, rank: its exact score, and the rank of that, from 1, among the documents that pass the filter; among all, where
            the filter keeps it out.
        num_documents: how many these are.
        lacking: how much higher the k-th exact score is; 0 where the rank is within k, or the scores are equal.
        estimate_rank: its rank by estimate among the same documents; None before fit.
        k: how many hits were asked for.
        num_reranked: candidates that the search looked at; behind a filter it may be more than num_candidates. 0 where it
            scored all documents.
        settings: arguments of :meth:`lemur_ann.LemurIndex.search`: ``index.search(query, **miss.settings)`` finds it. Behind a
            filter they have that filter, unless this is what keeps it out.
        changed: what of these differs from what was asked for.
    """

    doc_id: Any
    stage: str
    found_at: int | None
    score: float
    rank: int
    num_documents: int
    lacking: float
    estimate_rank: int | None
    k: int
    num_reranked: int
    settings: dict[str, Any] = field(repr=False)
    changed: dict[str, Any]

    def __str__(self) -> str:
        exact = f"its exact score {self.score:.3f} has rank {self.rank:,} of {self.num_documents:,}"
        remedy = ", ".join(f"{name}={value}" for name, value in self.changed.items())
        if self.stage == "found":
            return f"{self.doc_id!r} is found, at {self.found_at} of {self.k}: {exact}."
        if self.stage == "filter":
            return f"{self.doc_id!r} is kept out by the filter: without it, {exact}. " + (
                f"Without the filter, {remedy} finds it." if remedy else "The same search without the filter finds it."
            )
        if self.stage == "score":
            behind = f"{self.lacking:.3f} below rank {self.k}" if self.lacking else f"equal to that of rank {self.k}"
            return f"{self.doc_id!r} is not among the {self.k} best: {exact}, {behind}. {remedy} finds it."
        lost = f"{self.doc_id!r} is lost: {exact}"
        by_estimate = f"its estimate has rank {self.estimate_rank:,}"
        candidates = f"{self.num_reranked:,} candidates"
        how = {
            "estimate": f"{by_estimate}, and the search reranked {candidates}",
            "graph": f"{by_estimate}, good enough for the {candidates}, but the walk of the graph did not come to it",
            "look": f"{by_estimate}, and the second look chose {candidates} before it",
            "codes": f"it was among the {candidates}, and the first pass of the rerank, over int8 codes, lost it",
        }[self.stage]
        return f"{lost}; {how}. {remedy} finds it."


def explain_miss(case: Case, asked: dict[str, Any]) -> Miss:
    """See :meth:`lemur_ann.LemurIndex.explain_miss`.

    Args:
        case: what was searched, how, and which rows it excluded.
        asked: the arguments of the search, other than k, as they were given.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    found_at, reranked = case.searched(case.settings)
    k = case.settings.k
    is_out = bool(case.excluded.mask[case.row])
    if is_out:
        case = replace(case, excluded=case.snapshot.deleted)
        del given["filter"]
    score, rank = float(case.scores[case.row]), case.rank
    kth = float(np.partition(case.scores, -k)[-k]) if case.num_matching >= k else score
    estimate_rank = None if case.snapshot.learned is None else case.estimate_rank
    if is_out:
        stage = "filter"
    elif found_at is not None:
        stage = "found"
    elif rank > k:
        stage = "score"
    elif case.row in reranked:
        stage = "codes"
    elif case.is_shortlisted():
        stage = "look"
    else:
        listed = max(len(reranked), case.settings.shortlist)
        stage = "graph" if estimate_rank is not None and estimate_rank <= listed else "estimate"
    changed = _changes_that_find(case, 0 if is_out else len(reranked))
    settings = {"k": k, **given, **changed}
    tuned = [settings.pop(name, None) for name in ("target_recall", "max_loss")] if changed else []
    if any(value is not None for value in tuned):
        widths = {name: getattr(case.settings, name) for name in ("num_candidates", "ef_search", "shortlist")}
        settings = {**widths, **settings}
    return Miss(
        doc_id=case.doc_id,
        stage=stage,
        found_at=found_at,
        score=score,
        rank=rank,
        num_documents=case.num_matching,
        lacking=max(kth - score, 0.0),
        estimate_rank=estimate_rank,
        k=k,
        num_reranked=len(reranked),
        settings=settings,
        changed=changed,
    )


def _changes_that_find(case: Case, num_reranked: int) -> dict[str, Any]:
    """What to change of a search for it to find the document: no more than is needed, but for the beam, which is doubled.

    Where it has a shortlist all widths are named, since what is usual depends on k and on the other numbers.
    """
    k, num_candidates, ef_search = case.settings.k, case.settings.num_candidates, case.settings.ef_search
    listed = case.settings.shortlist

    def finds(k: int, count: int, beam: int, shortlist: int) -> bool:
        count = max(count, k)
        settings = Settings(k, count, beam if shortlist > count else max(beam, count), case.num_threads, shortlist)
        return case.searched(settings)[0] is not None

    changed: dict[str, Any] = {}
    if finds(k, num_candidates, ef_search, listed):
        return changed
    widths: dict[str, Any] = {}
    if listed:
        widths = {"num_candidates": num_candidates, "ef_search": ef_search, "shortlist": listed}
    if case.rank > k:
        changed["k"] = k = case.rank
        if finds(k, num_candidates, ef_search, listed):
            return widths | changed
    fewest = max(num_candidates, k)
    for more in (count for count in (2 * fewest, 4 * fewest) if count < listed):  # of the same shortlist
        if finds(k, more, ef_search, listed):
            return widths | changed | {"num_candidates": more}
    if listed:
        widths = {"num_candidates": fewest, "ef_search": max(ef_search, fewest), "shortlist": 0}
    counts = [fewest] if case.estimate_rank <= max(fewest, num_reranked) else []  # then a wider beam alone may do
    for count in (*counts, max(case.estimate_rank, fewest)):
        changed |= {} if count == fewest else {"num_candidates": count}
        beam = max(ef_search, count)
        if finds(k, count, beam, 0):
            return widths | changed | ({"ef_search": beam} if listed else {})
        while beam < len(case.excluded):  # a beam of all documents is a scan
            beam = min(2 * beam, len(case.excluded))
            if finds(k, count, beam, 0):
                return widths | changed | {"ef_search": beam}
    return ({"k": k} if case.rank > case.settings.k else {}) | {"exact": True}
