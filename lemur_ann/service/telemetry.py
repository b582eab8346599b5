"""What a service tells of itself: metrics for Prometheus, and a line of JSON in the log for each request."""

from __future__ import annotations

import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

log = logging.getLogger("lemur_ann.service")
access_log = logging.getLogger("lemur_ann.service.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
QUIET = ("/healthz", "/readyz", "/metrics")  # not in the log


class Metrics:
    """The metrics of one process; of several they are added up where the environment has PROMETHEUS_MULTIPROC_DIR."""

    def __init__(self) -> None:
        self._is_shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self.registry = CollectorRegistry()
        how: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("lemur_ann_requests", "Requests by route and status.", ("route", "status"), **how)
        self.seconds = Histogram("lemur_ann_request_seconds", "Time of requests.", ("route",), buckets=SECONDS, **how)
        self.batch = Histogram(
            "lemur_ann_search_batch", "Requests searched together.", ("index",), buckets=(1, 2, 4, 8, 16, 32), **how
        )
        gauge: dict[str, Any] = how | ({"multiprocess_mode": "livemax"} if self._is_shared else {})
        self.documents = Gauge("lemur_ann_documents", "Documents of an index.", ("index",), **gauge)
        self.version = Gauge("lemur_ann_version", "Version of an index.", ("index",), **gauge)
        gauge |= {"multiprocess_mode": "livesum"} if self._is_shared else {}
        self.waiting = Gauge("lemur_ann_searches_waiting", "Searches that wait for a thread.", ("index",), **gauge)

    def page(self, indexes: Iterable[Any]) -> bytes:
        """All of it in the text format of Prometheus."""
        for hosted in indexes:
            self.documents.labels(hosted.name).set(len(hosted.index))
            self.version.labels(hosted.name).set(hosted.version)
            self.waiting.labels(hosted.name).set(len(hosted.searches))
        registry = self.registry
        if self._is_shared:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return bytes(generate_latest(registry))


class Observed:
    """An ASGI application around another: request ids, the log and metrics."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500
        scope["lemur_request_id"] = request_id = _request_id(scope)

        async def told(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, told)
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if scope["path"] not in QUIET and access_log.isEnabledFor(logging.INFO):
                _log(scope, route, status, seconds, request_id)


def _request_id(scope: Any) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _log(scope: Any, route: str, status: int, seconds: float, request_id: str) -> None:
    line = {
        "request": request_id,
        "client": (scope.get("client") or ("", 0))[0],
        "key": scope.get("lemur_key"),
        "method": scope["method"],
        "route": route,
        "index": scope.get("path_params", {}).get("name"),
        "status": status,
        "ms": round(1e3 * seconds, 3),
    }
    access_log.info("%s", json.dumps({name: value for name, value in line.items() if value is not None}))
