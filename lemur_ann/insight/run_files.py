"""TREC run files: what a search found, in the form that trec_eval, ir-measures and ranx read."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa

from lemur_ann.documents.inputs import ids_of
from lemur_ann.hits import Hits

TAG = "lemur_ann"


def query_ids(queries: pa.Table) -> list[str]:
    """How a run file calls these queries: by their column ``id``, or 0, 1, 2, ... where there is none.

    Raises:
        ValueError, TypeError: an id that is null, repeated, empty or has white space, or is neither a string nor an integer.
    """
    if "id" not in queries.column_names:
        return [str(row) for row in range(len(queries))]
    names = [_word(value, "query") for value in ids_of(queries.column("id")).to_pylist()]
    seen: set[str] = set()
    for row, name in enumerate(names):
        if name in seen:
            raise ValueError(f"query id {name!r} is repeated in row {row}, expected each id once")
        seen.add(name)
    return names


def write_run(path: str | PathLike[str], queries: Sequence[str], found: Sequence[Hits]) -> int:
    """Write a line ``query Q0 document rank score tag`` for each hit, ranks from 1, best first.

    Scores have as many digits as a float32 needs, since readers sort by them and not by rank.

    Args:
        path: of the file, which is replaced.
        queries: a name for each query, such as those of :func:`query_ids`.
        found: the hits of each query.

    Returns:
        the number of lines.

    Raises:
        ValueError: a document's id is empty or has white space, which the format cannot hold; nothing is written.
    """
    lines = [
        f"{query} Q0 {_word(doc_id, 'document')} {rank} {score:.9g} {TAG}\n"
        for query, hits in zip(queries, found, strict=True)
        for rank, (doc_id, score) in enumerate(hits, start=1)
    ]
    Path(path).write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _word(value: Any, what: str) -> str:
    """An id as one word."""
    word = str(value)
    if word.split() != [word]:
        reason = "has white space" if word.strip() else "is empty or blank"
        raise ValueError(f"{what} id {word!r} {reason}, which a run file cannot hold: its fields are words")
    return word
