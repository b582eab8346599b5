"""Filters as JSON, for clients that have no pyarrow: ``{"year": {"$gte": 2020}, "$or": [{"lang": "en"}, {"lang": "de"}]}``.

The language is the one that Chroma, Pinecone and MongoDB share. Values are cast to the type of their column, and nothing of a
filter is evaluated: each operator is one function of :mod:`pyarrow.compute`.
"""

from __future__ import annotations

import datetime
import decimal
import math
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
            if _is_number(operand) and pa.types.is_integer(kind):
                return _of_integers(field, kind, name, operand)
            return COMPARISONS[name](field, self._scalar(column, kind, operand))
        if name in ("$in", "$nin"):
            if not isinstance(operand, Sequence) or isinstance(operand, str) or len(operand) > MAX_VALUES:
                raise TypeError(
                    f"{name} of column {column!r} takes a list of at most {MAX_VALUES:,} values, got {_shown(operand)}"
                )
            if pa.types.is_nested(kind):
                raise TypeError(f"column {column!r} ({kind}) is not compared with values; it has $exists alone")
            scalars = [self._scalar(column, kind, value) for value in operand if not _is_no_value(value, kind)]
            values = [one.as_py() for one in scalars]
            if pa.types.is_floating(kind) and 0.0 in values:
                values += [0.0, -0.0]  # which isin tells apart
            is_in = field.isin(pa.array(values, kind))
            # null where there is no value, as a comparison is, so that $not lets it through no more
            return pc.if_else(field.is_valid(), is_in if name == "$in" else ~is_in, pa.scalar(None, pa.bool_()))
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
            if isinstance(value, float) and pa.types.is_integer(kind):  # one of these, see _is_no_value
                value = int(value)
            elif isinstance(value, float) and pa.types.is_decimal(kind):  # 1.5 as it is written
                value = decimal.Decimal(repr(value))
            elif isinstance(value, str) and pa.types.is_time(kind):  # which Arrow does not cast from strings
                value = datetime.time.fromisoformat(value)
            return pa.scalar(value).cast(kind) if isinstance(value, str) else pa.scalar(value, kind)
        except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
            raise ValueError(f"column {column!r} ({kind}) cannot be compared with {_shown(value)}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_no_value(value: Any, kind: pa.DataType) -> bool:
    """Whether a column of this type never has a value: 2020.5 and 300 are none of int8."""
    if not pa.types.is_integer(kind) or not _is_number(value):
        return False
    low, high = _bounds(kind)
    return not low <= value <= high or value != math.floor(value)


def _bounds(kind: pa.DataType) -> tuple[int, int]:
    bits = kind.bit_width
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if pa.types.is_signed_integer(kind) else (0, 2**bits - 1)


def _of_integers(field: pc.Expression, kind: pa.DataType, name: str, value: float) -> pc.Expression:
    """A comparison with a number that may be none of the column's type: 2020.5 is above 2020, and 300 above each int8.

    Arrow would compare them as float32, which has no integers above 16,777,216.
    """
    if math.isnan(value):
        raise ValueError(f"a column ({kind}) cannot be compared with NaN")
    (low, high), all_of_them, none = _bounds(kind), field == field, field != field
    if math.isinf(value):
        value = low - 1 if value < 0 else high + 1
    if name in ("$eq", "$ne"):
        if _is_no_value(value, kind):
            return none if name == "$eq" else all_of_them
        limit = int(value)
    else:
        limit = math.floor(value) if name in ("$gt", "$lte") else math.ceil(value)
        if not low <= limit <= high:
            return all_of_them if (limit < low) == (name in ("$gt", "$gte")) else none
    return COMPARISONS[name](field, pa.scalar(limit, kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{type(value).__name__} {shown[:57]}..."
