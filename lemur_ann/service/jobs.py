"""What takes minutes, and is asked for once: learning, tuning, compaction."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from pydantic import TypeAdapter

from lemur_ann import validate
from lemur_ann.service.bodies import Tokens, loads, matrix_of
from lemur_ann.service.hosted import Hosted, OtherRequest, Request

MAX_JOBS = 100  # whose ends are known
_TOKENS: TypeAdapter[Any] = TypeAdapter(Tokens)


@dataclass
class Job:
    """One of them.

    Attributes:
        id: which.
        index, kind: of what, and what.
        state: "waiting", "running", "done" or "failed".
        result: what it gave.
        error: why it failed.
        version: of the index when it ended.
        request: that began it: sent again, it begins no other.
    """

    id: str
    index: str
    kind: str
    state: str = "waiting"
    result: Any = None
    error: str | None = None
    version: int | None = None
    request: Request = field(default_factory=Request)

    @property
    def told(self) -> dict[str, Any]:
        """What clients see of it."""
        return {name: value for name, value in vars(self).items() if name != "request"}


class Jobs:
    """Jobs one after the other, while searches and changes go on."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="lemur_ann jobs")

    def start(self, index: Hosted, kind: str, body: bytes, request: Request) -> dict[str, Any]:
        """Begin one, once those before it are done.

        Raises:
            ValueError, TypeError: an unknown kind, or bad arguments.
            OtherRequest: the request's key began another job.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown job {kind[:40]!r}; expected one of {', '.join(KINDS)}")
        if index.read_only:
            raise PermissionError(f"index {index.name!r} is served read-only")
        arguments = loads(body or b"{}", "the body")
        if not isinstance(arguments, dict):
            raise TypeError("the arguments of a job are a JSON object")
        known = self._begun_by(index, request)
        if known is not None:
            return known.told
        names, run = KINDS[kind]
        validate.names(arguments, names, f"job {kind}")
        queries = _queries(index, arguments.pop("queries", None))
        job = Job(uuid.uuid4().hex, index.name, kind, request=request)
        with self._lock:
            known = self._begun_by(index, request)  # by another thread, while this one made its queries
            if known is not None:
                return known.told
            self._jobs = {**dict(list(self._jobs.items())[1 - MAX_JOBS :]), job.id: job}
        self._worker.submit(self._run, job, index, lambda: run(index, queries, arguments))
        return job.told

    def _begun_by(self, index: Hosted, request: Request) -> Job | None:
        for job in self._jobs.values():
            if request.key is not None and job.request.key == request.key and job.index == index.name:
                if job.request.digest != request.digest:
                    raise OtherRequest(f"Idempotency-Key {request.key!r} came with another job before: each has its own")
                return job
        return None

    def state(self, index: Hosted, number: str) -> dict[str, Any]:
        """How far one is.

        Raises:
            KeyError: there is none.
        """
        job = self._jobs.get(number)
        if job is None or job.index != index.name:
            raise KeyError(f"no job {number[:40]!r} of index {index.name!r}: jobs are known until the service ends")
        return job.told

    def close(self) -> None:
        """Give up what waits; what runs is waited for."""
        self._worker.shutdown(cancel_futures=True)

    def _run(self, job: Job, index: Hosted, run: Callable[[], Any]) -> None:
        job.state = "running"
        try:
            job.result = run()
            job.version = index.version
            job.state = "done"
        except BaseException as error:
            job.error, job.state = f"{type(error).__name__}: {error}", "failed"


def _queries(index: Hosted, given: Any) -> Any:
    """Token matrices of what a job learns from or measures on."""
    if given is None:
        return None
    if not isinstance(given, list) or not given:
        raise TypeError("queries are a list of texts, or of token matrices")
    if all(isinstance(query, str) for query in given):
        return index.encode(given)
    return [matrix_of(_TOKENS.validate_python(query)) for query in given]


def _fit(index: Hosted, queries: Any, arguments: dict[str, Any]) -> Any:
    if queries is None and index.texts is not None:
        index.texts.fit(progress=False, **arguments)
    else:
        index.index.fit(queries=queries, progress=False, **arguments)
    return _learned(index)


def _refit(index: Hosted, queries: Any, arguments: dict[str, Any]) -> Any:
    index.index.refit(queries, progress=False, **arguments)
    return _learned(index)


def _learned(index: Hosted) -> dict[str, Any]:
    return {"learned_from": index.index.encoder.training.get("learned_from"), "num_documents": len(index.index)}


def _tune(index: Hosted, queries: Any, arguments: dict[str, Any]) -> Any:
    tuned = index.index.tune(queries, progress=False, **arguments)
    return asdict(tuned) if is_dataclass(tuned) else None


def _compact(index: Hosted, queries: Any, arguments: dict[str, Any]) -> Any:
    index.index.compact(progress=False, **arguments)
    return {"num_documents": len(index.index)}


def _recode(index: Hosted, queries: Any, arguments: dict[str, Any]) -> Any:
    index.index.recode(arguments.pop("token_codes"), progress=False, **arguments)
    return {"token_codes": index.index.options.token_codes}


KINDS: dict[str, tuple[tuple[str, ...], Callable[[Hosted, Any, dict[str, Any]], Any]]] = {
    "fit": (("queries", "num_threads", "memory_limit"), _fit),
    "refit": (("queries", "num_threads", "memory_limit", "num_features", "epochs", "rank", "resume"), _refit),
    "tune": (("queries", "target_recall", "k", "target", "relevant", "max_loss", "seed", "num_threads"), _tune),
    "compact": (("num_threads",), _compact),
    "recode": (("token_codes", "keep_tokens", "num_threads"), _recode),
}
