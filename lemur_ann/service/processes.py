"""The processes of a service: one alone; or one that writes and others that read, with one that looks after them."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lemur_ann.service.hosted import Limits

log = logging.getLogger("lemur_ann.service")

DRAIN_S = 30  # for what is under way when a service is told to end
HEAD_S = 10.0  # for the head of a request
IDLE_S = 75  # a connection is kept
BEGIN_S = 120.0  # for a process to answer its first request
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RETRY_S = 0.5  # before a process that ended is begun again


@dataclass(frozen=True)
class Settings:
    """What ``lemur-ann serve`` was asked for.

    Attributes:
        indexes: directories by name.
        host, port: to listen at.
        workers: processes that read; 1 is one process that reads and writes.
        read_only: nothing is written, and no lock is taken.
        encoder: of texts, see :func:`lemur_ann.service.encoders.load`; None takes tokens alone.
        keys: a file that ``lemur-ann key`` writes; None lets everybody do everything.
        certificate, private_key: PEM files, for TLS.
        insecure: listen elsewhere than on loopback without keys or TLS.
        limits: of searches and requests.
        flight_port: to listen at for Arrow Flight, at the same host; None for none.
    """

    indexes: dict[str, Path]
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    read_only: bool = False
    encoder: str | None = None
    keys: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    insecure: bool = False
    limits: Limits = field(default_factory=Limits)
    flight_port: int | None = None

    def check(self) -> None:
        """Raises where it must not listen as asked.

        Raises:
            ValueError: elsewhere than on loopback, without keys or without TLS.
        """
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("TLS needs both --certificate and --private-key")
        if self.is_local or self.insecure:
            return
        missing = [name for name, value in (("--keys", self.keys), ("--certificate", self.certificate)) if value is None]
        if missing:
            raise ValueError(
                f"{self.host} can be reached from elsewhere, and {' and '.join(missing)} is not given: anybody could read and "
                "change the indexes. Give both, listen on 127.0.0.1 behind a proxy that has them, or say --insecure"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    @property
    def hosts(self) -> list[str]:
        """Names by which it may be called: those of loopback, where nothing else keeps other people's web pages out."""
        return ["localhost", "127.0.0.1", "[::1]", self.host] if self.is_local and self.keys is None else ["*"]


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, and then answer what is under way.

    Raises:
        ValueError: see :meth:`Settings.check`.
        OSError: the port is taken, or a directory cannot be opened.
    """
    settings.check()
    listening = _listening(settings.host, settings.port)
    with contextlib.closing(listening):
        if settings.workers == 1:
            log_to_stderr()
            _tell(settings)
            run(settings, listening, writer=None, writes=not settings.read_only)
        else:
            _Supervisor(settings, listening).run()


def run(settings: Settings, listening: socket.socket, *, writer: str | None, writes: bool) -> None:
    """Serve in this process: ``writer`` is the socket of the one that writes, None where there is none or it is this one."""
    import httpx
    import uvicorn

    from lemur_ann.service.access import Keys
    from lemur_ann.service.app import make_app
    from lemur_ann.service.encoders import load
    from lemur_ann.service.head_timeout import HeadTimeout
    from lemur_ann.service.hosted import Hosted
    from lemur_ann.service.service import Service

    encoder = None if settings.encoder is None else load(settings.encoder)
    indexes = [
        Hosted(name, path, read_only=not writes, encoder=encoder, limits=settings.limits)
        for name, path in settings.indexes.items()
    ]
    client = None
    if writer is not None:
        client = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=writer), base_url="http://localhost", timeout=None)
    service = Service(indexes, Keys(settings.keys), writer=client)
    door = None
    if settings.flight_port is not None:
        door = _open_flight(settings, settings.flight_port, service, writer)
    app = make_app(service, hosts=settings.hosts)
    secure = {} if settings.certificate is None else {"ssl_certfile": settings.certificate, "ssl_keyfile": settings.private_key}
    config = uvicorn.Config(
        app,
        http=functools.partial(HeadTimeout, HEAD_S),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=DRAIN_S,
        **secure,  # type: ignore[arg-type]
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again once it has ended
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening])
    if door is not None and door.has_streams:  # nothing ends them but the process, whose usual end would wait for them
        logging.shutdown()
        os._exit(0)


def _open_flight(settings: Settings, port: int, service: Any, writer: str | None) -> Any:
    import httpx

    from lemur_ann.service.flight import FlightDoor

    client = None
    if writer is not None:
        client = httpx.Client(transport=httpx.HTTPTransport(uds=writer), base_url="http://localhost", timeout=None)
    secure = {"certificate": settings.certificate, "private_key": settings.private_key}
    door = FlightDoor(service, settings.host, port, writer=client, **secure)
    service.doors.append(functools.partial(door.end, DRAIN_S))
    log.info("serving Arrow Flight at %s port %d", settings.host, door.port)
    return door


def log_to_stderr() -> None:
    """Lines of the log as they are: JSON of requests, and text of what else happens."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("lemur_ann.service")
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.INFO)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
        listening.set_inheritable(True)
    except BaseException:
        listening.close()
        raise
    return listening


def _tell(settings: Settings) -> None:
    scheme = "http" if settings.certificate is None else "https"
    log.info("serving %s at %s://%s:%d", ", ".join(settings.indexes), scheme, settings.host, settings.port)


def _child(settings: Settings, listening: socket.socket, writer: str | None, writes: bool) -> None:
    """What a process that the supervisor began does."""
    log_to_stderr()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        run(settings, listening, writer=writer, writes=writes)
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        log.error("error: %s", error)
        sys.exit(1)


class _DidNotBegin(RuntimeError):
    """A process ended before it answered."""


class _Supervisor:
    """Begins processes, begins those anew that end, and ends them all."""

    def __init__(self, settings: Settings, listening: socket.socket) -> None:
        self._settings, self._listening = settings, listening
        self._context = multiprocessing.get_context("spawn")
        self._is_ending = threading.Event()
        self._woken, self._wake = os.pipe()

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        log_to_stderr()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        with tempfile.TemporaryDirectory(prefix="lemur_ann") as folder:  # of this user alone
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            self._look_after(Path(folder) / "writer.sock")

    def _end(self, *_: object) -> None:
        self._is_ending.set()
        os.write(self._wake, b"x")

    def _look_after(self, uds: Path) -> None:
        settings = self._settings
        writer: Callable[[], Any] | None = None
        if not settings.read_only:
            writer = functools.partial(self._begin_writer, uds)
        socket_of = None if writer is None else str(uds)
        roles: dict[str, Callable[[], Any]] = {} if writer is None else {"writer": writer}
        for i in range(settings.workers):  # Arrow does not share a port between processes: the first reader has it
            own = settings if i == 0 else replace(settings, flight_port=None)
            roles[f"reader {i}"] = functools.partial(self._begun, _child, own, self._listening, socket_of, False)
        processes: dict[str, Any] = {}
        try:
            for name, begin in roles.items():
                processes[name] = begin()
            _tell(settings)
            while not self._is_ending.is_set():
                sentinels = {process.sentinel: name for name, process in processes.items()}
                for ready in multiprocessing.connection.wait([*sentinels, self._woken]):
                    if ready in sentinels and not self._is_ending.is_set():
                        name = sentinels[ready]
                        log.warning("%s ended with code %s and is begun anew", name, processes[name].exitcode)
                        with contextlib.suppress(_DidNotBegin):  # else the service ends
                            processes[name] = self._anew(roles[name])
        finally:  # readers first: what they have under way may need the writer
            for name in reversed(roles):
                if name in processes and name != "writer":
                    processes[name].terminate()
            for name in reversed(roles):
                if name in processes:
                    processes[name].terminate()
                    processes[name].join(DRAIN_S + 10)
                    if processes[name].exitcode is None:
                        processes[name].kill()

    def _anew(self, begin: Callable[[], Any]) -> Any:
        """A process in the place of another: what ends while it begins is begun again, until the service ends."""
        while not self._is_ending.wait(RETRY_S):
            with contextlib.suppress(_DidNotBegin):
                return begin()
        raise _DidNotBegin("the service ends")

    def _begun(self, target: Callable[..., None], *arguments: Any) -> Any:
        process = self._context.Process(target=target, args=arguments)
        process.start()
        return process

    def _begin_writer(self, uds: Path) -> Any:
        """The process that writes, once it answers: it makes directories that are not there yet."""
        uds.unlink(missing_ok=True)
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listening:
            listening.bind(str(uds))
            listening.listen(256)
            inside = replace(
                self._settings, keys=None, certificate=None, private_key=None, insecure=True, host="localhost", flight_port=None
            )
            process = self._begun(_child, inside, listening, None, True)
        _wait_for(uds, process)
        return process


def _wait_for(uds: Path, process: Any) -> None:
    import httpx

    with httpx.Client(transport=httpx.HTTPTransport(uds=str(uds)), base_url="http://localhost") as client:
        end = time.monotonic() + BEGIN_S
        while process.exitcode is None and time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError):
                if client.get("/healthz").status_code == 200:
                    return
            time.sleep(0.05)
    raise _DidNotBegin(f"the process that writes did not begin: it ended with code {process.exitcode}")


def named(directories: list[str]) -> dict[str, Path]:
    """Directories by the names that paths of requests have for them: ``NAME=DIR``, or the last part of ``DIR``.

    Raises:
        ValueError: a name twice, or one that does not go into a path.
    """
    found: dict[str, Path] = {}
    for given in directories:
        name, equals, path = given.partition("=")
        if not equals:
            name, path = Path(given).resolve().name, given
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an index: letters, digits, '.', '_' and '-'; NAME=DIR gives another")
        if name in found:
            raise ValueError(f"two indexes are called {name!r}; NAME=DIR gives one another name")
        found[name] = Path(path)
    return found
