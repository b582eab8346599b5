"""What an index will take, before it is built: bytes by part, and the memory of learning."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from lemur_ann import _core, validate
from lemur_ann.candidates import too_many
from lemur_ann.candidates.hnsw import LINKS_PER_M
from lemur_ann.candidates.look import NUM_HIDDEN, NUM_KNOWN, num_centroids
from lemur_ann.documents.coded import CENTROID_BYTES, LENGTH_BYTES, SCALE_BYTES
from lemur_ann.documents.tokens import MAX_DIM
from lemur_ann.learning.memory import plan as usual_sizes
from lemur_ann.options import Options

MB = 1e6
MOST = 2.0**40  # tokens of a document, and bytes of an id: none has more


@dataclass(frozen=True)
class SizePlan:
    """What an index of so many documents takes; print it.

    Attributes:
        num_documents, num_tokens, dim: of what; tokens as they are kept, pooled ones where there is a pool factor.
        parts: bytes on disk, by the names of :meth:`lemur_ann.LemurIndex.stats`. Of metadata only which tokens were merged is
            known; all else counts for nothing.
        searched_bytes: of these what searches read all over, which should fit in memory: all but the tokens, where there are
            codes of them, and but metadata.
        fit_bytes: memory of ``fit``, expected at most, beside the documents' tokens.
        temporary_bytes: on disk while ``fit`` learns from a stream: the tokens, their int8 codes, and hnswlib's graph.
        num_original_tokens: as they come; None where they are not pooled.
    """

    num_documents: int
    num_tokens: int
    dim: int
    parts: dict[str, int]
    searched_bytes: int
    fit_bytes: int
    temporary_bytes: int
    num_original_tokens: int | None = None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(self.parts.values())

    @property
    def bytes_per_token(self) -> float:
        """Bytes on disk for each token, all parts together."""
        return self.size / max(self.num_tokens, 1)

    def __str__(self) -> str:
        pooled = "" if self.num_original_tokens is None else f", pooled from {self.num_original_tokens:,}"
        lines = [f"{self.num_documents:,} documents, {self.num_tokens:,} tokens of {self.dim} components{pooled}"]
        lines += [f"{name}: {size / MB:,.1f} MB" for name, size in self.parts.items()]
        lines.append(f"in all {self.size / MB:,.1f} MB, {self.bytes_per_token:.1f} bytes a token")
        lines.append(f"to search quickly, in memory: {self.searched_bytes / MB:,.1f} MB")
        lines.append(
            f"to learn: {self.fit_bytes / MB:,.0f} MB of memory, {self.temporary_bytes / MB:,.1f} MB on disk meanwhile"
        )
        return "\n".join(lines)


def plan(
    num_documents: int,
    tokens_per_document: float,
    dim: int,
    *,
    token_dtype: Any = "float16",
    unit_length: bool = True,
    id_bytes: float = 16,
    num_query_tokens: int = 320_000,
    **options: Any,
) -> SizePlan:
    """What an index will take, from sizes alone: bytes by part, and the memory of learning.

    Args:
        num_documents: how many, at least 1.
        tokens_per_document: their tokens as they come, in mean.
        dim: components of a token.
        token_dtype: of the tokens, float16 or float32.
        unit_length: whether all tokens are of length 1, as most models make them; small codes keep the lengths of others.
        id_bytes: of an id, in mean; 8 of an integer.
        num_query_tokens: of all training queries together.
        **options: of :class:`~lemur_ann.LemurIndex`, such as token_codes, keep_tokens, pool_factor or rank.

    Returns:
        :class:`SizePlan`; print it. Time is not in it: that depends on the machine, and ``evaluate`` measures it.

    Raises:
        ValueError, TypeError: sizes below 1, or bad options.
    """
    num_documents = validate.positive_int(num_documents, "num_documents")
    dim = validate.integer(dim, "dim", least=1, most=MAX_DIM)
    num_query_tokens = validate.positive_int(num_query_tokens, "num_query_tokens")
    if isinstance(tokens_per_document, bool) or not 0 < float(tokens_per_document) < MOST:
        raise ValueError(f"tokens_per_document must be above 0, got {tokens_per_document!r}")
    dtype = np.dtype(token_dtype)
    if dtype not in (np.float16, np.float32):
        raise ValueError(f"token_dtype must be float16 or float32, got {token_dtype!r}")
    if not 0 <= float(id_bytes) < MOST:
        raise ValueError(f"id_bytes must be 0 or above, got {id_bytes!r}")
    validate.names(options, sorted(field.name for field in fields(Options)), "plan()")
    chosen = Options(**options)
    num_originals = max(round(num_documents * float(tokens_per_document)), 1)
    num_tokens = max(round(num_documents * _kept_tokens(chosen, float(tokens_per_document))), 1)
    is_pooled = chosen.pool_factor > 1
    int8 = num_tokens * (_core.int8_stride(dim) + 8) + 24 * num_documents if chosen.keeps_int8 else 0
    tokens = num_tokens * dim * dtype.itemsize + 8 * num_documents
    count = num_centroids(chosen.num_centroids, num_documents, num_tokens, are_coded=chosen.small_bits > 0)
    beside = SCALE_BYTES + (0 if validate.boolean(unit_length, "unit_length") else LENGTH_BYTES)
    small = num_tokens * (_core.small_bytes(dim, chosen.small_bits) + beside) if chosen.small_bits else 0
    candidates, building = _candidates(chosen, num_documents)
    parts = {
        "tokens": tokens if chosen.keep_tokens == "exact" else 0,
        "token codes": int8 or small,
        "candidates": candidates,
        "token centroids": CENTROID_BYTES * num_tokens + 8 * num_documents if count else 0,
        "learned map": _map(chosen, dim, count, num_query_tokens),
        "ids": round(num_documents * (id_bytes + (0 if id_bytes == 8 else 8))),
        "metadata": 2 * num_originals + 8 * num_documents if is_pooled else 0,  # which tokens were merged
    }
    unread = (parts["tokens"] if chosen.token_codes is not None else 0, parts["metadata"])
    return SizePlan(
        num_documents=num_documents,
        num_tokens=num_tokens,
        dim=dim,
        parts={name: size for name, size in parts.items() if size},
        searched_bytes=sum(parts.values()) - sum(unread),
        fit_bytes=usual_sizes(chosen, dim, num_documents, num_query_tokens, None).peak_bytes,
        temporary_bytes=tokens + int8 + building,
        num_original_tokens=num_originals if is_pooled else None,
    )


def _kept_tokens(options: Options, tokens_per_document: float) -> float:
    """Of a document of so many, once it is pooled; a half less in mean than the quotient, which is rounded down."""
    first = min(options.protected_tokens, tokens_per_document)
    if options.pool_factor == 1:
        return tokens_per_document
    rounded = (options.pool_factor - 1) / (2 * options.pool_factor)
    return first + max((tokens_per_document - first) / options.pool_factor - rounded, 1.0)


def _candidates(options: Options, num_documents: int) -> tuple[int, int]:
    """Bytes of the graph or of vectors, and of hnswlib's temporary file."""
    rank = options.num_features if options.rank is None else min(options.rank, options.num_features)
    vectors = 4 * num_documents * (rank + 1)
    if options.candidates != "hnsw" or not too_many(num_documents, 0):
        return vectors, 0
    m = options.M
    upper = 4 * (m + 1) / (m - 1)  # a document has a list on each level above, and one in m on each goes on to the next
    links = num_documents * (_core.int8_stride(rank + 1) + 4 + 4 * LINKS_PER_M * m + 4 / m)
    return round(links), round(vectors + num_documents * (8 * m + 4 + 8 + 4 + upper))


def _map(options: Options, dim: int, count: int, num_query_tokens: int) -> int:
    features, sample = options.num_features, min(options.sample_tokens, num_query_tokens)
    rank = features if options.rank is None else min(options.rank, features)
    psi = features * (dim + 3) if options.epochs else features * dim
    look = count * dim + NUM_HIDDEN * (NUM_KNOWN + 2) + 2 * dim * dim if count else 0
    return 4 * (psi + sample * (dim + 1 + rank) + rank + features * rank + look)
