"""lemur_ann as an algorithm of ann-benchmarks.

The harness is not on PyPI. Copy this folder into it, beside the other algorithms, and run it where lemur_ann is installed::

    cp -r $(python -c "import lemur_ann.adapters as a; print(a.__path__[0])")/ann_benchmarks ann_benchmarks/algorithms/lemur_ann
    python run.py --local --algorithm lemur_ann --dataset random-xs-20-angular

Its datasets are single vectors: items of one token, over which MaxSim is the inner product. It orders the vectors as the metric
does where they are of unit length ("angular"), or where x is stored as ``[2x, -|x|**2]`` and q is asked as ``[q, 1]``
("euclidean").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import LemurIndex

try:
    from ann_benchmarks.algorithms.base.module import BaseANN  # type: ignore[import-not-found,unused-ignore]
except ImportError:  # outside the harness
    BaseANN = object

Vectors = npt.NDArray[np.float32]


class LemurANN(BaseANN):  # type: ignore[misc,unused-ignore]
    """An algorithm of the harness.

    The map is learned from vectors of the data, as queries: in these datasets queries are like data.

    Args:
        metric: "angular" or "euclidean".
        method_param: options of :class:`lemur_ann.LemurIndex`, and ``num_training_queries``: vectors to learn from, at most.
    """

    def __init__(self, metric: str, method_param: dict[str, Any]) -> None:
        if metric not in ("angular", "euclidean"):
            raise ValueError(f"metric must be 'angular' or 'euclidean', got {metric!r}")
        self.metric = metric
        options = dict(method_param)
        self.num_training_queries = options.pop("num_training_queries", 20_000)
        self.index = LemurIndex(**options)
        self.num_candidates: int | None = None
        self.ef_search: int | None = None
        self.name = f"lemur_ann ({method_param})"
        self._method_param = method_param

    def __str__(self) -> str:
        return self.name

    def fit(self, X: npt.NDArray[Any]) -> None:
        """Learn and index the vectors, (n, dim)."""
        if self.metric == "euclidean":  # distances stay as they are; numbers get small, and float32 has more digits for them
            self._center = X.mean(axis=0)
            self._scale = float(np.linalg.norm(X - self._center, axis=1).mean()) or 1.0
        random = np.random.default_rng(self.index.options.seed)
        training = X[random.permutation(len(X))[: self.num_training_queries]]
        tokens, queries = self._documents(X), self._queries(training)
        self.index.fit(
            tokens, queries, offsets=np.arange(len(tokens) + 1), query_offsets=np.arange(len(queries) + 1), progress=False
        )

    def set_query_arguments(self, num_candidates: int, ef_search: int) -> None:
        """As for :meth:`lemur_ann.LemurIndex.search`: how many vectors to rerank, and the beam to find them with."""
        self.num_candidates, self.ef_search = num_candidates, ef_search
        self.name = f"lemur_ann ({self._method_param}, num_candidates: {num_candidates}, ef_search: {ef_search})"

    def query(self, q: npt.NDArray[Any], n: int) -> npt.NDArray[np.int64]:
        """The rows of the n nearest vectors, on one thread."""
        ids: npt.NDArray[np.int64] = self._search(q[None], n, 1)[0]
        return ids

    def batch_query(self, X: npt.NDArray[Any], n: int) -> None:
        """All queries at once, on all cores."""
        self.res = self._search(X, n, None)

    def get_batch_results(self) -> list[npt.NDArray[np.int64]]:
        """The rows that :meth:`batch_query` found."""
        return self.res

    def _search(self, X: npt.NDArray[Any], n: int, num_threads: int | None) -> list[npt.NDArray[np.int64]]:
        found = self.index.search(
            self._queries(X)[:, None],
            n,
            num_candidates=self.num_candidates,
            ef_search=self.ef_search,
            num_threads=num_threads,
        )
        return [hits.ids for hits in found]

    def _documents(self, X: npt.NDArray[Any]) -> Vectors:
        if self.metric == "angular":
            return _unit(X)
        x = (X - self._center) / self._scale
        squares = np.square(x).sum(axis=1)
        squares -= squares.mean()  # the same for all, and it leaves nothing large among the components
        return np.column_stack([2 * x, -squares]).astype(np.float32)

    def _queries(self, X: npt.NDArray[Any]) -> Vectors:
        if self.metric == "angular":
            return _unit(X)
        return np.column_stack([(X - self._center) / self._scale, np.ones(len(X))]).astype(np.float32)


def _unit(X: npt.NDArray[Any]) -> Vectors:
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    unit: Vectors = (X / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    return unit
