"""Filters as JSON, for clients that have no pyarrow: ``{"year": {"$gte": 2020}, "$or": [{"lang": "en"}, {"lang": "de"}]}``.

The language is the one that Chroma, Pinecone and MongoDB share. Values are cast to the type of their column, and nothing of a
filter is evaluated: each operator is one function of :mod:`pyarrow.compute`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MAX_DEPTH, MAX_CONDITIONS, MAX_VALUES = 16, 256, 10_000
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
TEXT = {"$startswith": pc.starts_with, "$endswith": pc.ends_with, "$contains": pc.match_substring}
OPERATORS = (*COMPARISONS, "$in", "$nin", "$exists", *TEXT)


def as_expression(filter: Any, schema: pa.Schema) -> pc.Expression:
    """The expression that a filter says.

    Args:
        filter: a JSON object. ``{"column": value}`` is ``{"column": {"$eq": value}}``, and null is ``{"$exists": false}``.
            Operators of a column: $eq, $ne, $gt, $gte, $lt, $lte, $in, $nin, $exists, $startswith, $endswith, $contains.
            Several columns or operators hold together; ``$and``, ``$or`` take a list of filters and ``$not`` one. A document
            without a value passes ``$exists: false`` alone.
        schema: ``id`` and the metadata columns.

    Raises:
        ValueError, TypeError: it is no such object, a column is not there, or a value is not of its type.
    """
    return _Reader(schema).filter(filter, 0)


class _Reader:
    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._left = MAX_CONDITIONS

    def filter(self, node: Any, depth: int) -> pc.Expression:
        if not isinstance(node, Mapping) or not node:
            raise TypeError(f"a filter is an object such as {{'year': {{'$gte': 2020}}}}, got {_shown(node)}")
        if depth > MAX_DEPTH:
            raise ValueError(f"the filter is nested more than {MAX_DEPTH} deep")
        return reduce(operator.and_, [self._entry(key, value, depth) for key, value in node.items()])

    def _entry(self, key: str, value: Any, depth: int) -> pc.Expression:
        if key in ("$and", "$or"):
            if not isinstance(value, Sequence) or isinstance(value, str) or not value:
                raise TypeError(f"{key} takes a list of filters, got {_shown(value)}")
            return reduce(operator.and_ if key == "$and" else operator.or_, [self.filter(one, depth + 1) for one in value])
        if key == "$not":
            return ~self.filter(value, depth + 1)
        if key.startswith("$"):
            raise ValueError(f"unknown operator {_shown(key)}; between filters there are $and, $or, $not")
        if key not in self._schema.names:
            raise ValueError(f"no column {_shown(key)}; there are {', '.join(self._schema.names)}")
        conditions = value if isinstance(value, Mapping) else {"$eq": value}
        if not conditions:
            raise ValueError(f"column {key!r} has no condition; expected one of {', '.join(OPERATORS)}")
        return reduce(operator.and_, [self._condition(key, name, operand) for name, operand in conditions.items()])

    def _condition(self, column: str, name: str, operand: Any) -> pc.Expression:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"the filter has more than {MAX_CONDITIONS} conditions")
        field, kind = pc.field(column), self._schema.field(column).type
        if name == "$eq" and operand is None:
            return field.is_null()
        if name == "$ne" and operand is None:
            return field.is_valid()
        if name in COMPARISONS:
            return COMPARISONS[name](field, self._scalar(column, kind, operand))
        if name in ("$in", "$nin"):
            if not isinstance(operand, Sequence) or isinstance(operand, str) or len(operand) > MAX_VALUES:
                raise TypeError(
                    f"{name} of column {column!r} takes a list of at most {MAX_VALUES:,} values, got {_shown(operand)}"
                )
            scalars = [self._scalar(column, kind, value) for value in operand]
            is_in = field.isin(pa.array([one.as_py() for one in scalars if one.type == kind], kind))  # 2020.5 is no integer
            return is_in if name == "$in" else field.is_valid() & ~is_in
        if name == "$exists":
            if not isinstance(operand, bool):
                raise TypeError(f"$exists of column {column!r} is true or false, got {_shown(operand)}")
            return field.is_valid() if operand else field.is_null()
        if name in TEXT:
            if not isinstance(operand, str) or not _is_text(kind):
                raise TypeError(
                    f"{name} compares a column of strings with a string, got {column!r} ({kind}) and {_shown(operand)}"
                )
            return TEXT[name](field, operand)
        raise ValueError(f"unknown operator {_shown(name)} of column {column!r}; expected one of {', '.join(OPERATORS)}")

    def _scalar(self, column: str, kind: pa.DataType, value: Any) -> pa.Scalar:
        if value is None or isinstance(value, (Mapping, list)):
            raise TypeError(f"column {column!r} ({kind}) is compared with one value, got {_shown(value)}")
        if isinstance(value, bool) != pa.types.is_boolean(kind):  # Arrow would read true as 1
            raise TypeError(f"column {column!r} ({kind}) cannot be compared with {_shown(value)}")
        if _is_text(kind) and not isinstance(value, str):  # and 1 as "1"
            raise TypeError(f"column {column!r} ({kind}) is compared with strings, got {_shown(value)}")
        try:
            if isinstance(value, float) and pa.types.is_integer(kind):  # 2020.5 is above 2020
                return pa.scalar(value, pa.float64())
            return pa.scalar(value).cast(kind) if isinstance(value, str) else pa.scalar(value, kind)
        except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
            raise ValueError(f"column {column!r} ({kind}) cannot be compared with {_shown(value)}") from error


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{type(value).__name__} {shown[:57]}..."
