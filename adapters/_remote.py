"""What adapters ask of an index that is here in one way, and of one that a service has in another: filters travel as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import and_
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lemur_ann import LemurIndex, RemoteIndex
from lemur_ann.client import is_in as remote_is_in

AnyIndex = LemurIndex | RemoteIndex


def is_in(index: AnyIndex, column: str, values: Iterable[str]) -> Any:
    """A filter: the column of strings has one of these values."""
    if isinstance(index, RemoteIndex):
        return remote_is_in(column, list(values))
    return pc.field(column).isin(pa.array(list(values), pa.large_string()))


def is_not(index: AnyIndex, column: str, value: str) -> Any:
    """A filter: the column of strings has another value."""
    return {column: {"$ne": value}} if isinstance(index, RemoteIndex) else pc.field(column) != value


def all_of(index: AnyIndex, filters: Sequence[Any]) -> Any:
    """A filter: what all of these let through; None where there are none."""
    if isinstance(index, RemoteIndex):
        return {"$and": list(filters)} if filters else None
    return reduce(and_, filters) if filters else None


def everything(index: AnyIndex) -> Any:
    """A filter that lets all documents through."""
    return {"id": {"$exists": True}} if isinstance(index, RemoteIndex) else pc.scalar(True)


def columns_of(index: AnyIndex) -> list[str]:
    """The names of ``id`` and of the metadata columns."""
    if isinstance(index, RemoteIndex):
        return list(index.about().columns)
    names: list[str] = index.metadata(index.ids()[:1]).column_names
    return names
