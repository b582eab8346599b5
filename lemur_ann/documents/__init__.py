"""What comes in, and what is kept of it: documents and queries in any form, tokens, ids and rows.

What stands here is the one door for adapters: how this library reads what its own callers pass, so that an adapter takes the
same forms and refuses the rest in the same words.
"""

from lemur_ann.documents.ids import check_kind, check_known, check_new, next_ids
from lemur_ann.documents.inputs import (
    Asked,
    DocumentBatch,
    QueryBatch,
    ids_for,
    ids_of,
    iterate_documents,
    queries_of,
    read_documents,
    read_queries,
    to_offsets,
    tokens_from_arrow,
)
from lemur_ann.documents.intake import as_dtype, joined_schema
from lemur_ann.documents.sources import is_stream, lance_scanner, open_path, opened
from lemur_ann.documents.tokens import TokenStore

__all__ = [
    "Asked",
    "DocumentBatch",
    "QueryBatch",
    "TokenStore",
    "as_dtype",
    "check_kind",
    "check_known",
    "check_new",
    "ids_for",
    "ids_of",
    "is_stream",
    "iterate_documents",
    "joined_schema",
    "lance_scanner",
    "next_ids",
    "open_path",
    "opened",
    "queries_of",
    "read_documents",
    "read_queries",
    "to_offsets",
    "tokens_from_arrow",
]
