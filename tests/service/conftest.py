from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from lemur_ann.service.access import Keys
from lemur_ann.service.app import Service, make_app
from lemur_ann.service.hosted import Hosted, Limits

BEGIN_S = 30


class Served:
    """A service over real sockets, in a thread; ``stop`` and ``start`` again is another process, for its clients."""

    def __init__(self, folder, names, **options):
        self._folder, self._names, self._options = folder, names, options
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.wrap = lambda app: app  # ASGI around it, for what goes wrong on the way
        self.start()

    def start(self):
        encoder, keys = self._options.get("encoder"), Keys(self._options.get("keys"))
        limits = self._options.get("limits", Limits())
        indexes = [Hosted(name, self._folder / name, encoder=encoder, limits=limits) for name in self._names]
        self.service = Service(indexes, keys)
        self.requests = []
        app = make_app(self.service)

        async def told(scope, receive, send):
            if scope["type"] == "http":
                self.requests.append((scope["method"], scope["path"], {k.decode(): v.decode() for k, v in scope["headers"]}))
                await self.wrap(app)(scope, receive, send)
            else:
                await app(scope, receive, send)

        config = uvicorn.Config(told, host="127.0.0.1", port=self.port, log_config=None, ws="none", timeout_graceful_shutdown=5)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
        self._thread.start()
        end = time.monotonic() + BEGIN_S
        while not self._server.started:
            assert time.monotonic() < end, "the service did not begin"
            assert self._thread.is_alive(), "the service ended"
            time.sleep(0.01)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(BEGIN_S)
        assert not self._thread.is_alive()


@pytest.fixture
def serve(tmp_path):
    """A function: a service of indexes of these names, in a folder of the test."""
    running = []

    def begin(*names, **options):
        running.append(Served(tmp_path, names or ("index",), **options))
        return running[-1]

    yield begin
    for served in running:
        served.stop()
