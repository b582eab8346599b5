"""A server in a process of its own, for tests of what else than HTTP it speaks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

COMMAND = str(Path(sys.executable).parent / "lemur-ann")


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@contextmanager
def served(folder, *arguments, flight=True):
    """A server in a process of its own, once it is ready: (url, Flight's location, process)."""
    port, flight_port = free_port(), free_port()
    command = [COMMAND, "serve", *map(str, arguments), "--port", str(port), "--num-threads", "1"]
    command += ["--flight-port", str(flight_port)] if flight else []
    with open(folder / f"server-{port}.log", "w") as lines:
        process = subprocess.Popen(command, stdout=lines, stderr=lines, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, folder / f"server-{port}.log")
            yield url, f"grpc://127.0.0.1:{flight_port}", process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(45)
            finally:
                process.kill()


def _wait(url, process, lines):
    end = time.monotonic() + 90
    while not _is_ready(url):
        if time.monotonic() > end or process.poll() is not None:
            raise RuntimeError(lines.read_text())
        time.sleep(0.05)


def _is_ready(url):
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return json.load(answer)["status"] == "ready"
    except OSError:
        return False
