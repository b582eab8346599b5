"""A service in this process, on a free port of loopback; or one in processes of its own, as the command line starts it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import uvicorn

from lemur_ann.service.access import Keys
from lemur_ann.service.app import Service, make_app
from lemur_ann.service.head_timeout import HeadTimeout

ARROW = "application/vnd.apache.arrow.stream"


def words_encoder(dim=16):
    """A pair of functions that give each word a fixed vector: real search, and no model."""

    def vectors(texts):
        return [
            np.stack([np.random.default_rng(list(w.encode())).normal(size=dim) for w in t.split()]).astype(np.float32)
            for t in texts
        ]

    return vectors, vectors


@contextlib.contextmanager
def served(*indexes, keys=None, hosts=("*",), head_s=10.0):
    """The address of a service of some indexes, which are closed with it."""
    app = make_app(Service(indexes, Keys(keys)), hosts)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(512)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=10, http=lambda **how: HeadTimeout(head_s, **how)
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            wait_for(address)
            yield address
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def wait_for(address, path="/readyz", seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(address + path, timeout=5).status_code == 200:
                return
        time.sleep(0.05)
    raise TimeoutError(f"{address}{path} is not there after {seconds} s")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def command(folder, *arguments, ready=True):
    """``lemur-ann serve`` as a process; gives it and its address."""
    port = free_port()
    script = Path(sys.executable).parent / "lemur-ann"
    with (folder / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [str(script), "serve", *map(str, arguments), "--port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd=folder,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            address = f"http://127.0.0.1:{port}"
            if ready:
                wait_for(address)
            yield process, address
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def children(pid):
    """The processes that one began, by their commands."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found
