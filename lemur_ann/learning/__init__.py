"""From a corpus and training queries to the learned map. Torch is imported only here, and by a search on a device."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from lemur_ann.documents.inputs import QueryBatch
from lemur_ann.documents.intake import texts_of
from lemur_ann.documents.rows import Rows
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.learning.projection import Encoded, MapParts
from lemur_ann.learning.threads import torch_threads
from lemur_ann.options import Options


def learned_parts(
    store: TokenStore,
    live: Rows,
    metadata: pa.Table | None,
    queries: QueryBatch | None,
    options: Options,
    *,
    encode_query: Any = None,
    text_column: str | None = "text",
    num_threads: int,
    **how: Any,
) -> tuple[MapParts, Encoded]:
    """The parts of a map for the ``live`` documents of a store, checked before torch is imported; see ``fitting.fit_map``.

    Raises:
        ValueError, TypeError: no documents, queries of another dim, or no such column of texts.
    """
    if len(live) == 0:
        raise ValueError("fit needs at least one document, got none")
    if queries is not None and len(queries) and queries.tokens.shape[1] != store.dim:
        raise ValueError(f"queries have dim {queries.tokens.shape[1]}, documents have dim {store.dim}")
    texts = None if encode_query is None else texts_of(metadata, text_column, live)

    with torch_threads(num_threads):
        from lemur_ann.learning import fitting

        return fitting.fit_map(
            store, live, queries, options, encode_query=encode_query, texts=texts, num_threads=num_threads, **how
        )
