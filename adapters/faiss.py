"""An index with the interface of a faiss index, whose vectors are multi-vector items and whose inner product is MaxSim.

faiss itself is not needed: ``pip install lemur_ann``. A program written for faiss changes its constructor and its vectors::

    from lemur_ann.adapters.faiss import IndexLemur, read_index, write_index

    index = IndexLemur(128, training_queries)  # faiss.IndexFlatIP(128)
    index.train(sample)                        # lists of (num_tokens, 128) matrices where there were (n, 128) arrays
    index.add_with_ids(documents, ids)
    D, I = index.search(queries, 10)           # MaxSim, higher is better; ids, -1 where there are fewer

Items are a sequence of (num_tokens, d) matrices, an array (n, num_tokens, d), or one flat matrix (total_tokens, d) with
``offsets``, int (n + 1,). An array (n, d) is refused, since it could be one item or n: ``x[:, None]`` are n items of one token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import Hits, LemurIndex, validate
from lemur_ann.documents import tokens_from_arrow

METRIC_INNER_PRODUCT = 0
NO_SCORE = np.finfo(np.float32).min  # what faiss fills in, beside the id -1, where there are fewer than k


class IDSelectorBatch:
    """The items of these ids; the same as faiss's, which may be passed as well, like its other selectors.

    faiss's are asked item by item, in Python; this one is looked up.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = _integers(ids, "ids")

    def is_member(self, id: int) -> bool:
        """Whether the id is among them."""
        return bool(np.isin(id, self.ids))


@dataclass(frozen=True)
class SearchParameters:
    """What one search does otherwise; faiss's ``SearchParameters`` and ``SearchParametersHNSW`` may be passed as well.

    Attributes:
        sel: search only what this selector lets through.
        efSearch: beam of the graph search, as ``ef_search`` of :meth:`lemur_ann.LemurIndex.search`.
        num_candidates: items reranked.
        exact: score every item.
    """

    sel: Any = None
    efSearch: int | None = None
    num_candidates: int | None = None
    exact: bool = False


class IndexLemur:
    """A faiss index over :class:`lemur_ann.LemurIndex`.

    Unlike faiss's own it may be searched and added to before :meth:`train`: it is exact then, and ``is_trained`` is False.

    Args:
        d: dimension of tokens.
        training_queries: items that :meth:`train` learns from: a few thousand queries like those to come, not those to measure
            with. They may come to :meth:`train` instead.
        **options: of :class:`lemur_ann.LemurIndex`.

    Attributes:
        d: dimension of tokens; None only for an index read that never had an item.
        metric_type: METRIC_INNER_PRODUCT, of which MaxSim is a sum.
        index: the :class:`lemur_ann.LemurIndex`, for all that faiss has no name for, such as ``index.index.tune``.
    """

    metric_type = METRIC_INNER_PRODUCT

    def __init__(self, d: int, training_queries: Any = None, **options: Any) -> None:
        self.d: int | None = validate.positive_int(d, "d")
        self.training_queries = training_queries
        self.index = LemurIndex(**options)

    def __repr__(self) -> str:
        return f"<IndexLemur of d {self.d} over {self.index!r}>"

    @property
    def ntotal(self) -> int:
        """The number of items."""
        return len(self.index)

    @property
    def is_trained(self) -> bool:
        """Whether a map was learned; until then searches are exact."""
        return self.index.is_fitted

    def train(self, x: Any = None, *, xq_train: Any = None, offsets: Any = None) -> None:
        """Learn the map from training queries over a sample of documents; :meth:`add` then only encodes.

        The sample is not kept, and the map is as good as it is like what will be added: a few thousand documents and more.

        Args:
            x: the sample, items. None learns from what was added, which is best.
            xq_train: training queries, items; None means those of the constructor. Without any, recall is far lower, and a
                warning says so.
            offsets: int (n + 1,), where ``x`` is flat.

        Raises:
            RuntimeError: there are items already, and ``x`` is a sample of others.
        """
        queries = self.training_queries if xq_train is None else xq_train
        if x is None:
            self.index.fit(queries=queries)
            return
        items = self._items(x, offsets)
        if self.ntotal:
            raise RuntimeError(f"the index holds {self.ntotal} items already: train before add, or train() on those it holds")
        learned = LemurIndex(**asdict(self.index.options)).fit(items, queries=queries)
        learned.delete(learned.ids())
        self.index = learned.compact()  # the map stays, and ids begin at 0 again

    def add(self, x: Any, *, offsets: Any = None) -> None:
        """Add items under the next integers, from 0 on.

        Args:
            x: items.
            offsets: int (n + 1,), where ``x`` is flat.
        """
        self.index.add(self._items(x, offsets))

    def add_with_ids(self, x: Any, ids: Any, *, offsets: Any = None) -> None:
        """Add items under ids of your own, int64 (n,); one that names an item already is refused with ValueError."""
        if isinstance(ids, (set, frozenset)):
            raise TypeError(f"ids must be in the order of their items, and a {type(ids).__name__} has none")
        items, ids = self._items(x, offsets), _integers(ids, "ids")
        if ids.shape != (len(items),):
            raise AssertionError(f"not same nb of vectors as ids: {len(items)} items, ids of shape {ids.shape}")
        self.index.add(items, ids=ids)

    def search(
        self,
        x: Any,
        k: int,
        *,
        params: Any = None,
        D: npt.NDArray[np.float32] | None = None,
        I: npt.NDArray[np.int64] | None = None,  # noqa: E741
        offsets: Any = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k items of highest MaxSim for each query: exact scores of the best candidates, or of all before :meth:`train`.

        Args:
            x: queries, items.
            k: at least 1.
            params: :class:`SearchParameters`, or faiss's.
            D, I: arrays (n, k) to write to.
            offsets: int (n + 1,), where ``x`` is flat.

        Returns:
            (D, I), float32 and int64 (n, k): scores, best first, and ids; -FLT_MAX and -1 where there are fewer than k.
        """
        k = validate.integer(k, "k", least=-(2**62))
        if k < 1:
            raise AssertionError(f"k must be at least 1, got {k}")
        found = self._search(self._items(x, offsets), k, params, exact=getattr(params, "exact", False))
        D = np.empty((len(found), k), np.float32) if D is None else D
        I = np.empty((len(found), k), np.int64) if I is None else I  # noqa: E741
        if D.shape != (len(found), k) or I.shape != (len(found), k):
            raise AssertionError(f"D and I must have shape {(len(found), k)}, got {D.shape} and {I.shape}")
        D[:], I[:] = NO_SCORE, -1
        for row, hits in enumerate(found):
            D[row, : len(hits)], I[row, : len(hits)] = hits.scores, hits.ids
        return D, I

    def range_search(
        self, x: Any, thresh: float, *, params: Any = None, offsets: Any = None
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """All items whose MaxSim is above ``thresh``, best first. It scores every item, trained or not.

        Returns:
            (lims, D, I): query i has ``D[lims[i]:lims[i + 1]]``, float32, and the same of I, int64.
        """
        found = self._search(self._items(x, offsets), max(self.ntotal, 1), params, exact=True)
        counts = [int(np.count_nonzero(hits.scores > thresh)) for hits in found]
        D = [hits.scores[:count] for hits, count in zip(found, counts, strict=True)]
        ids = [hits.ids[:count] for hits, count in zip(found, counts, strict=True)]
        lims = np.cumsum([0, *counts]).astype(np.uint64)
        return lims, np.concatenate([np.empty(0, np.float32), *D]), np.concatenate([np.empty(0, np.int64), *ids])

    def reconstruct(self, key: int) -> npt.NDArray[Any]:
        """An item as it is stored, (num_tokens, d).

        Raises:
            RuntimeError: no item has this id.
        """
        return self.reconstruct_batch([key])[0]

    def reconstruct_batch(self, key: Any) -> list[npt.NDArray[Any]]:
        """Several of them."""
        keys = _integers(key, "key")
        if len(keys) == 0:
            return []
        try:
            column = self.index.get(keys).column("tokens").combine_chunks()
        except KeyError as error:
            raise RuntimeError(f"key not found: {error.args[0]}") from error
        tokens, offsets = tokens_from_arrow(column, "tokens")
        return np.split(tokens, offsets[1:-1])

    def remove_ids(self, x: Any) -> int:
        """Remove items by ids, int64 (n,), or by a selector; ids that name no item count for nothing.

        The others keep their ids, as in faiss's IndexIDMap; IndexFlat would number them anew.

        Returns:
            how many were removed.
        """
        return self.index.delete(filter=self._filter(x if hasattr(x, "is_member") else IDSelectorBatch(x)))

    def reset(self) -> None:
        """Remove all items; what was learned stays."""
        if self.ntotal:
            self.index.delete(self.index.ids())
        self.index.compact()

    def _search(self, items: Any, k: int, params: Any, *, exact: bool) -> list[Hits]:
        sel = getattr(params, "sel", None)
        found: list[Hits] = self.index.search(
            items,
            k,
            filter=None if sel is None else self._filter(sel),
            ef_search=getattr(params, "efSearch", None),
            num_candidates=getattr(params, "num_candidates", None),
            exact=exact,
        )
        return found

    def _filter(self, sel: Any) -> npt.NDArray[Any]:
        """What a selector lets through, as ids, or as a boolean for each item."""
        if isinstance(sel, IDSelectorBatch):
            return sel.ids
        return np.array([sel.is_member(doc_id) for doc_id in self.index], np.bool_)

    def _items(self, x: Any, offsets: Any) -> Any:
        """A sequence of matrices, or an array of three dimensions, of this dimension of tokens."""
        if offsets is not None:
            flat = validate.token_matrix(x, "x", allow_empty=True)
            bounds = validate.offsets_array(offsets, len(flat))
            x = np.split(flat, bounds[1:])[:-1]
        elif getattr(x, "ndim", 3) == 2:
            raise AssertionError(
                f"x is one matrix of shape {tuple(x.shape)}: pass [x] for one item, x[:, None] for items of one token each, "
                "or offsets= for items that lie end to end"
            )
        if len(x) and self.d is not None and (len(x[0].shape) != 2 or x[0].shape[1] != self.d):
            raise AssertionError(f"items must be matrices (num_tokens, {self.d}), got one of shape {tuple(x[0].shape)}")
        return x


def _integers(ids: Any, name: str) -> npt.NDArray[np.int64]:
    """Ids, int64 (n,); TypeError where they are no integers, such as a mask of booleans, which faiss would take for 0 and 1."""
    if isinstance(ids, (dict, str, bytes)):
        raise TypeError(f"{name} must be an array or a list of integers, got {type(ids).__name__}")
    array = validate.as_array(ids if isinstance(ids, Sequence) or hasattr(ids, "__array__") else list(ids), name)
    if array.ndim != 1:
        raise AssertionError(f"{name} must have shape (n,), got {array.shape}")
    if array.dtype.kind not in "iu" and len(array):
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.dtype.kind == "u" and len(array) and array.max() >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {array.max()}")
    return array.astype(np.int64)


def write_index(index: IndexLemur, path: str | PathLike[str]) -> None:
    """Save as a directory, which :meth:`lemur_ann.LemurIndex.load` reads too; an index already there is replaced.

    Training queries are not saved.
    """
    index.index.save(path)


def read_index(path: str | PathLike[str]) -> IndexLemur:
    """Load what :func:`write_index`, or :meth:`lemur_ann.LemurIndex.save`, saved.

    Raises:
        RuntimeError: nothing is there, as in faiss.
        TypeError: its ids are strings.
    """
    read = IndexLemur.__new__(IndexLemur)
    try:
        read.index = LemurIndex.load(path)
    except FileNotFoundError as error:
        raise RuntimeError(f"could not open {path} for reading: {error}") from error
    kind = read.index.ids().type
    if str(kind) != "int64":
        raise TypeError(f"ids of a faiss index are integers, and those in {path} are {kind}")
    read.training_queries = None
    read.d = read.index.encoder.targets.sample_tokens.shape[1] if read.is_trained else read.index.dim
    return read
