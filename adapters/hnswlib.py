"""An index with the interface of ``hnswlib.Index``, whose vectors are multi-vector items and whose distance is 1 - MaxSim.

``pip install lemur_ann`` is all it needs. A program written for hnswlib changes its constructor and its vectors::

    from lemur_ann.adapters.hnswlib import Index

    index = Index(space="maxsim", dim=128, training_queries=queries)  # hnswlib.Index(space="ip", dim=128)
    index.init_index(max_elements=100_000, ef_construction=200, M=16)
    index.add_items(documents, ids)  # lists of (num_tokens, 128) matrices where there were (n, 128) arrays
    labels, distances = index.knn_query(queries, k=10)  # nearest first: a distance is 1 - MaxSim, as 1 - inner product in "ip"

Items are a sequence of (num_tokens, dim) matrices, an array (n, num_tokens, dim), or one flat matrix (total_tokens, dim) with
``offsets``, int (n + 1,). An array (n, dim) is refused, since it could be one item or n: ``data[:, None]`` are n items of one
token. Labels are integers from 0 to 2**63 - 1. Nothing is learned, and searches score every item, before there are ``fit_at``
items and training queries, or a call of :meth:`Index.fit`.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from lemur_ann import CorruptIndex, LemurIndex, validate
from lemur_ann.documents import tokens_from_arrow
from lemur_ann.events import after_fork
from lemur_ann.saved import MANIFEST, in_place_of

SETTINGS, ITEMS = "hnswlib.json", "index"  # what is in the folder that save_index writes


class Index:
    """The interface of ``hnswlib.Index`` over :class:`lemur_ann.LemurIndex`.

    It learns by itself, in the call of :meth:`add_items` that brings the number of items to ``fit_at`` or above, where there
    are training queries: that call takes minutes where there are many items. Before, and where there are none, searches score
    every item and are exact. :meth:`fit` learns when you say.

    Args:
        space: "maxsim", or "ip", which means the same: over items of one token MaxSim is the inner product.
        dim: dimension of tokens.
        training_queries: items to learn from: a few thousand queries like those to come, not those to measure with.
        fit_at: number of items to learn at.
        **options: of :class:`lemur_ann.LemurIndex`; M, ef_construction and seed come with :meth:`init_index`.

    Attributes:
        space, dim: as above.
        num_threads: of calls that say nothing else; -1 means all cores.
        index: the :class:`lemur_ann.LemurIndex`, from :meth:`init_index` or :meth:`load_index` on.
    """

    def __init__(self, space: str, dim: int, training_queries: Any = None, fit_at: int = 4096, **options: Any) -> None:
        if space not in ("maxsim", "ip"):
            raise RuntimeError(f"Space name must be maxsim or ip, got {space!r}")
        self.space = space
        self.dim = validate.positive_int(dim, "dim")
        self.training_queries = training_queries
        self.fit_at = validate.positive_int(fit_at, "fit_at")
        self.num_threads = -1
        self._options = options
        self._index: LemurIndex | None = None
        self._ef: int | None = None
        self._max_elements = 0
        self._replaces_deleted = False
        self._next_label = 0  # hnswlib's: one more with every item that came, whatever its label
        self._deleted: dict[int, None] = {}  # labels, in the order in which they were marked
        self._not_deleted: list[pc.Expression] = []  # the filter of them, once a search made it; a new list for new labels
        self._make_lock()
        after_fork(self, Index._make_lock)

    def _make_lock(self) -> None:
        self._writing = threading.Lock()

    def __repr__(self) -> str:
        return f"<lemur_ann.adapters.hnswlib.Index(space={self.space!r}, dim={self.dim})>"

    @property
    def index(self) -> LemurIndex:
        """What holds the items, those that are marked as deleted too.

        Raises:
            RuntimeError: before init_index and load_index.
        """
        if self._index is None:
            raise RuntimeError("the index is not there yet: call init_index or load_index first")
        return self._index

    def init_index(
        self,
        max_elements: int,
        M: int = 16,
        ef_construction: int = 200,
        random_seed: int = 100,
        allow_replace_deleted: bool = False,
    ) -> None:
        """Make it, for at most ``max_elements`` items.

        Args:
            max_elements: :meth:`resize_index` changes it; no memory is taken for it.
            M, ef_construction: of the graph, as in hnswlib.
            random_seed: for learning and for the graph.
            allow_replace_deleted: let :meth:`add_items` put new items in the place of deleted ones.

        Raises:
            RuntimeError: it was made already.
        """
        if self._index is not None:
            raise RuntimeError("The index is already initiated.")
        max_elements = validate.integer(max_elements, "max_elements", least=0)
        self._index = LemurIndex(**{"M": M, "ef_construction": ef_construction, "seed": random_seed, **self._options})
        self._max_elements, self._replaces_deleted = max_elements, allow_replace_deleted

    def add_items(
        self, data: Any, ids: Any = None, num_threads: int = -1, replace_deleted: bool = False, *, offsets: Any = None
    ) -> None:
        """Add items, or put them in the place of those that have their labels; learns where it is time (see the class).

        All or nothing is added. A label that is marked as deleted is there again.

        Args:
            data: items.
            ids: a label for each. None goes on counting, from 0, by one for every item that ever came; as in hnswlib that may
                be a label that was given by hand.
            num_threads: -1 means ``num_threads`` of the index.
            replace_deleted: give up the items marked longest ago, one for each of these, so that their places are free.
            offsets: int (n + 1,), where ``data`` is flat.

        Raises:
            RuntimeError: too many items, labels or items of a wrong shape, or ``replace_deleted`` where that is not allowed.
        """
        items = self._items(data, offsets)
        if replace_deleted and not self._replaces_deleted:
            raise RuntimeError("Replacement of deleted elements is disabled in constructor")
        with self._writing:
            if ids is None:
                labels = np.arange(self._next_label, self._next_label + len(items))
            else:
                labels = np.atleast_1d(np.asarray(ids))
            if labels.shape != (len(items),):
                raise RuntimeError(f"The input label shape {labels.shape} does not match the {len(items)} items")
            rows = {label: row for row, label in enumerate(labels.tolist())}  # of a label given twice, the last one counts
            if any(label < 0 for label in rows):
                raise OverflowError("labels must not be negative")
            marked = [label for label in rows if label in self._deleted]
            if marked and self._replaces_deleted and not replace_deleted:
                raise RuntimeError(
                    "Can't use addPoint to update deleted elements if replacement of deleted elements is enabled."
                )
            left = [label for label in self._deleted if label not in rows]
            given_up = left[: len(rows) - len(marked)] if replace_deleted else []
            num_new = sum(label not in self.index for label in rows)
            if len(self.index) + num_new - len(given_up) > self._max_elements:
                raise RuntimeError("The number of elements exceeds the specified limit")
            if len(rows) < len(items):
                items = [items[row] for row in rows.values()]
            self.index.upsert(items, ids=list(rows), num_threads=self._threads(num_threads))
            self.index.delete(filter=given_up)
            self._set_deleted(left[len(given_up) :])
            self._next_label += len(labels)
            if self.training_queries is not None and not self.index.is_fitted and len(self.index) >= self.fit_at:
                self.fit(self.training_queries)

    def fit(self, training_queries: Any = None) -> None:
        """Learn the map now, from training queries, over the items that are there; searches are quick from then on.

        Args:
            training_queries: None means those of the constructor; without any, recall is far lower, and a warning says so.
        """
        queries = self.training_queries if training_queries is None else training_queries
        self.index.fit(queries=queries, num_threads=self._threads(-1))

    def knn_query(
        self,
        data: Any,
        k: int = 1,
        num_threads: int = -1,
        filter: Callable[[int], bool] | None = None,
        *,
        offsets: Any = None,
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32]]:
        """The k nearest items of each query.

        Args:
            data: queries, items.
            k: at least 1.
            num_threads: -1 means ``num_threads`` of the index.
            filter: takes a label and says whether it may be found; asked once for each item, in Python.
            offsets: int (n + 1,), where ``data`` is flat.

        Returns:
            (labels, distances): uint64 and float32 (n, k), nearest first; a distance is 1 - MaxSim.

        Raises:
            RuntimeError: there are fewer than k items, or the filter lets fewer through.
        """
        items = self._items(data, offsets)
        passing: Any = None
        if filter is not None:
            passing = np.array([label not in self._deleted and filter(label) for label in self.index], np.bool_)
        elif self._deleted:
            made = self._not_deleted
            if not made:
                made.append(~pc.field("id").isin(list(self._deleted)))
            passing = made[0]
        found = self.index.search(items, k, filter=passing, ef_search=self._ef, num_threads=self._threads(num_threads))
        if any(len(hits) < k for hits in found):
            raise RuntimeError(f"Cannot return the results in a contiguous 2D array. There are fewer than {k} items to find")
        labels = np.array([hits.ids for hits in found], np.uint64).reshape(-1, k)
        return labels, 1 - np.array([hits.scores for hits in found], np.float32).reshape(-1, k)

    def mark_deleted(self, label: int) -> None:
        """Let searches no longer find an item; it keeps its place until a new one takes it.

        Raises:
            RuntimeError: there is none, or it is marked already.
        """
        with self._writing:
            label = self._known(label)
            if label in self._deleted:
                raise RuntimeError("The requested to delete element is already deleted")
            self._deleted[label], self._not_deleted = None, []

    def unmark_deleted(self, label: int) -> None:
        """Let searches find it again.

        Raises:
            RuntimeError: there is none, or it is not marked.
        """
        with self._writing:
            label = self._known(label)
            if label not in self._deleted:
                raise RuntimeError("The requested to undelete element is not deleted")
            del self._deleted[label]
            self._not_deleted = []

    def get_items(self, ids: Any = None, return_type: str = "numpy") -> list[Any]:
        """Items as they are stored.

        Args:
            ids: labels; none where None, as in hnswlib.
            return_type: "numpy" for a list of (num_tokens, dim) arrays, which hnswlib has as one array; "list" for lists.

        Raises:
            RuntimeError: a label names no item, or a deleted one.
            ValueError: another return_type, or one label instead of a list.
        """
        if return_type not in ("numpy", "list"):
            raise ValueError('return_type should be "numpy" or "list"')
        given = np.asarray([] if ids is None else ids)
        if given.ndim == 0:
            raise ValueError("get_items accepts a list of indices and returns a list of vectors")
        if len(given) == 0:
            return []
        labels = [self._known(label) for label in given.tolist()]
        if any(label in self._deleted for label in labels):
            raise RuntimeError("Label not found")
        tokens, offsets = tokens_from_arrow(self.index.get(labels).column("tokens").combine_chunks(), "tokens")
        matrices = np.split(tokens, offsets[1:-1])
        return matrices if return_type == "numpy" else [matrix.tolist() for matrix in matrices]

    def get_ids_list(self) -> list[int]:
        """All labels, deleted ones included."""
        return list(self.index)

    def set_ef(self, ef: int) -> None:
        """The beam of graph searches, widened to ``num_candidates`` where that is more; it is saved with the index."""
        self._ef = validate.positive_int(ef, "ef")

    def set_num_threads(self, num_threads: int) -> None:
        """Those of calls that say nothing else; 0 and less mean all cores."""
        self.num_threads = num_threads

    def resize_index(self, new_size: int) -> None:
        """Let it hold as many items.

        Raises:
            RuntimeError: it holds more already.
        """
        new_size = validate.integer(new_size, "new_size", least=0)
        if new_size < len(self.index):
            raise RuntimeError("Cannot resize, max element is less than the current number of elements")
        self._max_elements = new_size

    def get_max_elements(self) -> int:
        """How many items it may hold."""
        return self._max_elements

    def get_current_count(self) -> int:
        """How many items it holds, deleted ones included."""
        return 0 if self._index is None else len(self._index)

    max_elements = property(get_max_elements)
    element_count = property(get_current_count)

    @property
    def ef(self) -> int:
        """What :meth:`set_ef` set; the option ef_search or num_candidates before, or 10, hnswlib's, where the index chooses."""
        if self._ef is not None or self._index is None:
            return self._ef or 10
        options = self._index.options
        return options.ef_search or options.num_candidates or 10

    @ef.setter
    def ef(self, ef: int) -> None:
        self.set_ef(ef)

    @property
    def M(self) -> int:
        """That of the graph; 0 before there is an index."""
        return 0 if self._index is None else self._index.options.M

    @property
    def ef_construction(self) -> int:
        """That of the graph; 0 before there is an index."""
        return 0 if self._index is None else self._index.options.ef_construction

    def save_index(self, path_to_index: str | os.PathLike[str]) -> None:
        """Save as a folder, in the place of one saved before; training queries are not in it.

        Raises:
            FileExistsError: something else is there.
        """
        folder = Path(path_to_index)
        if folder.exists() and not _is_saved(folder):
            raise FileExistsError(f"{folder} is there and is not what save_index writes; choose another path or remove it")
        with self._writing:
            settings = {
                "max_elements": self._max_elements,
                "ef": self._ef,
                "next_label": self._next_label,
                "deleted": list(self._deleted),
            }
            folder.mkdir(parents=True, exist_ok=True)
            with in_place_of(folder / SETTINGS) as new:
                new.write(json.dumps(settings).encode())
                new.flush()  # where there is no room for it, nothing has changed
                self.index.save(folder / ITEMS)

    def load_index(
        self, path_to_index: str | os.PathLike[str], max_elements: int = 0, allow_replace_deleted: bool = False
    ) -> None:
        """Load what :meth:`save_index` saved, in the place of what there was.

        Args:
            path_to_index: the folder; tokens stay in it, memory-mapped.
            max_elements: as many as before where it is fewer than there are items.
            allow_replace_deleted: as for :meth:`init_index`.

        Raises:
            RuntimeError: nothing is there, or items of another dim.
            CorruptIndex: it was altered.
        """
        folder = Path(path_to_index)
        try:
            settings = _settings(folder)
            index = LemurIndex.load(folder / ITEMS)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RuntimeError(f"Cannot open file: {error}") from error
        dim = index.encoder.targets.sample_tokens.shape[1] if index.is_fitted else index.dim
        if dim not in (None, self.dim):
            raise RuntimeError(f"{folder} has items of dim {dim}, and this index is for dim {self.dim}")
        with self._writing:
            self._index, self._ef, self._next_label = index, settings["ef"], settings["next_label"]
            self._max_elements = max_elements if max_elements >= max(len(index), 1) else settings["max_elements"]
            self._replaces_deleted = allow_replace_deleted
            self._set_deleted(settings["deleted"])

    def _set_deleted(self, labels: list[int]) -> None:
        self._deleted, self._not_deleted = dict.fromkeys(labels), []

    def _known(self, label: Any) -> int:
        """A label that names an item; RuntimeError where it names none, TypeError where it is no integer."""
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)):
            raise TypeError(f"a label must be an integer, got {type(label).__name__}")
        if int(label) not in self.index:
            raise RuntimeError("Label not found")
        return int(label)

    def _threads(self, num_threads: int) -> int | None:
        threads = num_threads if num_threads > 0 else self.num_threads
        return threads if threads > 0 else None

    def _items(self, data: Any, offsets: Any) -> Any:
        """A sequence of matrices, or an array of three dimensions, of this dimension of tokens."""
        if offsets is not None:
            flat = validate.token_matrix(data, "data", allow_empty=True)
            bounds = validate.offsets_array(offsets, len(flat))
            data = np.split(flat, bounds[1:])[:-1]
        elif getattr(data, "ndim", 3) < 3:
            raise RuntimeError(
                f"data has shape {tuple(data.shape)}: pass [data] for one item, data[:, None] for items of one token each, "
                "or offsets= for items that lie end to end"
            )
        if len(data) and (len(data[0].shape) != 2 or data[0].shape[1] != self.dim):
            raise RuntimeError(f"Wrong dimensionality of the vectors: expected (num_tokens, {self.dim}), got {data[0].shape}")
        return data


def _is_saved(folder: Path) -> bool:
    """Whether a folder holds what :meth:`Index.save_index` writes."""
    try:
        return (folder / ITEMS / MANIFEST).exists() if not (folder / SETTINGS).exists() else bool(_settings(folder))
    except CorruptIndex:
        return False


def _settings(folder: Path) -> dict[str, Any]:
    """What is saved beside the items; CorruptIndex where it is something else."""
    file = folder / SETTINGS
    try:
        settings: dict[str, Any] = json.loads(file.read_text())
        numbers = [settings["max_elements"], settings["next_label"], settings["ef"] or 1, *settings["deleted"]]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise TypeError("not all are numbers")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptIndex(f"{file} cannot be read: {error!r}") from error
    return settings
