"""The sample that ships with the package: 600 real short documents with token embeddings, and queries."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lemur_ann.documents.inputs import tokens_from_arrow
from lemur_ann.encoders import Encoder
from lemur_ann.index import LemurIndex
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
    return DemoData(_read("documents"), _read("training_queries"), _read("queries"))


def _read(name: str) -> pa.Table:
    with as_file(files("lemur_ann") / "data" / f"demo_{name}.parquet") as path:
        return pq.read_table(path)


def fit_demo_index(data: DemoData, *, epochs: int = 10, progress: Show = None) -> LemurIndex:
    """An index of the sample's documents, learned from its training queries."""
    index = LemurIndex(epochs=epochs, num_features=1024, num_candidates=NUM_CANDIDATES, ef_search=200)
    return index.fit(data.documents, queries=data.training_queries, progress=progress)


def demo_encoder(data: DemoData | None = None) -> Encoder:
    """An encoder that knows the sample's texts and their words, and no others: for examples, in the place of a model.

    Raises:
        KeyError: when it is given a text that is not the sample's.
    """
    data = load_demo_data() if data is None else data

    def known(name: str, values: Callable[[], dict[str, Any]]) -> Callable[[list[str]], list[Any]]:
        def look_up(texts: list[str]) -> list[Any]:
            found = values()
            unknown = next((text for text in texts if text not in found), None)
            if unknown is not None:
                raise KeyError(f"the demo encoder knows the sample's {name} only, got {unknown!r}; a model knows all texts")
            return [found[text] for text in texts]

        return look_up

    def matrices(name: str, *tables: pa.Table) -> Callable[[list[str]], list[Any]]:
        found: dict[str, Any] = {}
        for table in tables:
            tokens, offsets = tokens_from_arrow(table.column("tokens").combine_chunks(), name)
            found.update(zip(table.column("text").to_pylist(), np.split(tokens, offsets[1:-1]), strict=True))
        return known(name, lambda: found)

    return Encoder(
        matrices("queries", data.training_queries, data.queries),
        matrices("documents", data.documents),
        known("queries", lambda: _words()[0]),
        known("documents", lambda: _words()[1]),
    )


@cache
def _words() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The strings of the tokens of the sample's queries and of its documents, by text."""
    data, words = load_demo_data(), _read("words").column("words").to_pylist()
    texts = [table.column("text").to_pylist() for table in (data.documents, data.training_queries, data.queries)]
    named = list(zip(itertools.chain(*texts), words, strict=True))
    return dict(named[len(texts[0]) :]), dict(named[: len(texts[0])])
