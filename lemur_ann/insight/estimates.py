"""What the learned map says of documents for a query, and which ranks they have by that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lemur_ann.documents.rows import Rows, RowSet
    from lemur_ann.searching.snapshot import Learned

ROWS_PER_BLOCK = 16_384  # of vectors, when the estimates of all documents are computed
FIRST_SCAN = 1024  # rows looked through for a document's rank, before more are
SCANNING = ("exact", "hnsw")  # these kinds scan where the beam is all there is; a graph of another library is walked even then


def all_estimates(learned: Learned, encoded: npt.NDArray[np.float32], excluded: RowSet) -> npt.NDArray[np.float32]:
    """Inner products of an encoded query (dim,) with every vector, (num_rows,); -inf where the document is excluded."""
    rows, take = np.arange(len(excluded)), learned.candidates.take
    blocks = (rows[begin : begin + ROWS_PER_BLOCK] for begin in range(0, len(rows), ROWS_PER_BLOCK))
    estimates = np.concatenate([take(block) @ encoded for block in blocks])
    estimates[excluded.mask] = -np.inf
    return estimates


def ranks_by_estimate(
    learned: Learned,
    encoded: npt.NDArray[np.float32],
    rows: Rows,
    excluded: RowSet,
    *,
    num_threads: int,
    on_device: bool,
) -> npt.NDArray[np.int64]:
    """The ranks, from 1, of some rows that are not excluded: in how many candidates a search has each that scans all vectors.

    On a CPU a scan may read codes of the vectors, and the ranks are those of the codes then; on a device it reads the vectors.
    """
    if len(rows) == 0:
        return np.empty(0, np.int64)
    if on_device or learned.options.candidates not in SCANNING:
        estimates = all_estimates(learned, encoded, excluded)
        return np.array([place_of(row, estimates) for row in rows.tolist()], np.int64)
    num_matching = len(excluded) - excluded.count
    search, count = learned.candidates.search, min(FIRST_SCAN, num_matching)
    while True:
        (found,) = search(encoded[None], count, len(excluded), num_threads=num_threads, excluded=excluded)
        if np.isin(rows, found).all():
            return np.array([np.flatnonzero(found == row)[0] + 1 for row in rows.tolist()], np.int64)
        assert count < num_matching
        count = min(8 * count, num_matching)


def place_of(row: int, values: npt.NDArray[np.float32]) -> int:
    """The rank of a row, from 1: the largest value first, the earlier row first among equals."""
    return 1 + int(np.count_nonzero(values > values[row])) + int(np.count_nonzero(values[:row] == values[row]))
