"""An index that a service has, with the interface of :class:`lemur_ann.LemurIndex`: for threads, and for coroutines."""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import time
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa

from lemur_ann import _core, validate
from lemur_ann.client import wire
from lemur_ann.client.calls import Calls, Pause, Steps
from lemur_ann.client.wire import About, Answer, Lost, Request
from lemur_ann.hits import Hits
from lemur_ann.insight.evaluation import Evaluation
from lemur_ann.notebook import facts
from lemur_ann.progress import Show
from lemur_ann.searching.settings import Tuned

if TYPE_CHECKING:
    from lemur_ann.insight.explanation import Explanation

CONNECTIONS = 64  # of one client at a time

T = TypeVar("T")


def connect(
    address: str,
    name: str,
    *,
    key: str | None = None,
    timeout: float = 10.0,
    retries: int = 3,
    certificate: str | PathLike[str] | None = None,
) -> RemoteIndex:
    """An index of a service (``lemur-ann serve``), to be used as a :class:`~lemur_ann.LemurIndex`; ``lemur_ann[client]``.

    Nothing is sent yet: the first call says whether the service and the index are there.

    Args:
        address: of the service, such as "http://127.0.0.1:8080"; a path in it goes before that of each request.
        name: of the index there.
        key: what ``lemur-ann key`` gave; None for a service without keys.
        timeout: seconds that the service has to answer. Changes, learning and measurements have ten minutes at least.
        retries: how often a request is sent again where the connection fails, no answer comes, or the service says that it has
            too much to do, each time after a longer pause. No change is applied twice.
        certificate: a PEM file of the authorities, or of the service's own certificate, for "https"; None trusts those that
            httpx does.

    Raises:
        ImportError: httpx is not installed.
        ValueError, TypeError: an address that is none, or a bad argument.
        OSError: the certificate cannot be read.

    Example:
        >>> index = connect("http://127.0.0.1:8080", "books")
        >>> index
        <RemoteIndex 'books' at http://127.0.0.1:8080>
    """
    return RemoteIndex(address, name, key=key, timeout=timeout, retries=retries, certificate=certificate)


def connect_async(
    address: str,
    name: str,
    *,
    key: str | None = None,
    timeout: float = 10.0,
    retries: int = 3,
    certificate: str | PathLike[str] | None = None,
) -> AsyncRemoteIndex:
    """The same with coroutines: a function of its own and no coroutine, since nothing is sent yet.

    Args:
        address, name, key, timeout, retries, certificate: as for :func:`connect`.
    """
    return AsyncRemoteIndex(address, name, key=key, timeout=timeout, retries=retries, certificate=certificate)


class _Remote:
    """What both have: where the service is, and the calls."""

    def __init__(
        self,
        address: str,
        name: str,
        *,
        key: str | None = None,
        timeout: float = 10.0,
        retries: int = 3,
        certificate: str | PathLike[str] | None = None,
    ) -> None:
        self.address, self.name = _checked_address(address), _checked_name(name)
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
            raise ValueError(f"timeout must be a number of seconds above 0, got {validate.shown(timeout)}")
        if key is not None and not (isinstance(key, str) and key.isascii() and key.isprintable()):
            raise ValueError("key must be a string as 'lemur-ann key' gives it")
        self._calls = Calls(self.address, name, float(timeout), validate.integer(retries, "retries", least=0))
        self._settings = _settings(self.address, key, certificate)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} at {self.address}>"


class RemoteIndex(_Remote):
    """An index of a service; made by :func:`lemur_ann.connect`, whose arguments these are.

    What it has in common with :class:`~lemur_ann.LemurIndex` takes the same arguments and raises the same errors, but that

    - a filter is a dict such as ``{"year": {"$gte": 2020}}``, or a collection of ids;
    - queries and documents may be texts, where the service has an encoder;
    - ``num_threads`` counts for nothing where the service searches or takes documents: it has its own;
    - many documents go in parts of 16 MB, each of which is in, or not, as a whole;
    - properties, ``len`` and ``in`` ask the service each time.

    Searches see the changes that this client made before them. Any number of threads may use one.

    Raises:
        ConnectionError, TimeoutError: of every call: no answer came, also not when it was asked again.
        PermissionError: of every call: the key is missing or unknown, or does not allow it.
        FileNotFoundError: of every call: the service has no such index.
    """

    def __init__(self, address: str, name: str, **how: Any) -> None:
        super().__init__(address, name, **how)
        self._open()

    def _open(self) -> None:
        self._http, self._process = _httpx().Client(**self._settings), os.getpid()
        self._close = weakref.finalize(self, self._http.close)  # where nobody calls close

    def _run(self, steps: Steps[T]) -> T:
        answer: Answer | Lost | None = None
        try:
            while True:
                step = steps.send(answer)
                answer = None
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                else:
                    answer = self._sent(step)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            steps.close()

    def _sent(self, request: Request) -> Answer | Lost:
        httpx = _httpx()
        if self._process != os.getpid() and not self._http.is_closed:  # forked: one connection would answer two processes
            self._close.detach()
            self._open()
        try:
            return _answer(self._http.request(**_arguments(request)))
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol) as error:
            raise ValueError(f"the request cannot be sent: {error}") from error
        except httpx.RequestError as error:  # of the connection, or of what came over it
            return _lost(error)

    def close(self) -> None:
        """Close the connections; the end of the object does so too."""
        self._close()

    def __enter__(self) -> RemoteIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What it holds

    def about(self) -> About:
        """What the service tells of it, in one request: :class:`~lemur_ann.client.About`."""
        return self._run(self._calls.about())

    def __len__(self) -> int:
        """The number of documents."""
        return self.about().num_documents

    def __contains__(self, doc_id: object) -> bool:
        return self._run(self._calls.contains(doc_id))

    def __iter__(self) -> Iterator[Any]:
        """The ids of all documents, oldest first."""
        return iter(self.ids().to_pylist())

    def __bool__(self) -> bool:
        """True without a request, where an index of no documents is False: of a client it would be asked by chance."""
        return True

    def _repr_html_(self) -> str:
        about = self.about()
        columns = ", ".join(f"{name} ({kind})" for name, kind in about.columns.items())
        shown = {"address": self.address, "documents": f"{about.num_documents:,}", "tokens": f"{about.num_tokens:,}"}
        return facts(f"RemoteIndex {self.name}", shown | {"dim": str(about.dim or "none yet"), "columns": columns})

    @property
    def dim(self) -> int | None:
        """Dimension of tokens; None before the first document."""
        return self.about().dim

    @property
    def num_tokens(self) -> int:
        """Stored tokens, those of deleted documents included until they are compacted away."""
        return self.about().num_tokens

    @property
    def version(self) -> int:
        """A number that grows with every change of the index on its service's disk, whoever makes it."""
        return self.about().version

    @property
    def is_fitted(self) -> bool:
        """Whether a learned map is there; if not, searches are exact."""
        return self.about().is_fitted

    def ids(self) -> pa.Array:
        """See :meth:`lemur_ann.LemurIndex.ids`; all of them travel."""
        return self._run(self._calls.ids())

    def get(self, ids: Any) -> pa.Table:
        """See :meth:`lemur_ann.LemurIndex.get`; many are read in several requests, between which the index may change."""
        return self._run(self._calls.get(ids, tokens=True))

    def metadata(self, ids: Any) -> pa.Table:
        """See :meth:`lemur_ann.LemurIndex.metadata`."""
        return self._run(self._calls.get(ids, tokens=False))

    def to_table(self, hits: Hits | Sequence[Hits], columns: Sequence[str] | None = None) -> pa.Table:
        """See :meth:`lemur_ann.LemurIndex.to_table`; without a request where the hits came with these columns.

        Args:
            hits: of one query, or a list of those of a batch.
            columns: names of the metadata columns; None means those that came with the hits, and all where none did.
        """
        return self._run(self._calls.to_table(hits, columns))

    # Searching it

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        shortlist: int | None = None,
        target_recall: float | None = None,
        max_loss: float | None = None,
        filter: dict[str, Any] | Collection[Any] | None = None,
        exact: bool = False,
        columns: Sequence[str] | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """See :meth:`lemur_ann.LemurIndex.search`.

        Args:
            queries: as there; or a text or a list of them, where the service has an encoder. A batch goes in requests of 256.
            k: how many to return, at least 1 and at most 10,000.
            num_candidates, ef_search, shortlist, target_recall, max_loss, exact: as there.
            filter: a dict such as ``{"year": {"$gte": 2020}}``, or a collection of ids.
            columns: names of metadata columns to return with the hits, ["*"] for all: they are then
                :class:`~lemur_ann.client.HitsWithColumns`, and :meth:`to_table` needs no request.
            num_threads: counts for nothing; the service has its own.

        Returns:
            :class:`~lemur_ann.Hits` for one query, a list of them for a batch.
        """
        validate.num_threads(num_threads)
        widths = (num_candidates, ef_search, shortlist, target_recall, max_loss)
        settings = wire.settings_of(k, *widths, filter, exact=exact, columns=columns)
        return self._run(self._calls.search(queries, settings))

    def explain(
        self,
        query_tokens: Any,
        doc_id: Any,
        *,
        k: int = 10,
        query_words: Sequence[str] | None = None,
        document_words: Sequence[str] | None = None,
        num_threads: int | None = None,
    ) -> Explanation:
        """See :meth:`lemur_ann.LemurIndex.explain`; a text as the query is explained with its words."""
        return self._run(self._calls.explain(query_tokens, doc_id, k, query_words, document_words))

    def evaluate(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        shortlist: int | None = None,
        target_recall: float | None = None,
        max_loss: float | None = None,
        filter: dict[str, Any] | Collection[Any] | None = None,
        relevant: Any = None,
    ) -> Evaluation:
        """See :meth:`lemur_ann.LemurIndex.evaluate`; latencies are those within the service, without the network."""
        settings = wire.settings_of(k, num_candidates, ef_search, shortlist, target_recall, max_loss, filter)
        return self._run(self._calls.evaluate(queries, settings, relevant))

    # Changing it

    def add(
        self, documents: Any, *, ids: Any = None, offsets: Any = None, note: None = None, progress: Show = False
    ) -> RemoteIndex:
        """See :meth:`lemur_ann.LemurIndex.add`; texts too, where the service has an encoder.

        Documents go in parts of 16 MB, and texts 256 at a time. Where a part is refused, those before it are in, and the error
        says how many documents. What is in memory is checked as a whole before the first part, so that bad tokens and ids that
        come twice change nothing.

        Args:
            documents: as there; or a list of texts, or Arrow data with a column ``text`` in the place of ``tokens``.
            ids, offsets: as there.
            note: None; a service has its own.
            progress: as there; it counts documents.

        Returns:
            the index itself.
        """
        self._run(self._calls.add(documents, ids, offsets, note, progress, replaces=False))
        return self

    def upsert(
        self, documents: Any, *, ids: Any = None, offsets: Any = None, note: None = None, progress: Show = False
    ) -> RemoteIndex:
        """See :meth:`lemur_ann.LemurIndex.upsert`, and :meth:`add`."""
        self._run(self._calls.add(documents, ids, offsets, note, progress, replaces=True))
        return self

    def delete(self, ids: Any = None, *, filter: dict[str, Any] | Collection[Any] | None = None, note: None = None) -> int:
        """See :meth:`lemur_ann.LemurIndex.delete`."""
        return self._run(self._calls.delete(ids, filter, note))

    # What takes minutes

    def fit(
        self,
        documents: Any = None,
        queries: Any = None,
        *,
        ids: Any = None,
        offsets: Any = None,
        encode_query: Any = None,
        memory_limit: int | str | None = None,
        num_threads: int | None = None,
        progress: Show = False,
    ) -> RemoteIndex:
        """See :meth:`lemur_ann.LemurIndex.fit`; the service learns, and this waits.

        Args:
            documents, ids, offsets: as for :meth:`add`, into an empty index; None learns from those it has.
            queries: as there, or texts; a service takes 64 MB. None learns from sentences of the documents where the service
                has an encoder.
            encode_query: of a :class:`~lemur_ann.TextIndex`; the service's own encoder is used in its place.
            memory_limit, num_threads: as there, of the service.
            progress: as there.
        """
        arguments = {"memory_limit": memory_limit, "num_threads": num_threads}
        self._run(self._calls.fit(documents, queries, ids, offsets, encode_query, arguments, progress))
        return self

    def refit(self, queries: Any = None, *, progress: Show = False, **options: Any) -> RemoteIndex:
        """See :meth:`lemur_ann.LemurIndex.refit`, of whose arguments it takes num_features, epochs, rank, resume, memory_limit
        and num_threads."""
        self._run(self._calls.refit(queries, options, progress))
        return self

    def tune(
        self,
        queries: Any,
        target_recall: float | None = None,
        k: int = 10,
        *,
        target: str | None = None,
        relevant: Any = None,
        max_loss: float | None = None,
        seed: int = 0,
        num_threads: int | None = None,
        progress: Show = False,
    ) -> Tuned:
        """See :meth:`lemur_ann.LemurIndex.tune`; latencies are those within the service."""
        how = {"target_recall": target_recall, "k": k, "target": target, "max_loss": max_loss, "seed": seed}
        return self._run(self._calls.tune(queries, relevant, how | {"num_threads": num_threads}, progress))

    def compact(self, *, num_threads: int | None = None, progress: Show = False) -> RemoteIndex:
        """See :meth:`lemur_ann.LemurIndex.compact`."""
        self._run(self._calls.job("compact", {"num_threads": num_threads}, progress))
        return self

    def recode(
        self,
        token_codes: str | None,
        *,
        keep_tokens: str | None = None,
        num_threads: int | None = None,
        progress: Show = False,
    ) -> RemoteIndex:
        """See :meth:`lemur_ann.LemurIndex.recode`."""
        how = {"token_codes": token_codes, "keep_tokens": keep_tokens, "num_threads": num_threads}
        self._run(self._calls.job("recode", how, progress))
        return self


class AsyncRemoteIndex(_Remote):
    """:class:`RemoteIndex` with coroutines; made by :func:`lemur_ann.connect_async`, whose arguments these are.

    Methods take the same arguments. What is a property there is in :meth:`about`; ``len`` is :meth:`count`, and ``in`` is
    :meth:`contains`. Any number of coroutines of one event loop may use one.
    """

    def __init__(self, address: str, name: str, **how: Any) -> None:
        super().__init__(address, name, **how)
        self._http = _httpx().AsyncClient(**self._settings)

    async def _run(self, steps: Steps[T], *, heavy: bool = False) -> T:
        """``heavy`` ones make large requests, in a thread."""
        answer: Answer | Lost | None = None
        try:
            while True:
                step, result = await asyncio.to_thread(_next, steps, answer) if heavy else _next(steps, answer)
                answer = None
                if step is None:
                    return result  # type: ignore[no-any-return]
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    answer = await self._sent(step)
        finally:
            with suppress(ValueError):  # a thread has it still, where this was cancelled
                steps.close()

    async def _sent(self, request: Request) -> Answer | Lost:
        httpx = _httpx()
        try:
            return _answer(await self._http.request(**_arguments(request)))
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol) as error:
            raise ValueError(f"the request cannot be sent: {error}") from error
        except httpx.RequestError as error:  # of the connection, or of what came over it
            return _lost(error)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncRemoteIndex:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def about(self) -> About:
        """What the service tells of it: :class:`~lemur_ann.client.About`."""
        return await self._run(self._calls.about())

    async def count(self) -> int:
        """The number of documents."""
        return (await self.about()).num_documents

    async def contains(self, doc_id: Any) -> bool:
        """Whether an id names a document."""
        return await self._run(self._calls.contains(doc_id))

    async def ids(self) -> pa.Array:
        """See :meth:`RemoteIndex.ids`."""
        return await self._run(self._calls.ids())

    async def get(self, ids: Any) -> pa.Table:
        """See :meth:`RemoteIndex.get`."""
        return await self._run(self._calls.get(ids, tokens=True))

    async def metadata(self, ids: Any) -> pa.Table:
        """See :meth:`RemoteIndex.metadata`."""
        return await self._run(self._calls.get(ids, tokens=False))

    async def to_table(self, hits: Hits | Sequence[Hits], columns: Sequence[str] | None = None) -> pa.Table:
        """See :meth:`RemoteIndex.to_table`."""
        return await self._run(self._calls.to_table(hits, columns))

    async def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        shortlist: int | None = None,
        target_recall: float | None = None,
        max_loss: float | None = None,
        filter: dict[str, Any] | Collection[Any] | None = None,
        exact: bool = False,
        columns: Sequence[str] | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """See :meth:`RemoteIndex.search`."""
        validate.num_threads(num_threads)
        widths = (num_candidates, ef_search, shortlist, target_recall, max_loss)
        settings = wire.settings_of(k, *widths, filter, exact=exact, columns=columns)
        return await self._run(self._calls.search(queries, settings))

    async def explain(
        self,
        query_tokens: Any,
        doc_id: Any,
        *,
        k: int = 10,
        query_words: Sequence[str] | None = None,
        document_words: Sequence[str] | None = None,
        num_threads: int | None = None,
    ) -> Explanation:
        """See :meth:`RemoteIndex.explain`."""
        return await self._run(self._calls.explain(query_tokens, doc_id, k, query_words, document_words))

    async def evaluate(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        shortlist: int | None = None,
        target_recall: float | None = None,
        max_loss: float | None = None,
        filter: dict[str, Any] | Collection[Any] | None = None,
        relevant: Any = None,
    ) -> Evaluation:
        """See :meth:`RemoteIndex.evaluate`."""
        settings = wire.settings_of(k, num_candidates, ef_search, shortlist, target_recall, max_loss, filter)
        return await self._run(self._calls.evaluate(queries, settings, relevant), heavy=True)

    async def add(
        self, documents: Any, *, ids: Any = None, offsets: Any = None, note: None = None, progress: Show = False
    ) -> AsyncRemoteIndex:
        """See :meth:`RemoteIndex.add`."""
        await self._run(self._calls.add(documents, ids, offsets, note, progress, replaces=False), heavy=True)
        return self

    async def upsert(
        self, documents: Any, *, ids: Any = None, offsets: Any = None, note: None = None, progress: Show = False
    ) -> AsyncRemoteIndex:
        """See :meth:`RemoteIndex.upsert`."""
        await self._run(self._calls.add(documents, ids, offsets, note, progress, replaces=True), heavy=True)
        return self

    async def delete(
        self, ids: Any = None, *, filter: dict[str, Any] | Collection[Any] | None = None, note: None = None
    ) -> int:
        """See :meth:`RemoteIndex.delete`."""
        return await self._run(self._calls.delete(ids, filter, note))

    async def fit(
        self,
        documents: Any = None,
        queries: Any = None,
        *,
        ids: Any = None,
        offsets: Any = None,
        encode_query: Any = None,
        memory_limit: int | str | None = None,
        num_threads: int | None = None,
        progress: Show = False,
    ) -> AsyncRemoteIndex:
        """See :meth:`RemoteIndex.fit`."""
        arguments = {"memory_limit": memory_limit, "num_threads": num_threads}
        steps = self._calls.fit(documents, queries, ids, offsets, encode_query, arguments, progress)
        await self._run(steps, heavy=True)
        return self

    async def refit(self, queries: Any = None, *, progress: Show = False, **options: Any) -> AsyncRemoteIndex:
        """See :meth:`RemoteIndex.refit`."""
        await self._run(self._calls.refit(queries, options, progress), heavy=True)
        return self

    async def tune(
        self,
        queries: Any,
        target_recall: float | None = None,
        k: int = 10,
        *,
        target: str | None = None,
        relevant: Any = None,
        max_loss: float | None = None,
        seed: int = 0,
        num_threads: int | None = None,
        progress: Show = False,
    ) -> Tuned:
        """See :meth:`RemoteIndex.tune`."""
        how = {"target_recall": target_recall, "k": k, "target": target, "max_loss": max_loss, "seed": seed}
        steps = self._calls.tune(queries, relevant, how | {"num_threads": num_threads}, progress)
        return await self._run(steps, heavy=True)

    async def compact(self, *, num_threads: int | None = None, progress: Show = False) -> AsyncRemoteIndex:
        """See :meth:`RemoteIndex.compact`."""
        await self._run(self._calls.job("compact", {"num_threads": num_threads}, progress))
        return self

    async def recode(
        self,
        token_codes: str | None,
        *,
        keep_tokens: str | None = None,
        num_threads: int | None = None,
        progress: Show = False,
    ) -> AsyncRemoteIndex:
        """See :meth:`RemoteIndex.recode`."""
        how = {"token_codes": token_codes, "keep_tokens": keep_tokens, "num_threads": num_threads}
        await self._run(self._calls.job("recode", how, progress))
        return self


def _next(steps: Steps[T], answer: Any) -> tuple[Request | Pause | None, Any]:
    """The next step, or None and the result: StopIteration does not leave a thread."""
    try:
        return steps.send(answer), None
    except StopIteration as end:
        return None, end.value


@functools.cache
def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise ImportError("lemur_ann.connect needs httpx: pip install 'lemur_ann[client]'") from error
    return httpx


def _checked_address(address: Any) -> str:
    if not isinstance(address, str):
        raise TypeError(f"address must be a string such as 'http://127.0.0.1:8080', got {validate.shown(address)}")
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
        good = good and parts.port != 0 and parts.username is None
        good = good and address.isprintable() and " " not in address
    except ValueError:  # a port that is no number, or an address of IPv6 that has no end
        good = False
    if not good:
        raise ValueError(f"address must be as 'http://127.0.0.1:8080', or with https, got {address[:100]!r}")
    return address.rstrip("/")


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, that of an index of the service, got {validate.shown(name)}")
    if not name:
        raise ValueError("name is empty, expected that of an index of the service")
    return name


def _settings(address: str, key: str | None, certificate: str | PathLike[str] | None) -> dict[str, Any]:
    httpx = _httpx()
    headers = {"user-agent": f"lemur_ann/{_core.version}"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    verify: Any = True
    if certificate is not None:
        verify = ssl.create_default_context(cafile=validate.path(certificate, "certificate"))
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    return {"base_url": address, "headers": headers, "verify": verify, "limits": limits}


def _arguments(request: Request) -> dict[str, Any]:
    given = {"method": request.method, "url": request.path, "content": request.content, "headers": request.headers}
    return given | {"timeout": request.timeout}


def _answer(response: Any) -> Answer:
    return Answer(response.status_code, {name.lower(): value for name, value in response.headers.items()}, response.content)


def _lost(error: Exception) -> Lost:
    return Lost(f"{type(error).__name__}: {error}".rstrip(": "), "Timeout" in type(error).__name__)
