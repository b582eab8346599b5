"""The sample that ships with the package: 600 real short documents with token embeddings, and queries."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files

import pyarrow as pa
import pyarrow.parquet as pq

from lemur_ann.index import LemurIndex

NUM_CANDIDATES = 60  # a tenth of the sample, so that the demo shows a choice being made


@dataclass(frozen=True)
class DemoData:
    """Arrow tables with columns id, text and tokens (list<fixed_size_list<float16>[128]>).

    Debian package descriptions, and their one-line summaries as queries; query i was written for the document of its id.
    Encoder: answerai-colbert-small-v1, projected to 128 dimensions, rounded.
    """

    documents: pa.Table
    training_queries: pa.Table
    queries: pa.Table


def load_demo_data() -> DemoData:
    """Read the sample."""

    def read(name: str) -> pa.Table:
        with as_file(files("lemur_ann") / "data" / f"demo_{name}.parquet") as path:
            return pq.read_table(path)

    return DemoData(read("documents"), read("training_queries"), read("queries"))


def fit_demo_index(data: DemoData, *, epochs: int = 10, progress: bool | None = None) -> LemurIndex:
    """An index of the sample's documents, learned from its training queries."""
    index = LemurIndex(epochs=epochs, num_features=1024, num_candidates=NUM_CANDIDATES, ef_search=200)
    return index.fit(data.documents, queries=data.training_queries, progress=progress)
