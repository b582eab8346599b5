"""What a service adds to a search: time of one query, and queries a second, beside a search in process.

    python benchmarks/service.py INDEX QUERIES [--workers 1] [--seconds 10] [--connections 16]

INDEX is a saved index, QUERIES a Parquet file with token embeddings. Client and server share this machine's cores. Single
queries are asked one after the other over one connection; many at once by wrk, Debian's package of that name.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq

ROUNDS = 3
NUM_QUERIES = 400
LUA = """
local bodies = {}
for line in io.lines("%s") do bodies[#bodies + 1] = line end
local next = 0
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
function request()
  next = next %% #bodies + 1
  return wrk.format(nil, nil, nil, bodies[next])
end
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--connections", type=int, default=16)
    arguments = parser.parse_args()
    from lemur_ann import LemurIndex
    from lemur_ann.documents import read_queries

    batch = read_queries(pq.read_table(arguments.queries, columns=["tokens"])[:NUM_QUERIES])
    queries = [np.asarray(batch.matrix(i), np.float16) for i in range(len(batch))]
    index = LemurIndex.load(arguments.index, verify=False)
    bodies = [body(query) for query in queries]
    cores = len(os.sched_getaffinity(0))
    print(f"{index!r}, {len(queries)} queries of {len(queries[0])} tokens, {cores} cores for client and server")
    with served(arguments.index, arguments.workers) as (address, _):
        name = arguments.index.resolve().name
        path = f"/v1/indexes/{name}/search"
        headers = {"content-type": "application/json"}
        with httpx.Client(base_url=address) as client:

            def ask(number: int) -> None:
                client.post(path, content=bodies[number], headers=headers).raise_for_status()

            with Raw(address, path) as raw:
                ways: dict[str, Callable[[int], Any]] = {
                    "in process": lambda number: index.search(queries[number], num_threads=1),
                    "HTTP, a plain socket": lambda number: raw.ask(bodies[number]),
                    "HTTP, httpx": ask,
                }
                print_single(ways, len(queries))
        batch_rate = max(rate(index, queries, cores) for _ in range(ROUNDS))
        print(f"{batch_rate:,.0f} queries a second in process, one batch on {cores} threads")
        if shutil.which("wrk") is not None:
            told = by_wrk(address + path, bodies, arguments.seconds, arguments.connections)
            share = told["rate"] / batch_rate
            print(f"{told['rate']:,.0f} queries a second by HTTP, {arguments.connections} connections: {share:.0%}")
            print(f"p50 {told['p50']}, p99 {told['p99']}; not answered with 200: {told['other']}")


def body(query: Any) -> bytes:
    tokens = {"data": base64.b64encode(query.tobytes()).decode(), "shape": list(query.shape)}
    return json.dumps({"tokens": tokens, "k": 10}).encode()


class Raw:
    """One connection, and no more of HTTP than it takes: what a quick client would add."""

    def __init__(self, address: str, path: str) -> None:
        host, port = address.removeprefix("http://").split(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: "

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, content: bytes) -> bytes:
        """The body of an answer with 200."""
        status, answer = self.asked(content)
        assert status == 200, answer
        return answer

    def asked(self, content: bytes) -> tuple[int, bytes]:
        """The status and the body."""
        self._socket.sendall(f"{self._head}{len(content)}\r\n\r\n".encode() + content)
        answer = b""
        while True:
            answer += self._socket.recv(65536)
            head, found, rest = answer.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            if found and length and len(rest) >= int(length[1]):
                return int(head.split()[1]), rest


def print_single(ways: dict[str, Callable[[int], Any]], count: int) -> None:
    """p50 and p99 of single queries by each way, one round of each after the other."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, ask in ways.items():
            for number in range(count):
                begin = time.perf_counter()
                ask(number)
                times[name].append(1e3 * (time.perf_counter() - begin))
    base = np.median(times["in process"])
    for name, all_times in times.items():
        p50, p99 = np.median(all_times), np.quantile(all_times, 0.99)
        print(f"{name:22} p50 {p50:.3f} ms ({p50 - base:+.3f}), p99 {p99:.3f} ms")


def rate(index: Any, queries: list[Any], cores: int) -> float:
    begin = time.perf_counter()
    index.search(queries, num_threads=cores)
    return len(queries) / (time.perf_counter() - begin)


def by_wrk(url: str, bodies: list[bytes], seconds: int, connections: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        lines, script = Path(folder, "bodies"), Path(folder, "ask.lua")
        lines.write_bytes(b"\n".join(bodies) + b"\n")
        script.write_text(LUA % lines)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), url]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def found(pattern: str) -> str:
        match = re.search(pattern, said)
        return match[1] if match else "0"

    return {
        "rate": float(found(r"Requests/sec:\s+([\d.]+)")),
        "p50": found(r"50%\s+(\S+)"),
        "p99": found(r"99%\s+(\S+)"),
        "other": found(r"Non-2xx or 3xx responses: (\d+)"),
    }


@contextlib.contextmanager
def served(index: Path, workers: int, *, writes: bool = False) -> Iterator[tuple[str, int]]:
    """The address of a service of an index, and its process."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [str(Path(sys.executable).parent / "lemur-ann"), "serve", str(index), "--port", str(port)]
    command += ["--workers", str(workers), *([] if writes else ["--read-only"])]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(address + "/readyz").status_code == 200:
                    break
            time.sleep(0.1)
        yield address, process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


if __name__ == "__main__":
    main()
