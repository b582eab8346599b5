"""How a table is made: names, columns and their types."""

from __future__ import annotations

import pyarrow as pa
from psycopg import sql

from lemur_ann import LemurEncoder

LONGEST_NAME = 63 - len("_lemur_hnsw")  # Postgres cuts longer names off, and then two are one
SQL_TYPES = {
    "bool": "boolean",
    "int8": "smallint",
    "int16": "smallint",
    "uint8": "smallint",
    "int32": "integer",
    "uint16": "integer",
    "int64": "bigint",
    "uint32": "bigint",
    "halffloat": "real",
    "float": "real",
    "double": "double precision",
    "string": "text",
    "large_string": "text",
    "string_view": "text",
    "binary": "bytea",
    "large_binary": "bytea",
    "date32[day]": "date",
}


def columns(schema: pa.Schema, encoder: LemurEncoder | None, dim: int, tokens: str, vector: str) -> sql.Composed:
    """The columns of a table for documents of a schema; ValueError, TypeError where one has no counterpart."""
    if tokens not in ("bytea", "halfvec", "vector"):
        raise ValueError(f'tokens must be "bytea", "halfvec" or "vector", got {tokens!r}')
    if "id" not in schema.names:
        raise ValueError(f"the schema must have a column id, got columns {schema.names}")
    for name in schema.names:
        if not 0 < len(name.encode()) <= 63 or "\0" in name:
            raise ValueError(f"a column's name must be of 1 to 63 bytes, without a NUL, got {name!r}")
    if "lemur" in schema.names:
        raise ValueError("a column of documents must not have the name lemur, which is the vector's")
    found = [sql.SQL("id {} PRIMARY KEY").format(sql.SQL("bigint" if pa.types.is_integer(schema.field("id").type) else "text"))]
    found += [
        sql.SQL("{} {}").format(named(field.name), sql.SQL(_sql_type(field)))
        for field in schema
        if field.name not in ("id", "tokens")
    ]
    # EXTERNAL: not compressed, which would cost time and gain nothing
    kind = "bytea" if tokens == "bytea" else f"{tokens}({dim})[]"
    found.append(sql.SQL("tokens {} STORAGE EXTERNAL NOT NULL").format(sql.SQL(kind)))
    if encoder is not None:
        found.append(sql.SQL("lemur {}({})").format(sql.SQL(vector), sql.Literal(encoder.dim)))
    return sql.SQL(", ").join(found)


def named(name: str) -> sql.SQL:
    """An identifier, for statements that are given values, if only none: in these a percent sign is written twice."""
    return sql.SQL(sql.Identifier(name).as_string().replace("%", "%%"))  # type: ignore[arg-type,unused-ignore]


def check_name(name: str) -> None:
    """ValueError where Postgres would cut it off."""
    if not isinstance(name, str) or not 0 < len(name.encode()) <= LONGEST_NAME or "\0" in name:
        raise ValueError(f"a table's name must be a string of 1 to {LONGEST_NAME} bytes, got {name!r}")


def check_vector(kind: str) -> None:
    """ValueError where pgvector has no such type."""
    if kind not in ("halfvec", "vector"):
        raise ValueError(f'vector must be "halfvec" or "vector", got {kind!r}')


def _sql_type(field: pa.Field) -> str:
    kind = field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_timestamp(kind):
        return "timestamp" if kind.tz is None else "timestamptz"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"{_sql_type(kind.value_field)}[]"
    if str(kind) not in SQL_TYPES:
        raise TypeError(f"column {field.name!r} of type {kind} has no counterpart in Postgres; cast it")
    return SQL_TYPES[str(kind)]
