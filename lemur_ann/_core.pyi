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

class Layer:
    """
    One layer of a feature map: a product, and an activation before or after layer normalisation.
    """

    def __init__(self, weight: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, norm_weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, norm_bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, activation: str, activate_first: bool, scale: float) -> None: ...

class QueryEncoder:
    """Query features, reduced: the sum of psi over tokens, times query_map."""

    def __init__(self, layers: Sequence[Layer], query_map: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], homogeneous: bool = ...) -> None: ...

    def encode(self, tokens: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], num_threads: int) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]:
        """
        float32 (num_queries, dim) of float32 tokens (total_tokens, token dim).
        """

def int8_stride(dim: int) -> int:
    """Codes of a row of dim components."""

def int8_codes(vectors: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], num_threads: int) -> tuple[Annotated[NDArray[numpy.int8], dict(shape=(None, None))], Annotated[NDArray[numpy.float32], dict(shape=(None,))]]:
    """
    int8 codes (n, stride), zeros from dim on, and float32 scales (n,) of float32 vectors (n, dim).
    """

def better_links(dim: int, codes: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], links: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)], entries: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], degree: int, beam: int, alpha: float, num_threads: int, next_equal: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = ...) -> Annotated[NDArray[numpy.int32], dict(shape=(None, None))]:
    """
    Links (n, degree) of coded vectors, chosen among what a search of the graph there is finds near each. Where `links` are of fewer rows, these keep theirs, and the others join them. next_equal int32 (n,): the next row with the same codes, -1 for none; or empty.
    """

class CodedGraph:
    """
    int8 codes of vectors, links (num_nodes, degree) between them, -1 for none, and codes of the rows after them, which are scanned. Rows with the same codes are listed in next_equal (num_nodes,), which is empty where there are none; the first of them alone has links.
    """

    def __init__(self, dim: int, codes: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], links: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)], entries: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], recent_codes: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu', writable=False)], recent_scales: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], next_equal: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = ...) -> None: ...

    def __len__(self) -> int: ...

    def search(self, queries: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], excluded: Annotated[NDArray[numpy.bool_], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, num_excluded: int, num_candidates: int, beam: int, num_threads: int) -> Annotated[NDArray[numpy.int64], dict(shape=(None, None))]:
        """
        (num_queries, found) rows of largest inner product, best first; found is num_candidates, or all rows that are not excluded where these are fewer. Where the beam is narrower, the rows beyond it are the best of all that the walk looked at.
        """

class Centroids:
    """
    Vectors (n, dim) of length 1 that stand for document tokens, 65,536 at most.
    """

    def __init__(self, rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> None: ...

    def __len__(self) -> int: ...

    def nearest(self, tokens: numpy.typing.NDArray[Any], num_threads: int) -> numpy.typing.NDArray[numpy.uint16]:
        """
        The number of the centroid of largest inner product with each token, (num_tokens,).
        """

class CentroidIds:
    """
    Documents by the centroids of their tokens: ids uint16 (num_tokens,), offsets int64 (num_documents + 1,).
    """

    def __init__(self, ids: Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], num_centroids: int) -> None: ...

    def __len__(self) -> int: ...

class SecondLook:
    """
    Documents by the centroids of their tokens, in parts that are laid end to end.
    """

    def __init__(self, centroids: Centroids, parts: Sequence[CentroidIds]) -> None: ...

    def __len__(self) -> int: ...

    def with_rare(self, queries: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], query_offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], bounds: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], most: int, num_threads: int) -> tuple[Annotated[NDArray[numpy.int64], dict(shape=(None,))], Annotated[NDArray[numpy.int64], dict(shape=(None,))]]:
        """
        Shortlists, rows[bounds[i] : bounds[i + 1]], with documents of the rarest centroids that are nearest to tokens of the query at the end, `most` at most; and their bounds.
        """

    def features(self, queries: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], query_offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], bounds: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], num_estimated: int, num_threads: int) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]:
        """
        What is known of each query's own shortlist, rows[bounds[i] : bounds[i + 1]], of which the first num_estimated are in the order of estimates: (len(rows), 5).
        """

    def best(self, queries: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], query_offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], bounds: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], num_rare: int, excluded: Annotated[NDArray[numpy.bool_], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, weights: tuple[Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]], count: int, num_threads: int) -> tuple[Annotated[NDArray[numpy.int64], dict(shape=(None, None))], Annotated[NDArray[numpy.int64], dict(shape=(None,))]]:
        """
        Each query's best of its own shortlist and num_rare documents of rare centroids at most, by a network of weights (hidden, 5), (hidden,) and (hidden,), best first, (num_queries, count), and how many of them count.
        """

def small_bytes(dim: int, bits: int) -> int:
    """Of the codes of a token of dim components."""

class Codec:
    """Tokens as a centroid's number and 1 to 4 bits a component."""

    def __init__(self, centroids: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], token_map: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], query_map: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], unit: float, bits: int) -> None: ...

    @property
    def num_bytes(self) -> int:
        """Of a token's codes."""

    def encode(self, tokens: numpy.typing.NDArray[Any], centroids: numpy.typing.NDArray[numpy.uint16], num_threads: int) -> tuple[numpy.typing.NDArray[numpy.uint8], numpy.typing.NDArray[numpy.int16], numpy.typing.NDArray[numpy.float32]]:
        """
        Codes (num_tokens, num_bytes) of tokens with these centroids, their scales, and the tokens' lengths.
        """

    def decode(self, codes: numpy.typing.NDArray[numpy.uint8], centroids: numpy.typing.NDArray[numpy.uint16], scales: numpy.typing.NDArray[numpy.int16], lengths: numpy.typing.NDArray[numpy.float32] | None) -> numpy.typing.NDArray[numpy.float32]:
        """The tokens that codes stand for, (num_tokens, dim)."""

class SmallDocuments:
    """
    Documents as small codes, in parts of (codes, centroids, scales, lengths or None, offsets), read where they lie.
    """

    def __init__(self, codec: Codec, parts: Sequence[tuple[numpy.typing.NDArray[numpy.uint8], numpy.typing.NDArray[numpy.uint16], numpy.typing.NDArray[numpy.int16], numpy.typing.NDArray[numpy.float32] | None, numpy.typing.NDArray[numpy.int64]]]) -> None: ...

    def __len__(self) -> int: ...

class Documents:
    """
    Documents in one or more chunks of (tokens, offsets), and what token_codes gave for the tokens of each, or small codes of all documents, read where they lie. Without chunks, of small codes alone.
    """

    def __init__(self, chunks: Sequence[tuple[numpy.typing.NDArray[Any], numpy.typing.NDArray[numpy.int64]]], codes: Sequence[tuple[numpy.typing.NDArray[numpy.int8], numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.int32]]] = (), small: SmallDocuments | None = None) -> None: ...

    def __len__(self) -> int: ...

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

def token_codes(tokens: numpy.typing.NDArray[Any], num_threads: int) -> tuple[numpy.typing.NDArray[numpy.int8], numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.int32]]:
    """
    int8 codes (num_tokens, stride), their float32 scales and int32 sums (num_tokens,).
    """

def rerank(queries: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], query_offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], documents: Documents, candidates: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], candidate_offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], k: int, num_threads: int) -> tuple[Annotated[NDArray[numpy.int64], dict(shape=(None, None))], Annotated[NDArray[numpy.float32], dict(shape=(None, None))], Annotated[NDArray[numpy.int64], dict(shape=(None,))]]:
    """
    Each query's best candidates by exact MaxSim: documents and scores (num_queries, k), and how many of them count.
    """

def top_k(values: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], k: int) -> Annotated[NDArray[numpy.int64], dict(shape=(None,))]:
    """Positions of the k largest values, best first; -inf counts as absent."""

def pool(tokens: numpy.typing.NDArray[Any], offsets: Annotated[numpy.typing.NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], factor: int, protected_tokens: int, piece: int, num_threads: int) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.uint16]]:
    """
    Pooled tokens of documents, float32, of which offsets[-1] rows are used; their offsets; and for each token the number of its pooled one within its document. Documents of more than `piece` tokens are pooled in pieces.
    """

MAX_POOLING_PIECE: int = ...

MAX_POOLED_TOKENS: int = ...

class Columns:
    """A copy of a float32 matrix (depth, num_columns), packed for products."""

    def __init__(self, matrix: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], num_threads: int) -> None: ...

def products(a: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], b: Columns, num_threads: int) -> Annotated[NDArray[numpy.float64], dict(shape=(None, None))]:
    """
    a @ b in float64, each element the same to the last bit whatever the shapes and threads.
    """

def read_ahead(how: str) -> None:
    """
    Whether searches of this process ask for pages before they read them: 'as needed', as they do from the start, 'always' or 'never'. For tests and benchmarks.
    """

def read_pages(memory: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None:
    """
    Read all pages of some bytes now, from the disk where they are not in memory.
    """

def pin_pages(memory: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> int:
    """
    The same, and keep them in memory as long as they are mapped: 0, or the error number of a system that refuses.
    """

def first_bad_row(tokens: numpy.typing.NDArray[Any]) -> int | None:
    """
    The first row of a (num_tokens, dim) float32 or float16 matrix with a NaN, an infinity or a value beyond 1e15, or None.
    """

def num_zero_rows(tokens: numpy.typing.NDArray[Any]) -> int:
    """
    How many rows of a (num_tokens, dim) float32 or float16 matrix hold nothing but zeros.
    """
