"""What learning holds in memory, and how to make it hold less.

Learning goes through stages, each with its own large arrays; all are functions of options and sample sizes, and none of the
number of documents, but for the graph itself. Tokens are not counted: they lie in the caller's arrays or in a mapped file.
"""

from __future__ import annotations

import ctypes
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from lemur_ann import validate
from lemur_ann.options import Options

MB = 10**6
BASE = 650 * MB  # the interpreter, torch and pyarrow with their thread pools and caches
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}

NUM_WEIGHED_DOCUMENTS = 8192  # whose weights decide the least-squares reduction
NUM_KEPT_DOCUMENTS = 65_536  # encoded while learning, which distillation ranks and which decide the radius
LEAST_KEPT_DOCUMENTS = 8192
DOCUMENTS_PER_BLOCK = 1024  # whose token maxima are in memory together
LEAST_DOCUMENTS_PER_BLOCK = 64
TEACHER_RANKS = 3  # the vectors distilled from are so many times wider


@dataclass(frozen=True)
class Plan:
    """Sizes that learning keeps to.

    Attributes:
        documents_per_block: documents whose token maxima are in memory together.
        num_kept_documents: documents encoded while learning.
        targets_on_disk: training targets go to a temporary file instead of memory.
        peak_bytes: what is expected at most.
    """

    documents_per_block: int = DOCUMENTS_PER_BLOCK
    num_kept_documents: int = NUM_KEPT_DOCUMENTS
    targets_on_disk: bool = False
    peak_bytes: int = 0


def plan(options: Options, dim: int, num_documents: int, num_query_tokens: int, limit: int | None) -> Plan:
    """The largest sizes whose expected peak is within ``limit`` bytes; the usual ones where it is None.

    Raises:
        ValueError: even the smallest sizes need more.
    """
    block, kept, on_disk = DOCUMENTS_PER_BLOCK, NUM_KEPT_DOCUMENTS, False

    def expected() -> int:
        return peak_bytes(options, dim, num_documents, num_query_tokens, Plan(block, kept, on_disk))

    while limit is not None and expected() > limit:
        before = expected()
        block = max(block // 2, LEAST_DOCUMENTS_PER_BLOCK)
        if expected() == before and not on_disk:
            on_disk = True
        elif expected() == before:
            kept = max(kept // 2, LEAST_KEPT_DOCUMENTS)
        if expected() == before and block == LEAST_DOCUMENTS_PER_BLOCK and on_disk and kept == LEAST_KEPT_DOCUMENTS:
            raise ValueError(
                f"memory_limit is {limit / MB:,.0f} MB, and learning with these options needs {before / MB:,.0f} MB at least: "
                "allow more, or lower num_features, num_sample_tokens or num_training_documents"
            )
    return replace(Plan(block, kept, on_disk), peak_bytes=expected())


def peak_bytes(options: Options, dim: int, num_documents: int, num_query_tokens: int, sizes: Plan) -> int:
    """What learning is expected to hold at most, in bytes, beside the documents' tokens."""
    features, sample = options.num_features, min(options.sample_tokens, num_query_tokens)
    width = features if options.rank is None else min(options.rank * TEACHER_RANKS, features)
    rank = features if options.rank is None else min(options.rank, features)
    kept = min(sizes.num_kept_documents, num_documents)
    weighed = min(NUM_WEIGHED_DOCUMENTS, num_documents)
    outputs = min(options.num_training_documents, num_documents)
    training_tokens = min(options.num_training_tokens, num_query_tokens)
    maxima = 4 * sample * min(sizes.documents_per_block, num_documents)
    queries = 8 * num_query_tokens * dim  # as they came and in float32
    query_features = 4 * features * min(num_query_tokens // 16, 20_000)
    training = 0
    if options.epochs:  # weights, gradients, Adam's moments, the best state and bfloat16 copies; targets; one step
        training = 28 * features * (outputs + dim) + 4 * training_tokens * dim + 20 * 512 * (outputs + features)
        training += 0 if sizes.targets_on_disk else 2 * training_tokens * outputs
    solve = 8 * sample * features + 4 * weighed * features + maxima + 32 * features * features
    reduce = query_features + 8 * kept * width + 4 * sample * width + maxima
    # hnswlib's vectors, links and bookkeeping, and codes; the links that searches read come when hnswlib's graph is gone
    graph = num_documents * (4 * (rank + 1) + 8 * options.M + 100 + rank + 64)
    build = graph + 4 * kept * (rank + 1) + 4 * sample * width + maxima
    return BASE + max(queries + max(training, solve + query_features, reduce), build)


def release() -> None:
    """Give freed memory back to the system, where glibc would keep it for later."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def parse_bytes(value: int | str | None) -> int | None:
    """A number of bytes from an int or a string such as "3GB" (10^9) or "512 MiB" (2^20)."""
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", value.lower())
        if match is None or match[2] not in UNITS:
            raise ValueError(f"memory_limit must be bytes or a string such as '3GB' or '512MiB', got {value!r}")
        value = int(min(float(match[1]) * UNITS[match[2]], 2.0**62))
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"memory_limit must be bytes, an integer, or a string such as '3GB', got {validate.shown(value)}")
    if value <= 0:
        raise ValueError(f"memory_limit must be above 0, got {value}")
    return int(value)
