"""Which documents a filter lets through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lemur_ann import validate
from lemur_ann.documents.inputs import ids_of
from lemur_ann.documents.rows import Mask, RowSet
from lemur_ann.searching.snapshot import Snapshot

ROW = "lemur_ann row c39f1b"  # the name of a column beside the caller's, while an expression is evaluated
OPERATORS = ("=", "==", "!=", "<", ">", "<=", ">=", "in", "not in")  # of lists of tuples, which pyarrow and pandas take


def excluded_by(filter: Any, snapshot: Snapshot) -> RowSet:
    """The rows that a filter keeps out, deleted ones among them.

    Args:
        filter: a pyarrow compute expression over ``id`` and the metadata columns; booleans, one for each document in the order
            of :meth:`lemur_ann.LemurIndex.ids`, where a null lets nothing through; or ids, of which those that name no document
            count for nothing.

    Raises:
        TypeError, ValueError: the filter is none of these, or does not fit the documents.
    """
    if isinstance(filter, pc.Expression) and snapshot.num_documents == 0:
        return snapshot.deleted  # there may be no columns yet for it to fit
    filter = list(filter) if isinstance(filter, Iterator) else filter
    if isinstance(filter, pc.Expression):
        matching = _by_expression(filter, snapshot)
    elif (mask := booleans(filter)) is not None:
        if len(mask) != snapshot.num_documents:
            raise ValueError(
                f"filter has {len(mask)} booleans, expected one for each of {snapshot.num_documents} documents, "
                "in the order of ids()"
            )
        matching = np.zeros(snapshot.num_rows, np.bool_)
        matching[snapshot.live[mask]] = True
    else:
        matching = _by_ids(filter, snapshot)
    return RowSet.of(snapshot.deleted.mask | ~matching)


def _by_expression(expression: pc.Expression, snapshot: Snapshot) -> Mask:
    import pyarrow.dataset as ds

    table = pa.table({"id": snapshot.ids.column.array, ROW: np.arange(snapshot.num_rows)})
    if snapshot.metadata is not None:
        for name in snapshot.metadata.column_names:
            table = table.append_column(name, snapshot.metadata.column(name))
    try:
        rows = ds.dataset(table).to_table(columns=[ROW], filter=expression).column(ROW)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, pa.ArrowTypeError) as error:
        columns = [f"{field.name} ({field.type})" for field in table.schema if field.name != ROW]
        reason = str(error).splitlines()[0]
        raise ValueError(f"filter {expression} does not fit the columns {', '.join(columns)}: {reason}") from error
    matching = np.zeros(snapshot.num_rows, np.bool_)
    matching[rows.to_numpy()] = True
    return matching


def booleans(filter: Any) -> Mask | None:
    """The mask that ``filter`` is, None where it is something else; missing values let nothing through.

    Raises:
        TypeError: it is of pandas, whose rows go by labels, and these are not 0, 1, 2, ...
    """
    array: Mask
    if isinstance(filter, (pa.Array, pa.ChunkedArray)):
        if not pa.types.is_boolean(filter.type):
            return None
        array = np.array(filter.fill_null(False).to_pylist(), np.bool_)
        return array
    if isinstance(filter, np.ndarray) or hasattr(filter, "__array__"):
        filter = filter.filled(False) if isinstance(filter, np.ma.MaskedArray) and filter.dtype == np.bool_ else filter
        array = validate.as_array(filter, "filter") if validate.is_torch(filter) else np.asarray(filter)
        mask = array if array.dtype == np.bool_ and array.ndim == 1 else None
        if mask is None and array.dtype == object and array.ndim == 1:
            mask = _booleans_in(array.tolist())
        if mask is not None and type(filter).__module__.startswith("pandas"):
            _check_labels(filter)
        return mask
    return _booleans_in(filter) if isinstance(filter, (list, tuple)) else None


def _booleans_in(values: Sequence[Any]) -> Mask | None:
    """The mask that some values are, of which some may be missing; None where they are something else, or none at all."""
    kinds = {type(value) for value in values}
    missing = {kind for kind in kinds if kind.__name__ in ("NoneType", "NAType")}
    if kinds - missing - {bool, np.bool_} or not kinds - missing:
        return None
    return np.array([type(value) not in missing and bool(value) for value in values], np.bool_)


def _check_labels(series: Any) -> None:
    labels = getattr(series, "index", None)
    if labels is not None and not np.array_equal(labels, np.arange(len(labels))):
        raise TypeError(
            "filter is a pandas Series of booleans whose labels are not 0, 1, 2, ...: booleans go by the order of ids(), so "
            "sort it so and pass filter.to_numpy()"
        )


def _by_ids(filter: Any, snapshot: Snapshot) -> Mask:
    is_none = isinstance(filter, (str, bytes, Mapping)) or not isinstance(filter, (Iterable, pa.Array, pa.ChunkedArray))
    if is_none or _of_tuples(filter):
        raise TypeError(
            "filter must be a pyarrow compute expression over the metadata columns, a collection of ids, or one boolean "
            f"for each document, got {type(filter).__name__}{_instead_of(filter)}"
        )
    matching = np.zeros(snapshot.num_rows, np.bool_)
    if getattr(filter, "__len__", lambda: 1)():
        ids = ids_of(filter)
        if len(ids) > 1 and pa.types.is_integer(ids.type) and set(ids.to_pylist()[:3]) <= {0, 1}:
            _refuse_a_mask_of_numbers(ids)
        snapshot.ids.check_kind(ids)
        matching[snapshot.ids.known(ids)] = True
    return matching


def _refuse_a_mask_of_numbers(ids: pa.Array) -> None:
    """Ids are not named twice: numbers 0 and 1, some more than once, were meant for booleans."""
    values = set(ids.to_pylist())
    if values <= {0, 1} and len(values) < len(ids):
        raise TypeError(
            f"filter has {len(ids)} numbers that are all 0 or 1, which might be ids or booleans; pass booleans, as in "
            "np.asarray(filter, bool), or each id once"
        )


def _instead_of(filter: Any) -> str:
    """What to write in the place of a filter of another form."""
    if meant := _of_tuples(filter):
        return f"; with pyarrow.compute as pc, write filter={meant}"
    if isinstance(filter, Mapping):
        terms = [_term(name, value) for name, value in filter.items()]
        return f"; with pyarrow.compute as pc, write filter={' & '.join(terms)}" if terms and all(terms) else ""
    is_id = isinstance(filter, (str, int)) and not isinstance(filter, bool) and len(repr(filter)) < 80
    return f"; one id is filter=[{filter!r}]" if is_id else ""


def _of_tuples(filter: Any) -> str:
    """The expression that a list of (column, operator, value) stands for where Parquet is read, or a list of such lists.

    Nothing where it is something else.
    """
    if not isinstance(filter, (list, tuple)) or not filter:
        return ""
    if isinstance(filter[0], list):
        every = [_of_tuples(part) for part in filter]
        return " | ".join(f"({meant})" for meant in every) if all(every) else ""
    terms = [_compared(*part) if isinstance(part, tuple) and len(part) == 3 else "" for part in filter]
    return " & ".join(terms) if all(terms) else ""


def _compared(name: Any, operator: Any, value: Any) -> str:
    """One of them; nothing where it is none."""
    if not isinstance(name, str) or not isinstance(operator, str) or operator not in OPERATORS:
        return ""
    if operator.endswith("in"):
        values = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
        return f"{'' if operator == 'in' else '~'}pc.field({name!r}).isin({values!r})"
    return f"(pc.field({name!r}) {'==' if operator == '=' else operator} {value!r})"


def _term(name: Any, value: Any) -> str:
    """What a dict says of a column as an expression; nothing where it has operators of some other library."""
    if isinstance(value, Mapping):
        return ""
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"pc.field({name!r}).isin({list(value)!r})"
    return f"(pc.field({name!r}) == {value!r})"
