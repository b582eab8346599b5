"""MaxSim's ranking and full-text search's out of one statement, fused by reciprocal rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from psycopg import sql

from lemur_ann import Hits, maxsim, validate
from lemur_ann.documents import queries_of

from .definition import named

if TYPE_CHECKING:
    from . import table as tables


def search(
    table: tables.LemurTable,
    query_tokens: Any,
    query_text: str,
    k: Any,
    text_column: str,
    config: str,
    num_candidates: Any,
    where: sql.Composable,
    rerank: str,
    rrf_k: Any,
    num_threads: int | None,
) -> Hits:
    """See ``LemurTable.hybrid_search``."""
    k, num = validate.positive_int(k, "k"), validate.positive_int(num_candidates, "num_candidates")
    rrf_k = validate.integer(rrf_k, "rrf_k", least=0)
    threads = validate.num_threads(num_threads)
    batch = queries_of(query_tokens, table.token_dim).batch.as_float32
    query, vector = batch.tokens, table.encoder.encode_batch(batch.tokens, batch.offsets, num_threads=threads)[0]
    candidates, values = table.nearest(num, where, vector)
    statement = sql.SQL(
        "WITH candidates AS MATERIALIZED ({}), words AS ({}), scored AS (SELECT id, {} AS found FROM candidates)"
        " SELECT id, found, rank FROM scored FULL JOIN words USING (id)"
    ).format(candidates, _words(table, text_column, config, where, num), table.ranked(rerank))
    values += [query_text, *table.ranked_values(rerank, query)]
    for how in (table.settings(num, {}), None):
        rows = table.read(statement, values, how)
        near = [row for row in rows if row[1] is not None]
        if len(near) == num:
            break
    if rerank == "engine" or not near:
        scores = np.array([row[1] for row in near], np.float32)
    else:
        scores = maxsim.scores(query, *table.form.unpack([row[1] for row in near]), num_threads=threads)
    by_words = [doc_id for _, doc_id in sorted((-row[2], row[0]) for row in rows if row[2] is not None)]
    by_maxsim = [near[i][0] for i in np.argsort(-scores, kind="stable")]
    return table.best([row[0] for row in rows], _fused([row[0] for row in rows], (by_maxsim, by_words), rrf_k), k)


def _words(table: tables.LemurTable, text_column: str, config: str, where: sql.Composable, num: int) -> sql.Composed:
    """The documents with any of the words, best first."""
    return sql.SQL(
        "SELECT id, ts_rank(words, wanted) AS rank FROM (SELECT id, to_tsvector({0}, {1}) AS words FROM {2}{3}"
        ") AS d, (SELECT replace(plainto_tsquery({0}, %s)::text, ' & ', ' | ')::tsquery AS wanted) AS q"
        " WHERE words @@ wanted ORDER BY rank DESC, id LIMIT {4}"
    ).format(
        sql.SQL("{}::regconfig").format(sql.Literal(config)),
        named(text_column),
        named(table.name),
        where,
        sql.Literal(num),
    )


def _fused(ids: list[Any], rankings: Any, rrf_k: int) -> npt.NDArray[np.float32]:
    """The sum over rankings of 1 / (rrf_k + place from 1), of each id."""
    fused: dict[Any, float] = dict.fromkeys(ids, 0.0)
    for ranking in rankings:
        for place, doc_id in enumerate(ranking, 1):
            fused[doc_id] += 1 / (rrf_k + place)
    return np.array(list(fused.values()), np.float32)
