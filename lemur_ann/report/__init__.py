"""A report of an index on one page: what it finds, how quickly, what it misses, and what it was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from lemur_ann import validate
from lemur_ann.events import cached_property
from lemur_ann.index import LemurIndex
from lemur_ann.progress import Show
from lemur_ann.report import plots
from lemur_ann.report.measuring import figures, subject_of
from lemur_ann.report.page import page

__all__ = ["Report", "report"]


@dataclass(frozen=True, eq=False)
class Report:
    """What :func:`report` measured.

    Attributes:
        data: the figures as plain dicts, lists, strings and numbers, which JSON can hold; docs/guides/report.md names them.
    """

    data: Mapping[str, Any]

    @cached_property
    def html(self) -> str:
        """The page: one document that needs no other file and no network."""
        return page(self.data)

    @property
    def json(self) -> str:
        """``data`` as JSON."""
        return json.dumps(self.data, indent=2, ensure_ascii=False) + "\n"

    def write(self, path: str | PathLike[str]) -> None:
        """Write the page to a file, in place of what is there."""
        Path(path).write_text(self.html, encoding="utf-8")


def report(
    index: LemurIndex,
    queries: Any,
    *,
    k: int = 10,
    num_queries: int = 200,
    relevant: Any = None,
    title: str | None = None,
    text_column: str = "text",
    num_threads: int = 1,
    seed: int = 0,
    progress: Show = None,
) -> Report:
    """Measure an index on given queries, as it is now: whatever changes meanwhile, all figures are of this moment.

    It searches them at some twenty settings, one query at a time, and scores every document for each of them once: about the
    time of ``num_queries`` exact searches and of fifty searches for each query.

    Args:
        index: with or without a learned map.
        queries: a batch, as for :meth:`lemur_ann.LemurIndex.search`, or the path of a Parquet file, of queries like those to
            come that the index did not learn from. Columns ``text`` and ``id`` name them on the page.
        k: recall is of the exact top k.
        num_queries: queries to measure with, at most; of more, a random sample.
        relevant: the relevant documents of each query, as for :meth:`lemur_ann.LemurIndex.evaluate`: the page then also shows
            success, MRR and nDCG beside those of exact MaxSim.
        title: of the page; None names the number of documents.
        text_column: the metadata column to show missed documents by, where there is one.
        num_threads: threads of the searches that are timed; exact scores are computed with all cores.
        seed: for the samples of queries and documents.
        progress: as for :meth:`lemur_ann.LemurIndex.fit`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError, TypeError: bad queries, none at all, or no documents.
    """
    plots.check_installed()
    random = np.random.default_rng(validate.integer(seed, "seed", least=0))
    sizes = {"k": k, "num_queries": num_queries, "num_threads": num_threads}
    subject = subject_of(index, queries, **sizes, relevant=relevant, random=random)
    return Report(figures(subject, title=title, text_column=text_column, random=random, progress=progress))
