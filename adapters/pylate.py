"""A PyLate index: :class:`LemurIndex` takes the place of ``pylate.indexes.PLAID``.

``pip install lemur_ann[pylate]``, in an environment of its own: PyLate pins sentence-transformers to one version. Then::

    from lemur_ann.adapters.pylate import LemurIndex
    from pylate import models, retrieve

    model = models.ColBERT("lightonai/GTE-ModernColBERT-v1")
    index = LemurIndex(index_folder="indexes", index_name="lemur", override=True)
    index.add_documents(documents_ids=ids, documents_embeddings=model.encode(documents, is_query=False))
    index.fit(model.encode(training_queries, is_query=True))
    results = retrieve.ColBERT(index=index).retrieve(model.encode(queries, is_query=True), k=10)

Every change is on disk when its call returns, and the same folder and name find it again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

import lemur_ann
from lemur_ann import validate
from lemur_ann.documents import ids_of
from lemur_ann.saved import LOCK, MANIFEST, NAMES, check_replaceable, is_file_name

try:
    from pylate.indexes.base import Base
    from pylate.rank import RerankResult
except ImportError as error:
    raise ImportError("lemur_ann.adapters.pylate needs PyLate: pip install lemur_ann[pylate]") from error

# PyLate opens an index by its name as often as it likes. One process writes an index through one LemurIndex, so they share it.
_open: WeakValueDictionary[Path, lemur_ann.LemurIndex] = WeakValueDictionary()


class LemurIndex(Base):  # type: ignore[misc,unused-ignore]
    """Learned candidates and exact MaxSim in the place of PLAID.

    Ids are strings or integers, all of one kind, and come back as they were given. Scores are exact MaxSim. Until the map is
    learned, by :meth:`fit` or by an addition (see ``fit_at``), searches score every document.

    Args:
        index_folder, index_name: the index is the directory ``index_folder/index_name``, which is within ``index_folder``.
        override: begin anew, and delete the index that is there. A folder that holds anything else is left as it is.
        training_queries_embeddings: embeddings of queries like those to come, and not those to measure with, to learn from.
        fit_at: number of documents at which an addition also learns, where there are training queries; None leaves that to
            :meth:`fit`.
        num_candidates, ef_search, shortlist, num_threads: of this object's searches, as for
            :meth:`lemur_ann.LemurIndex.search`.
        device: where to learn and to search; None means the device that the index was made with, at first the CPU.
        read_only: search an index that another process may be changing, in the version of now; see
            :meth:`lemur_ann.LemurIndex.refresh`.
        **options: of a new index, as :class:`lemur_ann.LemurIndex` takes them. One that is there must have been made with them.

    Attributes:
        index: the :class:`lemur_ann.LemurIndex`, for all that PyLate has no name for: ``tune``, ``evaluate``, ``health``.
        search_options: keyword arguments of its ``search``, which every call uses.
        path: its directory.

    Raises:
        IndexLocked: another process has the index open for writing.
        ValueError: the index that is there was made with other options, or index_name leads out of index_folder.
        FileExistsError: override, and something else than an index is there.
        FileNotFoundError: read_only, and there is no index.
    """

    is_end_to_end_index = True

    def __init__(
        self,
        index_folder: str | PathLike[str] = "indexes",
        index_name: str = "lemur",
        override: bool = False,
        *,
        training_queries_embeddings: Any = None,
        fit_at: int | None = 20_000,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        shortlist: int | None = None,
        num_threads: int | None = None,
        device: str | None = None,
        read_only: bool = False,
        **options: Any,
    ) -> None:
        override, read_only = validate.boolean(override, "override"), validate.boolean(read_only, "read_only")
        if override and read_only:
            raise ValueError("override=True begins anew, and read_only=True never writes: pass one of them")
        self.path = _path(index_folder, index_name)
        self.search_options: dict[str, Any]
        self.search_options = {"num_candidates": num_candidates, "ef_search": ef_search, "shortlist": shortlist}
        self.search_options["num_threads"] = num_threads
        self.fit_at = fit_at
        self._training_queries = training_queries_embeddings
        if override:
            _empty(self.path, options)
        self.index = _opened(self.path, options, device=device, read_only=read_only)

    def add_documents(  # type: ignore[override,unused-ignore]
        self, documents_ids: Any, documents_embeddings: Any, batch_size: int = 2000
    ) -> LemurIndex:
        """Add documents, in place of those that have the same ids; all of them, or none where one is bad.

        Args:
            documents_ids: one id for each document; a single one may stand alone.
            documents_embeddings: a (num_tokens, dim) NumPy or torch matrix for each, floating point; or one matrix alone.
            batch_size: for PyLate's interface; nothing is done in batches here.

        Returns:
            the index itself.

        Raises:
            ValueError, TypeError: bad embeddings, not one id for each, an id twice, or integer ids beside strings.
        """
        self.index.upsert(_batch(documents_embeddings), ids=_ids(documents_ids))
        due = self.fit_at is not None and len(self.index) >= self.fit_at
        if due and self._training_queries is not None and not self.index.is_fitted:
            self.fit()
        return self

    def update_documents(self, documents_ids: Any, documents_embeddings: Any) -> LemurIndex:
        """The same as :meth:`add_documents`: what is there is replaced, what is not is added."""
        return self.add_documents(documents_ids, documents_embeddings)

    def remove_documents(self, documents_ids: Any) -> LemurIndex:  # type: ignore[override,unused-ignore]
        """Remove documents; as in PLAID, ids that name none count for nothing. Returns the index itself."""
        self.index.delete(filter=ids_of(documents_ids))
        return self

    def fit(self, training_queries_embeddings: Any = None, **how: Any) -> LemurIndex:
        """Learn the map for the documents there are, so that searches stay quick however many there are.

        Args:
            training_queries_embeddings: a matrix for each query, from the model with ``is_query=True``: a few thousand, like
                the queries to come, and not those to measure with. None means those of the constructor; where it had none
                either, the map is learned from document tokens, recall is far lower, and a warning says so.
            **how: num_threads, memory_limit, directory, progress, as for :meth:`lemur_ann.LemurIndex.fit`.

        Returns:
            the index itself.

        Raises:
            ValueError, TypeError: bad queries, or no documents yet.
        """
        queries = self._training_queries if training_queries_embeddings is None else training_queries_embeddings
        self.index.fit(queries=None if queries is None else _batch(queries), **how)
        return self

    def __call__(self, queries_embeddings: Any, k: int = 10, subset: Any = None) -> list[list[RerankResult]]:
        """The k documents of highest exact MaxSim score among the candidates, best first.

        Args:
            queries_embeddings: a (num_tokens, dim) NumPy or torch matrix for each query; or one matrix alone.
            k: how many to return, at least 1; fewer where fewer documents exist, or are in the subset.
            subset: ids to search among, or a list of them for each query; ids that name no document count for nothing.

        Returns:
            a list for each query of dictionaries with ``id`` and ``score``.

        Raises:
            ValueError, TypeError: bad queries or k; not one list of ids for each query; ids of another kind than the index's.
        """
        queries = _batch(queries_embeddings)
        subsets = None if subset is None else _subsets(subset)
        if not subsets or isinstance(subsets[0], (str, int, np.integer)):
            ids = subsets if not subsets else ids_of(subsets)
            found = self.index.search(queries, k, filter=ids, **self.search_options)
        elif len(subsets) != len(queries):
            raise ValueError(f"subset has lists of ids for {len(subsets)} queries, and there are {len(queries)}")
        else:
            pairs = [(query, ids_of(ids)) for query, ids in zip(queries, subsets, strict=True)]
            found = [self.index.search(query, k, filter=ids, **self.search_options) for query, ids in pairs]
        return [[RerankResult(id=doc_id, score=score) for doc_id, score in hits] for hits in found]

    def get_documents_embeddings(self, documents_ids: Sequence[Iterable[Any]]) -> list[list[Any]]:
        """The stored tokens of some documents, float32 (num_tokens, dim) for each, in groups as the ids are.

        Raises:
            KeyError: an id names no document.
            TypeError: ids that are in no groups.
        """
        if isinstance(documents_ids, str) or any(isinstance(group, (str, int, np.integer)) for group in documents_ids):
            raise TypeError('documents_ids must be a list of lists of ids, such as [["a", "b"], ["c"]]')
        groups = [list(group) for group in documents_ids]
        ids = [doc_id for group in groups for doc_id in group]
        tokens = iter(self.index.get(ids).column("tokens") if ids else ())
        return [[_matrix(next(tokens)) for _ in group] for group in groups]

    def close(self) -> None:
        """Let another process write to the index; this object and others of its name can be searched still, not changed."""
        _open.pop(self.path, None)
        self.index.close()


def _opened(path: Path, options: dict[str, Any], *, device: str | None, read_only: bool) -> lemur_ann.LemurIndex:
    asked = options if device is None else {**options, "device": device}
    wanted = lemur_ann.LemurIndex(**asked).options  # which checks names and values
    exists = (path / MANIFEST).exists()
    if read_only:
        index = lemur_ann.LemurIndex.open(path, read_only=True, device=device)
    elif exists and path in _open:
        index = _open[path]
    else:
        index = lemur_ann.LemurIndex.open(path, device=device, **({} if exists else options))
    theirs = {name: getattr(index.options, name) for name in asked}
    differ = [f"{name}={value!r}" for name, value in theirs.items() if value != getattr(wanted, name)]
    if differ:
        raise ValueError(f"the index in {path} has {', '.join(differ)}: pass the same, or nothing, or override=True")
    if not read_only:
        _open[path] = index
    return index


def _path(folder: str | PathLike[str], name: str) -> Path:
    """The directory of an index; ValueError where its name leads out of the folder, or is none."""
    given, inside = os.fspath(folder), os.path.normpath(os.fspath(name)) if name else "."
    if inside in (".", "..") or inside.startswith(f"..{os.sep}") or os.path.isabs(inside) or "\0" in f"{given}{name}":
        raise ValueError(f"index_name must name a folder within index_folder, got {name!r}")
    return Path(given, inside).resolve()


def _empty(path: Path, options: dict[str, Any]) -> None:
    """Put an empty index in the place of the one that is there; objects that have it open can be searched still.

    FileExistsError unless all in the folder is an index's own; IndexLocked where another process writes to it.
    """
    if not (path / MANIFEST).exists():
        return  # nothing is there, or what LemurIndex.open refuses to write over
    broken = _is_broken(path)
    if not broken:
        check_replaceable(path)
    index = _open.pop(path, None)
    if index is not None:
        index.close()
    if not broken:
        lemur_ann.LemurIndex(**options).save(path)
        return
    with suppress(lemur_ann.CorruptIndex):
        lemur_ann.LemurIndex.open(path).close()
    for file in path.iterdir():  # all of them an index's own
        if file.name not in (MANIFEST, LOCK):
            file.unlink()
    (path / MANIFEST).unlink()  # last: without it nobody knows what the others were


def _is_broken(path: Path) -> bool:
    """Whether it is an index whose manifest is no JSON: there are files that only an index has, and no others."""
    others = {file.name for file in path.iterdir()} - {MANIFEST, LOCK}
    if not all(map(NAMES.fullmatch, others)) or not any(map(is_file_name, others)):
        return False
    try:
        json.loads((path / MANIFEST).read_text())
    except ValueError:
        return True
    return False


def _ids(ids: Any) -> Any:
    """As given, or a list of the one id given."""
    return [ids] if isinstance(ids, (str, int, np.integer)) else ids


def _subsets(subset: Any) -> list[Any]:
    """Ids, or collections of them; TypeError where it is neither."""
    if isinstance(subset, (dict, bytes)):
        raise TypeError(f"subset must be a list of ids, or such a list for each query, got {type(subset).__name__}")
    return [subset] if isinstance(subset, (str, int, np.integer)) else list(subset)


def _batch(embeddings: Any) -> Any:
    """As given, or a list of the one matrix given."""
    return [embeddings] if getattr(embeddings, "ndim", None) == 2 else embeddings


def _matrix(tokens: Any) -> npt.NDArray[np.float32]:
    """The matrix in an Arrow scalar, float32, as rank.rerank needs it beside the queries."""
    vectors = tokens.values
    matrix: npt.NDArray[np.float32] = vectors.flatten().to_numpy().astype(np.float32).reshape(len(vectors), -1)
    return matrix
