"""What users feel: whether the documents that are relevant are among the hits, beside exact MaxSim's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann.documents.ids import IdMap, plain_id
from lemur_ann.documents.inputs import QueryBatch, ids_of, is_single_query, queries_of
from lemur_ann.documents.rows import Rows
from lemur_ann.documents.sources import opened, record_batches
from lemur_ann.insight.run_files import query_ids
from lemur_ann.searching.snapshot import Snapshot

Grades = dict[Any, float]  # of one query: documents that are relevant, and how much

DRAWS = 2000  # of the bootstrap
FEW_ZEROS = 3.0  # over n: 95% bound of a share of which n trials showed none


@dataclass(frozen=True)
class Measure:
    """A measure of a search and of exact MaxSim, mean over queries.

    Attributes:
        found, exact: of the search, and of exact MaxSim.
        loss: (exact - found) / exact; 0 where exact is 0.
        loss_interval: its 95% interval over queries, paired: percentiles of a bootstrap (B. Efron and R. J. Tibshirani, An
            Introduction to the Bootstrap, 1993) over the queries' differences, with a fixed seed. Where all differ alike it is
            3 / n over exact on both sides, 1 at most (J. A. Hanley and A. Lippman-Hand, JAMA 249, 1983); where exact is 0, -1
            to 1: nothing is known.
    """

    found: float
    exact: float
    loss: float
    loss_interval: tuple[float, float]


@dataclass(frozen=True)
class Relevance:
    """What an evaluation found of relevant documents.

    Attributes:
        measures: by name: ``success@1`` and ``success@k`` (whether one of the k first hits is relevant), ``MRR@k`` (one over
            the place of the first that is), ``nDCG@k`` (gain is the grade, over log2(1 + place)) and ``recall of relevant@k``.
        num_queries: those that have a relevant document, over which all are means.
        num_without: those that have none, which are left out.
        num_unknown: relevant documents that the index does not hold, and which count as lost on both sides.
    """

    measures: dict[str, Measure]
    num_queries: int
    num_without: int
    num_unknown: int

    def __str__(self) -> str:
        lines = [f"relevance over {self.num_queries:,} queries: the search, exact MaxSim, loss (95% interval)"]
        for name, m in self.measures.items():
            low, high = m.loss_interval
            lines.append(f"{name:22} {m.found:.4f}  {m.exact:.4f}  {m.loss:+.1%} ({low:+.1%} to {high:+.1%})")
        if self.num_without:
            lines.append(f"{self.num_without:,} queries have no relevant document and are left out")
        if self.num_unknown:
            lines.append(f"{self.num_unknown:,} relevant documents are not in the index: lost on both sides")
        return "\n".join(lines)


def judged(queries: Any, relevant: Any, snapshot: Snapshot) -> tuple[QueryBatch, list[Grades] | None]:
    """Queries, and for each its relevant documents, which are None where they are not given; checked."""
    if relevant is not None:
        queries = with_columns(queries)
    batch = queries_of(queries, snapshot.dim).batch
    return batch, None if relevant is None else grades_of(relevant, queries, len(batch), snapshot.ids)


def with_columns(queries: Any) -> Any:
    """Queries that have columns as an Arrow table, so that they can be read again; others as they are."""
    if is_single_query(queries):
        return queries
    queries = opened(queries)
    batches = record_batches(queries)
    if batches is None:
        return list(queries) if isinstance(queries, Iterator) else queries
    parts = list(batches)
    return pa.Table.from_batches(parts) if parts else []


def grades_of(relevant: Any, queries: Any, num_queries: int, ids: IdMap) -> list[Grades]:
    """For each query its relevant documents, by ids of the index's kind.

    Args:
        relevant: for each query an id or a collection of ids, in their order; or a mapping from query ids to such, or to
            {document id: grade}; or the name of a column of the queries that holds ids or lists of them; or the path of a TREC
            qrels file.
        queries: by :func:`with_columns`: a table's column ``id`` names them, else 0, 1, 2, ....
        num_queries: how many they are.
        ids: those of the documents.

    Raises:
        ValueError, TypeError: it is none of these, or of other queries.
        OSError: the file cannot be read.
    """
    is_number = pa.types.is_integer(ids.column.type)
    rows = enumerate(rows_of(relevant, queries, num_queries))
    grades = [{_as_kind(doc_id, is_number): grade for doc_id, grade in graded(value, row)} for row, value in rows]
    named = [doc_id for own in grades for doc_id in own]
    if named and not any(doc_id in ids for doc_id in named):
        some = ids.column.take(np.arange(min(len(ids.column), 3))).tolist()
        raise ValueError(f"relevant= names no document of the index: it has {named[:3]}, the index {some}")
    return grades


def rows_of(relevant: Any, queries: Any, num_queries: int) -> list[Any]:
    """What ``relevant`` has for each query, in their order; arguments and errors as for :func:`grades_of`."""
    table = queries if isinstance(queries, pa.Table) else None
    if isinstance(relevant, str) and table is not None and relevant in table.column_names:
        relevant = table.column(relevant).to_pylist()
    elif isinstance(relevant, (str, PathLike)):
        relevant = _read_qrels(relevant, table)
    if isinstance(relevant, Mapping):
        names = query_ids(table) if table is not None else [str(i) for i in range(num_queries)]
        given = {str(name): value for name, value in relevant.items()}
        if given and not given.keys() & set(names):
            raise ValueError(
                f"relevant= names none of the queries: it has {list(given)[:3]}, they are {names[:3]}; a table's column 'id' "
                "names its queries, others are 0, 1, 2, ..."
            )
        return [given.get(name, ()) for name in names]
    per_query = _rows_of(relevant)
    if len(per_query) != num_queries:
        raise ValueError(f"relevant= has {len(per_query)} rows for {num_queries} queries, expected one for each")
    return per_query


def relevance(
    found: Sequence[Sequence[Any]], exact: Sequence[Sequence[Any]], grades: Sequence[Grades], k: int, known: IdMap
) -> Relevance:
    """Of the hits of a search and of exact MaxSim, ids best first, k at most of each query."""
    rows = [row for row, own in enumerate(grades) if own]
    values = [np.array([_values(hits[row][:k], grades[row], k) for row in rows]).reshape(-1, 5) for hits in (found, exact)]
    names = ("success@1", f"success@{k}", f"MRR@{k}", f"nDCG@{k}", f"recall of relevant@{k}")
    kept = [i for i, name in enumerate(names) if name not in names[:i]]  # of k = 1 two are the same
    return Relevance(
        measures={names[i]: _measure(values[0][:, i], values[1][:, i]) for i in kept} if rows else {},
        num_queries=len(rows),
        num_without=len(grades) - len(rows),
        num_unknown=sum(doc_id not in known for own in grades for doc_id in own),
    )


def relevance_of_rows(snapshot: Snapshot, found: list[Rows], exact: list[Rows], grades: list[Grades], k: int) -> Relevance:
    """The same of rows."""
    named = ([snapshot.ids.column.take(rows).tolist() for rows in own] for own in (found, exact))
    return relevance(next(named), next(named), grades, k, snapshot.ids)


def _values(hits: Sequence[Any], grades: Grades, k: int) -> list[float]:
    """success@1, success@k, reciprocal rank, nDCG and recall of one query."""
    gains = [grades.get(doc_id, 0.0) for doc_id in hits]
    first = next((place for place, gain in enumerate(gains) if gain > 0), None)
    ideal = sum(gain / math.log2(2 + place) for place, gain in enumerate(sorted(grades.values(), reverse=True)[:k]))
    got = sum(gain / math.log2(2 + place) for place, gain in enumerate(gains))
    share = sum(gain > 0 for gain in gains) / len(grades)
    return [float(first == 0), float(first is not None), 0.0 if first is None else 1 / (1 + first), got / ideal, share]


def _measure(found: npt.NDArray[np.float64], exact: npt.NDArray[np.float64]) -> Measure:
    difference, base = exact - found, float(exact.mean())
    if base == 0:  # nothing could be lost, and nothing is known
        return Measure(float(found.mean()), base, 0.0, (-1.0, 1.0))
    loss = float(difference.mean()) / base
    if np.ptp(difference) > 0:
        draws = np.random.default_rng(0).integers(len(difference), size=(DRAWS, len(difference)))
        low, high = np.quantile(difference[draws].mean(axis=1), (0.025, 0.975)) / base
    else:
        spread = min(FEW_ZEROS / len(difference) / base, 1.0)
        low, high = loss - spread, min(loss + spread, 1.0)
    return Measure(float(found.mean()), base, loss, (float(low), float(high)))


def _rows_of(relevant: Any) -> list[Any]:
    if isinstance(relevant, (pa.Array, pa.ChunkedArray)):
        return list(relevant.to_pylist())
    if isinstance(relevant, (set, frozenset)) or not hasattr(relevant, "__len__") or not hasattr(relevant, "__iter__"):
        raise TypeError(
            f"relevant= must have the ids for each query, in the order of the queries, or map query ids to them, got "
            f"{type(relevant).__name__}; such as [['doc 1'], ['doc 2', 'doc 7']] or {{'query 1': {{'doc 1': 1}}}}"
        )
    return list(relevant)


def graded(value: Any, row: int) -> list[tuple[Any, float]]:
    """The documents that are relevant to one query, in any form that it may have, and how much.

    Raises:
        ValueError, TypeError: it is no such form, with the number of its row.
    """
    if value is None:
        return []
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, (str, int, np.integer)):
        pairs = [(value, 1)]
    else:
        several = _in_order(value, row)
        pairs = [(doc_id, 1) for doc_id in ids_of(several).to_pylist()] if len(several) else []
    own: list[tuple[Any, float]] = []
    for doc_id, grade in pairs:
        try:
            number = float(grade)
        except (TypeError, ValueError):
            raise TypeError(f"relevant= has the grade {grade!r} in row {row}, expected a number") from None
        if not math.isfinite(number) or isinstance(doc_id, bool):
            raise ValueError(
                f"relevant= has {doc_id!r}: {grade!r} in row {row}, expected the id of a document and a finite grade"
            )
        if number > 0:
            own.append((plain_id(doc_id), number))
    return own


def _in_order(value: Any, row: int) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if not hasattr(value, "__len__"):
        raise TypeError(f"relevant= has {type(value).__name__} in row {row}, expected an id or a collection of ids")
    return value


def _as_kind(doc_id: Any, is_number: bool) -> Any:
    """As the index has ids: files have strings where an index may have numbers."""
    if is_number and isinstance(doc_id, str):
        try:
            return int(doc_id)
        except ValueError:
            return doc_id
    return str(doc_id) if not is_number else doc_id


def _read_qrels(path: str | PathLike[str], table: pa.Table | None) -> dict[str, Grades]:
    """A TREC qrels file: ``query 0 document grade`` a line."""
    file = Path(path)
    if not file.is_file():
        columns = "" if table is None else f", nor a column of the queries, which have {', '.join(table.column_names)}"
        raise FileNotFoundError(f"relevant= is no file {str(path)!r}{columns}")
    found: dict[str, Grades] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            query, _, doc_id, grade = words
            found.setdefault(query, {})[doc_id] = float(grade)
        except ValueError:
            raise ValueError(
                f"line {number} of {file} is {line[:80]!r}, expected 'query 0 document grade' with a number at the end"
            ) from None
    return found
