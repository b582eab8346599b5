"""Queries to learn from where there is no query log: documents' own sentences through the query encoder, plain queries about
everything through it, or document tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann.documents.inputs import QueryBatch, to_offsets
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.encoders import encoded
from lemur_ann.progress import Progress, Task

NUM_SENTENCES = 8192
SENTENCES_PER_CALL = 256
MIN_WORDS, MAX_WORDS = 3, 40
TOKENS_PER_QUERY, NUM_DOCUMENTS = 32, 4096  # as many tokens as are drawn from


def from_sentences(
    texts: Sequence[str | None],
    encode_query: Callable[[list[str]], Any],
    random: np.random.Generator,
    progress: Progress,
    *,
    dim: int,
) -> QueryBatch:
    """NUM_SENTENCES sentences of a sample of texts, encoded: one of each, and of few texts more.

    Args:
        texts: of the documents; None where there is none.
        encode_query: takes a list of strings and gives their token embeddings, in any form that ``fit`` takes for queries.
        random: for the draws.
        progress: where to report.
        dim: expected dimension of tokens.

    Raises:
        ValueError, TypeError: no text has a sentence of MIN_WORDS words, or the encoder gives something else than asked for.
    """
    chosen, left = [], []  # and what texts have beside those
    for row in random.permutation(len(texts)):
        candidates = sentences(texts[row] or "")
        if candidates:
            chosen.append(candidates.pop(random.integers(len(candidates))))
            left.append(candidates)
        if len(chosen) == NUM_SENTENCES:
            break
    while left and len(chosen) < NUM_SENTENCES:  # of few documents all that they have, one of each after the other
        left = [candidates for candidates in left if candidates]
        chosen += [candidates.pop(random.integers(len(candidates))) for candidates in left]
    chosen = chosen[:NUM_SENTENCES]
    if not chosen:
        raise ValueError(f"encode_query has nothing to encode: no text of {len(texts)} has a sentence of {MIN_WORDS} words")
    return _encoded(chosen, encode_query, progress.task("queries from sentences", len(chosen)), dim)


def from_plain_queries(encode_query: Callable[[list[str]], Any], progress: Progress, *, dim: int) -> QueryBatch:
    """The plain queries that ship with the package, encoded; arguments as for :func:`from_sentences`."""
    texts = plain_queries()
    return _encoded(texts, encode_query, progress.task("plain queries", len(texts)), dim)


def plain_queries() -> list[str]:
    """Some 3,000 questions, keywords and short descriptions in English, about everything, written for this."""
    return (files("lemur_ann") / "data" / "plain_queries.txt").read_text("utf-8").splitlines()


def _encoded(texts: list[str], encode_query: Callable[[list[str]], Any], task: Task, dim: int) -> QueryBatch:
    parts = []
    for begin in range(0, len(texts), SENTENCES_PER_CALL):
        asked = texts[begin : begin + SENTENCES_PER_CALL]
        parts.append(encoded(encode_query, asked, "query", dim))
        task.advance(len(asked))
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return QueryBatch(np.concatenate([part.tokens for part in parts]), to_offsets(lengths))


def sentences(text: str) -> list[str]:
    """The sentences of a text, cut at line ends and at full stops, question and exclamation marks before a space."""
    found = []
    for sentence in re.split(r"(?<=[.!?。！？])\s+|\n+", text):  # noqa: RUF001
        words = sentence.split()
        if len(words) >= MIN_WORDS:
            found.append(" ".join(words[:MAX_WORDS]))
    return found


def from_tokens(
    store: TokenStore, live: npt.NDArray[np.int64], random: np.random.Generator, count: int | None = None
) -> QueryBatch:
    """Queries made of random tokens of one document each, ``count`` at most; None means NUM_DOCUMENTS.

    They teach the map little, but the second look what a match of rare tokens is worth.
    """
    count = NUM_DOCUMENTS if count is None else count
    chosen = live if len(live) <= count else np.sort(random.choice(live, count, replace=False))
    matrices = []
    for index in chosen:
        tokens = store[int(index)]
        rows = random.choice(len(tokens), min(len(tokens), TOKENS_PER_QUERY), replace=False)
        matrices.append(tokens[np.sort(rows)])
    return QueryBatch(np.concatenate(matrices), to_offsets([len(matrix) for matrix in matrices]))
