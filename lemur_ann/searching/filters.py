"""Which documents a filter lets through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lemur_ann.documents.inputs import ids_of
from lemur_ann.documents.rows import Mask, RowSet
from lemur_ann.searching.snapshot import Snapshot

ROW = "lemur_ann row c39f1b"  # the name of a column beside the caller's, while an expression is evaluated


def excluded_by(filter: Any, snapshot: Snapshot) -> RowSet:
    """The rows that a filter keeps out, deleted ones among them.

    Args:
        filter: a pyarrow compute expression over ``id`` and the metadata columns; booleans, one for each document in the order
            of :meth:`lemur_ann.LemurIndex.ids`; or ids, of which those that name no document count for nothing.

    Raises:
        TypeError, ValueError: the filter is none of these, or does not fit the documents.
    """
    if isinstance(filter, pc.Expression) and snapshot.num_documents == 0:
        return snapshot.deleted  # there may be no columns yet for it to fit
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
    """The mask that ``filter`` is, None where it is something else."""
    array: Mask
    if isinstance(filter, (pa.Array, pa.ChunkedArray)):
        if not pa.types.is_boolean(filter.type):
            return None
        array = np.array(filter.fill_null(False).to_pylist(), np.bool_)
        return array
    if isinstance(filter, np.ndarray) or hasattr(filter, "__array__"):
        array = np.asarray(filter)
        return array if array.dtype == np.bool_ and array.ndim == 1 else None
    if isinstance(filter, list) and filter and all(isinstance(item, (bool, np.bool_)) for item in filter):
        return np.array(filter, np.bool_)
    return None


def _by_ids(filter: Any, snapshot: Snapshot) -> Mask:
    if isinstance(filter, (str, bytes)) or not isinstance(filter, (Iterable, pa.Array, pa.ChunkedArray)):
        raise TypeError(
            "filter must be a pyarrow compute expression over the metadata columns, a collection of ids, or one boolean "
            f"for each document, got {type(filter).__name__}"
        )
    ids: Any = filter if hasattr(filter, "__len__") else list(filter)
    matching = np.zeros(snapshot.num_rows, np.bool_)
    if len(ids):
        ids = ids_of(ids)
        snapshot.ids.check_kind(ids)
        matching[snapshot.ids.known(ids)] = True
    return matching
