"""What travels between a client and a service, as requests and answers. Nothing here waits, or opens a connection."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lemur_ann import validate
from lemur_ann.documents.ids import check_new
from lemur_ann.documents.inputs import DocumentBatch, QueryBatch, ids_for, ids_of, iterate_documents, queries_of
from lemur_ann.documents.sources import as_column, is_stream, opened, record_batches
from lemur_ann.documents.tokens import tokens_column
from lemur_ann.errors import CorruptIndex, IndexLocked, NotFitted
from lemur_ann.hits import Hits
from lemur_ann.insight.evaluation import Evaluation
from lemur_ann.insight.relevance import Measure, Relevance, graded, rows_of, with_columns
from lemur_ann.searching.settings import Tuned

if TYPE_CHECKING:
    from lemur_ann.insight.explanation import Explanation

ARROW, JSON = "application/vnd.apache.arrow.stream", "application/json"
BYTES_PER_PART = 16 * 2**20  # of documents in one request, and of queries
TEXTS_PER_PART = 256  # which the service encodes: a minute of work for a small machine
QUERIES_PER_PART = 256
HITS_PER_PART = 1_000_000
IDS_PER_PART, TOKENS_PER_PART = 10_000, 500  # documents that are read in one request, without and with their tokens
VALUES_PER_CONDITION = 10_000  # of $in
VERSION, EXACT = "x-lemur-version", "x-lemur-exact"
BAD_FILTER = (
    "of a RemoteIndex is a dict such as {'year': {'$gte': 2020}}, in the place of "
    "pc.field('year') >= 2020, or a collection of ids"
)


@dataclass(frozen=True)
class Request:
    """A request; ``path`` is below the address of the service, and ``timeout`` in seconds."""

    method: str
    path: str
    timeout: float
    content: bytes | None = None
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Answer:
    """What came back; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class Lost:
    """No answer came, so that nobody knows whether the request did."""

    message: str
    is_timeout: bool


@dataclass(frozen=True, eq=False, repr=False)
class HitsWithColumns(Hits):
    """:class:`~lemur_ann.Hits` with the metadata columns that the search was asked for.

    Attributes:
        columns: a row for each hit, in their order.
    """

    columns: pa.Table | None = None


@dataclass(frozen=True)
class About:
    """What a service tells of an index.

    Attributes:
        name: in addresses.
        num_documents, num_tokens, dim, version, is_fitted: as of :class:`~lemur_ann.LemurIndex`; ``version`` is that on disk.
        takes_texts: whether the service encodes texts for it.
        read_only: whether it takes no changes.
        columns: the type of ``id`` and of each metadata column.
    """

    name: str
    num_documents: int
    num_tokens: int
    dim: int | None
    version: int
    is_fitted: bool
    takes_texts: bool
    read_only: bool
    columns: dict[str, str]


# Queries


@dataclass(frozen=True)
class Queries:
    """Queries as a caller passed them: texts or tokens, and whether it was one rather than a batch."""

    texts: list[str] | None
    batch: QueryBatch | None
    is_one: bool

    @classmethod
    def of(cls, queries: Any) -> Queries:
        """Checked; errors as of :meth:`lemur_ann.LemurIndex.search`."""
        if isinstance(queries, str):
            return cls([queries], None, True)
        texts = texts_of(queries)
        if texts is not None:
            return cls(texts, None, False)
        asked = queries_of(queries, None)
        return cls(None, asked.batch, asked.is_one)

    def __len__(self) -> int:
        return len(self.texts or ()) if self.batch is None else len(self.batch)

    def tables(self, limit: int | None = QUERIES_PER_PART) -> Iterator[pa.Table]:
        """Tables with a column ``text`` or ``tokens``, of so many queries at most; None means one of all."""
        if self.batch is None:
            table = pa.table({"text": pa.array(self.texts, pa.large_string())})
        else:
            table = pa.table({"tokens": tokens_column(self.batch.tokens, self.batch.offsets)})
        for begin in range(0, len(table), limit or max(len(table), 1)):
            yield table.slice(begin, limit)

    def as_json(self) -> list[Any]:
        """Texts, or matrices as JSON has them."""
        if self.batch is None:
            return list(self.texts or ())
        return [matrix_as_json(self.batch.matrix(i)) for i in range(len(self.batch))]


def texts_of(value: Any) -> list[str] | None:
    """The strings of a list, a column or an array of them; None where it is something else."""
    value = as_column(value)
    if isinstance(value, (pa.Array, pa.ChunkedArray)):
        is_text = pa.types.is_string(value.type) or pa.types.is_large_string(value.type) or str(value.type) == "string_view"
        value = value.to_pylist() if is_text else None
    elif isinstance(value, np.ndarray) and value.dtype.kind in "UT":
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or not value or not isinstance(value[0], str):
        return None
    for row, text in enumerate(value):
        if not isinstance(text, str):
            raise TypeError(f"texts must all be strings, got {validate.shown(text)} in row {row}")
    return list(value)


def search_body(table: pa.Table, settings: Mapping[str, Any]) -> bytes:
    """Queries with how they are asked."""
    return write_arrow(table.replace_schema_metadata({"lemur_ann": as_json(settings)}))


def settings_of(
    k: Any,
    num_candidates: Any,
    ef_search: Any,
    shortlist: Any,
    target_recall: Any,
    max_loss: Any,
    filter: Any,
    *,
    exact: Any = False,
    columns: Any = None,
) -> dict[str, Any]:
    """How a search is asked, checked, without what is the index's own."""
    if columns is not None and (isinstance(columns, (str, bytes)) or not isinstance(columns, Iterable)):
        raise TypeError(f"columns must be a list of names, got {columns!r}; one is columns=[{columns!r}]")
    given = {
        "k": validate.positive_int(k, "k"),
        "num_candidates": None if num_candidates is None else validate.positive_int(num_candidates, "num_candidates"),
        "ef_search": None if ef_search is None else validate.positive_int(ef_search, "ef_search"),
        "shortlist": None if shortlist is None else validate.integer(shortlist, "shortlist", least=0),
        "target_recall": None if target_recall is None else validate.share(target_recall, "target_recall"),
        "max_loss": None if max_loss is None else validate.share(max_loss, "max_loss"),
        "filter": filter_of(filter),
        "exact": validate.boolean(exact, "exact") or None,
        "columns": None if columns is None else list(columns),
    }
    return {name: value for name, value in given.items() if value is not None}


def filter_of(filter: Any) -> dict[str, Any] | None:
    """A filter as it travels.

    Raises:
        TypeError: it is neither a dict nor a collection of ids.
    """
    if filter is None or isinstance(filter, dict):
        return filter
    if isinstance(filter, pc.Expression):
        raise TypeError(f"a filter {BAD_FILTER}; got the pyarrow expression {filter}")
    if isinstance(filter, (str, int, float, Mapping)):
        raise TypeError(f"a filter {BAD_FILTER}; got {validate.shown(filter)}")
    try:
        ids = ids_of(filter).to_pylist()
    except TypeError as error:
        raise TypeError(f"a filter {BAD_FILTER}; {error}") from error
    return is_in("id", ids)


def is_in(column: str, values: list[Any]) -> dict[str, Any]:
    """A filter of a service: the column has one of these values, of which there may be any number."""
    begins = range(0, max(len(values), 1), VALUES_PER_CONDITION)
    parts = [{column: {"$in": values[begin : begin + VALUES_PER_CONDITION]}} for begin in begins]
    return parts[0] if len(parts) == 1 else {"$or": parts}


def evaluation_table(queries: Any, relevant: Any) -> pa.Table:
    """Queries as one table, with what is relevant to each, in any form that :meth:`lemur_ann.LemurIndex.evaluate` takes."""
    if relevant is not None:
        queries = with_columns(queries)
    asked = Queries.of(queries)
    if len(asked) == 0:
        raise ValueError("evaluate needs at least one query, got none")
    table = next(asked.tables(None))
    return table if relevant is None else table.append_column("relevant", _relevant_column(relevant, queries, len(asked)))


def relevant_as_json(queries: Any, relevant: Any) -> list[dict[Any, float]] | None:
    """For each query the ids of what is relevant, with grades."""
    if relevant is None:
        return None
    return [dict(own) for own in _graded(relevant, queries, len(Queries.of(queries)))]


def _graded(relevant: Any, queries: Any, num_queries: int) -> list[Any]:
    return [graded(value, row) for row, value in enumerate(rows_of(relevant, queries, num_queries))]


def _relevant_column(relevant: Any, queries: Any, num_queries: int) -> pa.Array:
    pairs = _graded(relevant, queries, num_queries)
    ids = ids_of([doc_id for own in pairs for doc_id, _ in own])
    grades = pa.array([grade for own in pairs for _, grade in own], pa.float64())
    offsets = np.cumsum([0, *map(len, pairs)])
    return pa.LargeListArray.from_arrays(
        pa.array(offsets, pa.int64()), pa.StructArray.from_arrays([ids, grades], ["id", "grade"])
    )


# Documents


def parts_of(documents: Any, ids: Any, offsets: Any) -> Iterator[pa.Table]:
    """Documents in tables of bounded size, with a column ``tokens`` or, where they are texts, ``text``.

    What is in memory is checked as a whole before the first part; of a stream each part is.

    Raises:
        ValueError, TypeError: as of :meth:`lemur_ann.LemurIndex.add`.
    """
    documents = opened(documents)
    texts = texts_of(documents)
    if texts is not None:
        table = pa.table({"text": pa.array(texts, pa.large_string())})
        documents = table if ids is None else table.add_column(0, "id", ids_for(ids, len(texts)))
        ids = None
    batches = record_batches(documents)
    if batches is None:
        return _joined(_checked_tables(documents, ids, offsets))
    first = next(batches, None)
    if first is None:
        return iter(())
    if "tokens" not in first.schema.names and "text" in first.schema.names:
        if ids is not None or offsets is not None:
            raise TypeError("documents in Arrow form carry ids as a column; ids= and offsets= must be None")
        return _text_tables(itertools.chain([first], batches))
    if is_stream(documents):  # which has been begun
        documents = _Begun(itertools.chain([first], batches))
    return _joined(_checked_tables(documents, ids, offsets))


class _Begun:
    """Record batches of which the first was looked at."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """All of them, once."""
        return self._batches


def _text_tables(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    for batch in batches:
        for begin in range(0, len(batch), TEXTS_PER_PART):
            yield pa.Table.from_batches([batch.slice(begin, TEXTS_PER_PART)])


def _checked_tables(documents: Any, ids: Any, offsets: Any) -> Iterator[pa.Table]:
    batches: Iterable[DocumentBatch] = iterate_documents(documents, ids=ids, offsets=offsets)
    seen: set[Any] = set()
    kind = None
    if not is_stream(documents):
        batches = list(batches)
        _check_ids(batches, seen)
        kind = np.result_type(*(batch.tokens.dtype for batch in batches)) if batches else None
    else:
        batches = (batch for batch in batches if _check_ids([batch], seen))
    for batch in batches:
        tokens = batch.tokens if kind is None else batch.tokens.astype(kind, copy=False)
        table = pa.table({"tokens": tokens_column(tokens, batch.offsets)})
        if batch.ids is not None:
            table = table.add_column(0, "id", batch.ids)
        others: Any = batch.metadata
        for name in () if others is None else others.column_names:
            table = table.append_column(name, others.column(name))
        sizes = np.diff(batch.offsets) * tokens.shape[1] * tokens.itemsize
        sizes = sizes + (0 if others is None else others.nbytes // len(batch))
        begin = 0
        while begin < len(table):
            end = max(begin + 1, int(np.searchsorted(np.cumsum(sizes[begin:]), BYTES_PER_PART, side="right")) + begin)
            yield table.slice(begin, end - begin)
            begin = end


def _check_ids(batches: list[DocumentBatch], seen: set[Any]) -> bool:
    for batch in batches:
        if batch.ids is not None:
            check_new(batch.ids.to_pylist(), seen)
    return True


def _joined(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in as few tables as their size lets."""
    waiting: list[pa.Table] = []
    size = 0
    for table in tables:
        own = table.nbytes
        if waiting and size + own > BYTES_PER_PART:
            yield pa.concat_tables(waiting, promote_options="permissive")
            waiting, size = [], 0
        waiting.append(table)
        size += own
    if waiting:
        yield pa.concat_tables(waiting, promote_options="permissive")


def matrix_as_json(matrix: npt.NDArray[Any]) -> dict[str, Any]:
    """A matrix (num_tokens, dim) as base64 of its rows, in its dtype, float32 or float16."""
    kind = np.dtype("<f2" if matrix.dtype == np.float16 else "<f4")
    data = base64.b64encode(np.ascontiguousarray(matrix, kind).tobytes()).decode()
    return {"data": data, "shape": list(matrix.shape), "dtype": kind.newbyteorder("=").name}


def write_arrow(table: pa.Table) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def as_json(value: Any) -> bytes:
    """JSON in which numbers may be NumPy's, and times are in ISO format.

    Raises:
        TypeError, ValueError: a value that JSON has not.
    """
    return json.dumps(value, default=_plain, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, pa.Scalar):
        return value.as_py()
    if isinstance(value, (set, frozenset, pa.Array, pa.ChunkedArray, np.ndarray)):
        return value.tolist() if hasattr(value, "tolist") else list(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{validate.shown(value)} cannot be sent as JSON")


# Answers


def is_of_service(answer: Answer) -> bool:
    """Whether an answer that is no error has the form of a service's."""
    kind = answer.headers.get("content-type", "").partition(";")[0].strip()
    return 200 <= answer.status < 300 and kind in (JSON, ARROW)


def told_of(answer: Answer, *names: str) -> dict[str, Any]:
    """The JSON object that an answer carries.

    Raises:
        ConnectionError: it is none that has these names, so that something else answered than a service.
    """
    try:
        told = json.loads(answer.content)
    except ValueError:
        told = None
    if not isinstance(told, dict) or not set(names) <= told.keys():
        raise ConnectionError(
            f"an answer is not as a lemur_ann service gives it: {answer.content[:200].decode(errors='replace')}"
        )
    return told


def read_arrow(answer: Answer) -> pa.Table:
    """The table that an answer carries.

    Raises:
        ConnectionError: it carries none.
    """
    try:
        with pa.ipc.open_stream(answer.content) as reader:
            return reader.read_all()
    except pa.ArrowException as error:
        raise ConnectionError(f"an answer is not as a lemur_ann service gives it: {error}") from error


def hits_of(answer: Answer, num_queries: int, *, with_columns: bool) -> list[Hits]:
    """The hits of each query of a request."""
    table = read_arrow(answer).combine_chunks()
    exact = answer.headers.get(EXACT, "true") == "true"
    bounds = np.searchsorted(table.column("query").to_numpy(), np.arange(num_queries + 1))
    ids, scores = table.column("id"), np.array(table.column("score").to_numpy(), np.float32)
    all_ids = np.array(ids.to_pylist(), np.int64 if pa.types.is_integer(ids.type) else object)
    columns = table.drop_columns([name for name in ("query", "rank", "id", "score") if name in table.column_names])
    found: list[Hits] = []
    for begin, end in itertools.pairwise(bounds.tolist()):
        own = (all_ids[begin:end], scores[begin:end], exact)
        found.append(HitsWithColumns(*own, columns.slice(begin, end - begin)) if with_columns else Hits(*own))
    return found


def columns_of(hits: Sequence[Hits], names: Sequence[str] | None) -> pa.Table | None:
    """The metadata that came with hits, one after the other; None where some came without, or not with those of these names."""
    tables = [one.columns for one in hits if isinstance(one, HitsWithColumns) and one.columns is not None]
    if len(tables) < len(hits) or not tables:
        return None
    if names is not None and not all(set(names) <= set(table.column_names) for table in tables):
        return None
    return pa.concat_tables(tables if names is None else [table.select(list(names)) for table in tables])


def table_of(hits: Sequence[Hits], metadata: pa.Table, *, is_one: bool) -> pa.Table:
    """Hits as one table, see :meth:`lemur_ann.LemurIndex.to_table`; ``metadata`` has a row for each of them."""
    lengths = np.array([len(one) for one in hits], np.int64)
    rank = np.concatenate([np.empty(0, np.int64), *(np.arange(1, length + 1) for length in lengths)])
    ids = (
        pa.concat_arrays([one.to_arrow().column("id").combine_chunks() for one in hits if len(one)]) if lengths.any() else None
    )
    ids = pa.array([], pa.int64() if hits and hits[0].ids.dtype.kind == "i" else pa.large_string()) if ids is None else ids
    scores = np.concatenate([np.empty(0, np.float32), *(one.scores for one in hits)])
    columns = {} if is_one else {"query": pa.array(np.repeat(np.arange(len(hits)), lengths))}
    table = pa.table({**columns, "rank": pa.array(rank), "id": ids, "score": pa.array(scores, pa.float32())})
    for name in metadata.column_names:
        if name in ("query", "rank", "score"):
            raise ValueError(f"metadata column {name!r} has the name of a column of the hits; columns= can leave it out")
        table = table.append_column(name, metadata.column(name))
    return table


def explanation_of(told: dict[str, Any], query_words: Any, document_words: Any) -> Explanation:
    """An explanation; words that the caller has take the place of those that the service knows.

    Raises:
        ValueError, TypeError: more or fewer words than tokens, or no strings.
    """
    from lemur_ann.insight.explanation import Explanation, with_words

    packed = told["similarities"]
    similarities = np.frombuffer(base64.b64decode(packed["data"]), "<f4").astype(np.float32).reshape(packed["shape"])
    members = told["members"]
    names = ("doc_id", "score", "rank", "num_documents", "estimate", "estimate_rank", "found_at", "k")
    found = Explanation(
        **{name: told[name] for name in names},
        similarities=similarities,
        usual_similarities=np.array(told["usual_similarities"], np.float32),
        members=None if members is None else tuple(map(tuple, members)),
        query_words=None if told["query_words"] is None else tuple(told["query_words"]),
        document_words=None if told["document_words"] is None else tuple(told["document_words"]),
    )
    return with_words(found, query_words, document_words)


def evaluation_of(told: dict[str, Any]) -> Evaluation:
    """An evaluation."""
    relevance = told.pop("relevance")
    if relevance is not None:
        measures = {
            name: Measure(**{**one, "loss_interval": tuple(one["loss_interval"])})
            for name, one in relevance.pop("measures").items()
        }
        relevance = Relevance(measures=measures, **relevance)
    return Evaluation(**{**told, "recall_interval": tuple(told["recall_interval"])}, relevance=relevance)


def tuned_of(told: dict[str, Any]) -> Tuned:
    """What tuning chose."""
    loss = told.get("loss_interval")
    return Tuned(
        **{
            **told,
            "recall_interval": tuple(told["recall_interval"]),
            "loss_interval": None if loss is None else tuple(loss),
        }
    )


# Errors

CLASSES: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        ValueError,
        TypeError,
        KeyError,
        NotFitted,
        IndexLocked,
        CorruptIndex,
        PermissionError,
        TimeoutError,
        RuntimeError,
    )
}
BY_STATUS: dict[int, type[Exception]] = {
    400: ValueError,
    401: PermissionError,
    403: PermissionError,
    404: FileNotFoundError,
    408: TimeoutError,
    409: ValueError,
    413: ValueError,
    415: ValueError,
    422: ValueError,
    429: ConnectionError,
    503: ConnectionError,
    504: TimeoutError,
}


def error_of(answer: Answer | Lost, request: Request, where: str) -> Exception:
    """The error that a local index would raise, or one of the connection.

    Args:
        answer: one that is an error.
        request: that it answers.
        where: the address of the service.
    """
    if isinstance(answer, Lost):
        kind: type[Exception] = TimeoutError if answer.is_timeout else ConnectionError
        doubt = (
            "" if request.headers is None or "idempotency-key" not in request.headers else "; it may have been applied or not"
        )
        return kind(f"{where} gave no answer to {request.method} {request.path}: {answer.message}{doubt}")
    try:
        told = json.loads(answer.content)
        message, name = str(told["message"]), told.get("type")
    except (ValueError, TypeError, KeyError, AttributeError):
        shown = answer.content[:200].decode(errors="replace")
        return ConnectionError(f"{where} answered {answer.status}, and not as a lemur_ann service does: {shown}")
    number = answer.headers.get("x-request-id")
    fallback = BY_STATUS.get(answer.status, RuntimeError)
    return CLASSES.get(name, fallback)(f"{message} (request {number})" if answer.status >= 500 and number else message)


def error_of_job(told: str) -> Exception:
    """The error that ended a job, of which its class and its message are told."""
    name, _, message = told.partition(": ")
    return CLASSES[name](message) if name in CLASSES else RuntimeError(told)


def retry_after(answer: Answer) -> float | None:
    """Seconds after which the service wants to be asked again; None where it does not say."""
    given = answer.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(given) if given[:1].isdigit() else parsedate_to_datetime(given).timestamp() - time())
    except (ValueError, TypeError):
        return None
