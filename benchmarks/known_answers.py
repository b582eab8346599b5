"""A corpus whose query i was written for the document whose name it has: what several benchmarks read."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Known:
    """Documents by row, queries of queries_dev whose document is among them, and each one's relevant rows."""

    documents: pa.Table  # id, which is the row, and tokens
    queries: list[npt.NDArray[Any]]
    batch: Any  # the same, as lemur_ann reads queries
    grades: list[dict[int, float]]


def read(corpus: Path, limit: int | None, num_queries: int) -> Known:
    """The first documents, and the first queries that ask for one of them."""
    from lemur_ann.documents import read_queries

    documents = pq.read_table(corpus / "docs.parquet", columns=["id", "tokens"])[:limit]
    rows: dict[str, dict[int, float]] = {}
    for row, name in enumerate(documents.column("id").to_pylist()):  # names are repeated
        rows.setdefault(name, {})[row] = 1.0
    asked = pq.read_table(corpus / "queries_dev.parquet", columns=["id", "tokens"])
    asked = asked.filter(pa.array([name in rows for name in asked.column("id").to_pylist()]))[:num_queries]
    batch = read_queries(asked.select(["tokens"]))
    return Known(
        documents.select(["tokens"]).append_column("id", pa.array(np.arange(len(documents)))),
        [batch.matrix(i) for i in range(len(batch))],
        batch,
        [rows[name] for name in asked.column("id").to_pylist()],
    )


def encoder_of(tool: Path) -> Any:
    """The query encoder of the script that made a corpus: texts to token matrices."""
    spec = importlib.util.spec_from_file_location("make_corpus", tool)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    encoder = module.Encoder(Path.home() / ".cache" / "late-interaction-corpus", 2)
    return lambda texts: encoder(texts, marker=1, max_tokens=32, pad_to=32)


def exact_top(work: Path, index: Any, queries: list[npt.NDArray[Any]], k: int = 10) -> npt.NDArray[np.int64]:
    """The exact first k of each query (num_queries, k), by row; kept in a folder, for the next measurement there."""
    known = work / f"exact-{len(index)}-{len(queries)}-{k}.npy"
    if not known.exists():
        work.mkdir(parents=True, exist_ok=True)
        np.save(known, np.array([hits.ids for hits in index.search(queries, k=k, exact=True)]))
    found: npt.NDArray[np.int64] = np.load(known)
    return found
