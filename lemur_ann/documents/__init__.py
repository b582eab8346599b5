"""What comes in, and what is kept of it: documents and queries in any form, tokens, ids and rows.

What stands here is the one door for adapters: how this library reads what its own callers pass, so that an adapter takes the
same forms and refuses the rest in the same words.
"""

from lemur_ann.documents.inputs import (
    Asked,
    DocumentBatch,
    QueryBatch,
    ids_of,
    iterate_documents,
    queries_of,
    read_documents,
    read_queries,
    to_offsets,
    tokens_from_arrow,
)
from lemur_ann.documents.sources import is_stream, opened

__all__ = [
    "Asked",
    "DocumentBatch",
    "QueryBatch",
    "ids_of",
    "is_stream",
    "iterate_documents",
    "opened",
    "queries_of",
    "read_documents",
    "read_queries",
    "to_offsets",
    "tokens_from_arrow",
]
