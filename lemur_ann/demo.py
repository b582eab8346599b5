"""The sample that ships with the package: 600 real short documents with token embeddings, and queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lemur_ann.encoders import Encoder
from lemur_ann.index import LemurIndex
from lemur_ann.inputs import tokens_from_arrow
from lemur_ann.progress import Show

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


def fit_demo_index(data: DemoData, *, epochs: int = 10, progress: Show = None) -> LemurIndex:
    """An index of the sample's documents, learned from its training queries."""
    index = LemurIndex(epochs=epochs, num_features=1024, num_candidates=NUM_CANDIDATES, ef_search=200)
    return index.fit(data.documents, queries=data.training_queries, progress=progress)


def demo_encoder(data: DemoData | None = None) -> Encoder:
    """An encoder that knows the sample's texts and no others: for examples, in the place of a model.

    Raises:
        KeyError: when it is given a text that is not the sample's.
    """
    data = load_demo_data() if data is None else data

    def side(name: str, *tables: pa.Table) -> Callable[[list[str]], list[Any]]:
        known: dict[str, Any] = {}
        for table in tables:
            tokens, offsets = tokens_from_arrow(table.column("tokens").combine_chunks(), name)
            known.update(zip(table.column("text").to_pylist(), np.split(tokens, offsets[1:-1]), strict=True))

        def encode(texts: list[str]) -> list[Any]:
            unknown = next((text for text in texts if text not in known), None)
            if unknown is not None:
                raise KeyError(f"the demo encoder knows the sample's {name} only, got {unknown!r}; a model knows all texts")
            return [known[text] for text in texts]

        return encode

    return Encoder(side("queries", data.training_queries, data.queries), side("documents", data.documents))
