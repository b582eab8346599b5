"""What all contenders share: the corpus, the ground truth, how a curve is measured, and where results go.

Every contender is a script of its own, ``python benchmarks/compare/run_NAME.py CORPUS --work DIR``, which builds what it
searches (kept in DIR, with the time it took), measures single queries on one thread, features included, and writes
DIR/results/NAME.json. ``summary.py`` makes the table and the plot of all.
"""

from __future__ import annotations

import os

for _pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_pool, "1")  # of the measurement; builds set their own

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

ALL_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
KS = (10, 100)
WARM_UP = 10


@dataclass(frozen=True)
class Ragged:
    """Matrices laid end to end: tokens (total_tokens, dim), offsets (count + 1,)."""

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.offsets)


class Corpus:
    """A folder with docs.parquet, queries_train.parquet (to learn from) and queries_dev.parquet (to measure with)."""

    def __init__(self, folder: Path, work: Path, num_queries: int) -> None:
        self._folder = folder
        self._work = work
        self._num_queries = num_queries

    def _read(self, name: str, limit: int | None = None) -> Ragged:
        column = pq.read_table(self._folder / name, columns=["tokens"])[:limit].column("tokens").combine_chunks()
        vectors = column.flatten()
        tokens = vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size)
        return Ragged(tokens, np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy())]).astype(np.int64))

    @cached_property
    def documents(self) -> Ragged:
        """In the dtype they are stored in."""
        return self._read("docs.parquet")

    @cached_property
    def training_queries(self) -> Ragged:
        """float32."""
        queries = self._read("queries_train.parquet")
        return Ragged(queries.tokens.astype(np.float32), queries.offsets)

    @cached_property
    def queries(self) -> list[np.ndarray]:
        """float32 (num_tokens, dim) each."""
        batch = self._read("queries_dev.parquet", self._num_queries)
        return [np.ascontiguousarray(batch[i], dtype=np.float32) for i in range(len(batch))]

    @cached_property
    def exact(self) -> np.ndarray:
        """Document indices of each query's exact MaxSim top 100, (num_queries, 100), by NumPy in float32."""
        path = self._work / f"exact-{self._num_queries}.npy"
        if not path.exists():
            documents = self.documents
            scores = np.empty((len(self.queries), len(documents)), np.float32)
            step = 2048
            queries = np.concatenate(self.queries)
            bounds = np.cumsum([0, *map(len, self.queries)])
            for begin in range(0, len(documents), step):
                end = min(begin + step, len(documents))
                tokens = documents.tokens[documents.offsets[begin] : documents.offsets[end]].astype(np.float32)
                products = tokens @ queries.T
                maxima = np.maximum.reduceat(products, documents.offsets[begin:end] - documents.offsets[begin], axis=0)
                scores[:, begin:end] = np.add.reduceat(maxima, bounds[:-1], axis=1).T
            np.save(path, np.argsort(-scores, axis=1, kind="stable")[:, : max(KS)])
        return np.load(path)


def built(work: Path, name: str, build: Callable[[Path], None]) -> tuple[Path, float]:
    """The folder that ``build(folder)`` fills, made once, and the seconds that took."""
    folder, timing = work / name, work / f"{name}.json"
    if not timing.exists():
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        build(folder)
        timing.write_text(json.dumps({"seconds": time.perf_counter() - start}))
    return folder, json.loads(timing.read_text())["seconds"]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def curve(
    corpus: Corpus, settings: dict[str, Callable[[np.ndarray, int], Any]], ks: tuple[int, ...] = KS
) -> list[dict[str, Any]]:
    """For each setting, a function of (query, k) to document indices best first: recall and time, for k = 10 and k = 100."""
    points = []
    for name, search in settings.items():
        for k in ks:
            for query in corpus.queries[:WARM_UP]:
                search(query, k)
            shares, ms = [], []
            for query, exact in zip(corpus.queries, corpus.exact, strict=True):
                start = time.perf_counter()
                found = search(query, k)
                ms.append((time.perf_counter() - start) * 1e3)
                shares.append(len(set(np.asarray(found)[:k].tolist()) & set(exact[:k].tolist())) / k)
            points.append(
                {
                    "setting": name,
                    "k": k,
                    "recall": float(np.mean(shares)),
                    "mean_ms": float(np.mean(ms)),
                    "p95_ms": float(np.percentile(ms, 95)),
                }
            )
            print(f"  {name}: recall@{k} {points[-1]['recall']:.4f}, {points[-1]['mean_ms']:.2f} ms", flush=True)
    return points


def cpu_name() -> str:
    try:
        return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main(name: str, run: Callable[[Corpus, Path], dict[str, Any]], description: str | None) -> None:
    """The command line of a contender; ``run(corpus, work)`` gives what goes into its results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--num-queries", type=int, default=400)
    args = parser.parse_args()
    (args.work / "results").mkdir(parents=True, exist_ok=True)
    print(name, flush=True)
    try:
        result = run(Corpus(args.corpus, args.work, args.num_queries), args.work)
    except ImportError as error:
        result = {"reason": f"not installed: {error}"}
        print(f"  {result['reason']}")
    body = {"name": name, "cpu": cpu_name(), "threads": 1, "num_queries": args.num_queries, **result}
    (args.work / "results" / f"{name}.json").write_text(json.dumps(body, indent=2) + "\n")
