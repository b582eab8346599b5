"""
The C++ core of lemur_ann. Use lemur_ann.maxsim, which checks its arguments.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy
import numpy.typing
from numpy.typing import NDArray


version: str = ...

def supported_isas() -> list[str]:
    """Instruction sets this machine can run, fastest first."""

def active_isa() -> str:
    """The instruction set in use."""

def force_isa(isa: str) -> None:
    """Use this instruction set from now on."""

class Documents:
    """
    Documents in one or more chunks of (tokens, offsets), read where they lie.
    """

    def __init__(self, chunks: Sequence[tuple[numpy.typing.NDArray[Any], numpy.typing.NDArray[numpy.int64]]]) -> None: ...

    def __len__(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def dim(self) -> int: ...

def token_maxima(tokens: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], documents: Documents, num_threads: int, precision: str = ..., by_document: bool = ...) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]:
    """
    (num_tokens, num_documents), or the transpose if by_document: the largest inner product of each token with a token of each document.
    """

def scores(queries: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], query_offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], documents: Documents, num_threads: int) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]:
    """(num_queries, num_documents) MaxSim scores."""

def candidate_scores(queries: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], query_offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], documents: Documents, candidates: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], candidate_offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], num_threads: int) -> Annotated[NDArray[numpy.float32], dict(shape=(None,))]:
    """
    MaxSim scores of each query's own candidates, in the shape of candidates.
    """

def top_k(values: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], k: int) -> Annotated[NDArray[numpy.int64], dict(shape=(None,))]:
    """Positions of the k largest values, best first; -inf counts as absent."""

def products(a: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], b: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], num_threads: int) -> Annotated[NDArray[numpy.float64], dict(shape=(None, None))]:
    """
    a @ b in float64, each element the same to the last bit whatever the shapes and threads.
    """

def first_bad_row(tokens: numpy.typing.NDArray[Any]) -> int | None:
    """
    The first row of a (num_tokens, dim) float32 or float16 matrix with a NaN, an infinity or a value beyond 1e15, or None.
    """
