"""Clients of a service as the command line begins it: processes that read beside one that writes, and TLS."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

import lemur_ann
from lemur_ann import LemurIndex
from lemur_ann.service.access import new_key

SMALL = {"num_features": 64, "epochs": 1, "rank": 15}
BEGIN_S = 60


@pytest.fixture
def command(tmp_path):
    """A function: `lemur-ann serve` of an index with more arguments; gives its port."""
    running = []

    def begin(*arguments):
        LemurIndex.open(tmp_path / "index", **SMALL).close()
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        program = [sys.executable, "-c", "from lemur_ann.cli import main; main()", "serve", str(tmp_path / "index")]
        log = (tmp_path / "log").open("wb")
        program += ["--port", str(port), *arguments]
        running.append((subprocess.Popen(program, stdout=log, stderr=log, cwd=tmp_path), log))  # and not the source tree
        end = time.monotonic() + BEGIN_S
        while time.monotonic() < end:
            assert running[-1][0].poll() is None, (tmp_path / "log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return port
            time.sleep(0.05)
        raise AssertionError((tmp_path / "log").read_text())

    yield begin
    for process, log in running:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()


def test_it_reads_what_it_wrote_of_whatever_process(command, make_matrices):
    port = command("--workers", "2")
    matrices = make_matrices(60)
    twin = LemurIndex(**SMALL)
    with lemur_ann.connect(f"http://127.0.0.1:{port}", "index", retries=20, timeout=60) as index:
        for i in range(20):
            part = slice(3 * i, 3 * i + 3)
            index.add(matrices[part], ids=range(60)[part])
            twin.add(matrices[part], ids=range(60)[part])
            assert len(index) == 3 * i + 3
            assert index.search(matrices[3 * i], 5) == twin.search(matrices[3 * i], 5)
            assert index.ids() == twin.ids()
        assert index.delete([0, 1]) == 2
        with pytest.raises(KeyError):
            index.get([0])
        index.fit(queries=matrices)
        assert index.is_fitted
        assert index.tune(matrices, 0.5).recall > 0
        assert index.evaluate(matrices, target_recall=0.5).num_documents == 58
        with pytest.raises(ValueError, match="names a document of the index already"):
            index.add(matrices[:1], ids=[5])


def test_a_certificate_of_its_own(command, tmp_path, make_matrices):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make a certificate")
    files = {"-keyout": tmp_path / "key.pem", "-out": tmp_path / "certificate.pem"}
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", *(str(part) for pair in files.items() for part in pair)]
    subprocess.run(made, check=True, capture_output=True)
    key = new_key(tmp_path / "keys", "client", ["index"], "write")
    secure = ["--certificate", str(files["-out"]), "--private-key", str(files["-keyout"]), "--keys", str(tmp_path / "keys")]
    address = f"https://127.0.0.1:{command(*secure)}"
    with lemur_ann.connect(address, "index", key=key, certificate=files["-out"], retries=20, timeout=60) as index:
        index.add(make_matrices(3))
        assert len(index) == 3
    with lemur_ann.connect(address, "index", key=key, retries=0) as index, pytest.raises(ConnectionError, match="CERTIFICATE"):
        len(index)
