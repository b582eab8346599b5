"""``lemur-ann serve`` as processes: under kill -9, under SIGTERM, behind TLS."""

import concurrent.futures
import datetime
import ipaddress
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from lemur_ann import LemurIndex
from lemur_ann.demo import fit_demo_index
from tests.service.serving import children, command, free_port, wait_for

ENCODER = "serve_words:make"
CODE = """
import numpy as np

def vectors(texts):
    word = lambda w: np.random.default_rng(list(w.encode())).normal(size=16)
    return [np.stack([word(w) for w in text.split()]).astype(np.float32) for text in texts]

def make():
    return vectors, vectors
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "serve_words.py").write_text(CODE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def document(i):
    return {"id": i, "text": f"word{i % 97} fox{i} owl"}


def post(address, number):
    body, headers = {"documents": [document(number)]}, {"idempotency-key": f"k{number}"}
    return httpx.post(f"{address}/v1/indexes/live/documents", json=body, headers=headers, timeout=30)


def status(answer):
    """Of a request that was sent, None where no answer came."""
    try:
        return answer.result().status_code
    except httpx.HTTPError:
        return None


def retried(address, number, stop):
    """Adds a document as a client does that does not give up: the same key until it is told that it is there."""
    while not stop.is_set():
        try:
            answer = post(address, number)
        except httpx.HTTPError:
            time.sleep(0.1)
            continue
        if answer.status_code == 200:
            return answer.json()
        assert answer.status_code in (429, 503), answer.text
        time.sleep(0.1)
    return None


def test_kill_9_of_any_process_loses_nothing_acknowledged(folder):
    with command(folder, "live", "--encoder", ENCODER, "--workers", 2, "--num-threads", 1) as (process, address):
        stop, acknowledged, wrong = threading.Event(), [], []

        def write(first):
            number = first
            while not stop.is_set():
                if retried(address, number, stop) is not None:
                    acknowledged.append(number)
                number += 2

        def search():
            while not stop.is_set():
                number = acknowledged[-1] if acknowledged else 0
                try:
                    answer = httpx.post(f"{address}/v1/indexes/live/search", json={"text": f"fox{number}", "k": 1}, timeout=10)
                except httpx.HTTPError:
                    continue  # its process was killed
                if answer.status_code not in (200, 429, 503):
                    wrong.append(answer.text)

        threads = [threading.Thread(target=write, args=(first,)) for first in (0, 1)] + [threading.Thread(target=search)]
        for thread in threads:
            thread.start()
        for _ in range(4):
            time.sleep(1.5)
            workers = [pid for pid, line in children(process.pid).items() if "spawn_main" in line]
            os.kill(workers[len(acknowledged) % len(workers)], signal.SIGKILL)
        wait_for(address)
        time.sleep(3)
        stop.set()
        for thread in threads:
            thread.join(60)
        assert not wrong
        assert len(acknowledged) > 10
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    index = LemurIndex.open(folder / "live", read_only=True)
    ids = index.ids().to_pylist()
    assert set(acknowledged) <= set(ids)
    assert len(ids) == len(set(ids))
    index.check()


def test_sigterm_answers_what_is_under_way(folder):
    with command(folder, "live", "--encoder", ENCODER) as (process, address):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(post, address, i) for i in range(8)]
            concurrent.futures.wait(answers, return_when=concurrent.futures.FIRST_COMPLETED)
            process.send_signal(signal.SIGTERM)
            told = [status(answer) for answer in answers]
        assert process.wait(60) == 0
    added = LemurIndex.open(folder / "live", read_only=True).ids().to_pylist()
    assert {i for i, code in enumerate(told) if code == 200} <= set(added)
    assert 200 in told
    LemurIndex.open(folder / "live").close()  # and its lock is free


def test_a_reader_sees_what_its_client_wrote(folder):
    with (
        command(folder, "live", "--encoder", ENCODER, "--workers", 2) as (_, address),
        httpx.Client(base_url=address) as client,
    ):
        for i in range(20):
            version = post(address, i).headers["x-lemur-version"]
            asked = client.post(
                "/v1/indexes/live/search", json={"text": f"fox{i}", "k": 1}, headers={"x-lemur-version": version}
            )
            assert asked.json()["hits"][0]["id"] == i
        metrics = client.get("/metrics").text  # of all processes together
        assert 'lemur_ann_requests_total{route="/v1/indexes/{name}/search",status="200"} 20.0' in metrics


def test_read_only_beside_another_writer(folder, demo_data):
    fit_demo_index(demo_data, epochs=0).save(folder / "demo")
    with LemurIndex.open(folder / "demo") as writer:
        with command(folder, "demo", "--read-only", "--encoder", "demo") as (_, address):
            text = demo_data.queries.column("text")[0].as_py()
            asked = httpx.post(f"{address}/v1/indexes/demo/search", json={"text": text, "columns": ["text"]}, timeout=30)
            best = asked.json()["hits"][0]["id"]
            assert best == writer.search(demo_data.queries[:1], 1)[0].ids[0]
            writer.delete([best])
            end = time.monotonic() + 10
            while time.monotonic() < end:  # it follows by itself
                asked = httpx.post(f"{address}/v1/indexes/demo/search", json={"text": text}, timeout=30)
                if asked.json()["hits"][0]["id"] != best:
                    break
                time.sleep(0.05)
            assert asked.json()["hits"][0]["id"] != best
        with command(folder, "demo", ready=False) as (process, _):
            assert process.wait(60) == 1  # two writers
    assert "open for writing" in " ".join((folder / "serve.log").read_text().split())


def serve(folder, *arguments):
    script = Path(sys.executable).parent / "lemur-ann"
    return subprocess.run(
        [str(script), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=folder, timeout=60
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["live", "--host", "0.0.0.0"], "--keys and --certificate is not given"),
        (["live", "--host", "::", "--keys", "keys.json"], "--certificate is not given"),
        (["live", "--certificate", "keys.json"], "both"),
        (["a/live", "b/live"], "two indexes are called 'live'"),
        (["=live"], "is no name of an index"),
        (["live", "--encoder", "nonsense"], "is none of"),
        (["live", "--keys", "broken.json"], "no file of keys"),
        (["live", "--read-only"], "live"),
    ],
)
def test_what_it_does_not_begin(folder, arguments, message):
    (folder / "keys.json").write_text("[]")
    (folder / "broken.json").write_text("{")
    result = serve(folder, "serve", *arguments, "--port", free_port())
    assert result.returncode == 1
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert not (folder / "live" / "manifest.json").exists() or arguments[-1] in ("broken.json", "nonsense")


def test_a_port_that_is_taken_is_told(folder):
    with command(folder, "live") as (_, address):
        result = serve(folder, "serve", "other", "--port", address.rpartition(":")[2])
        assert result.returncode == 1
        assert "in use" in result.stderr


def certificate(folder):
    """A certificate of 127.0.0.1 that is signed by itself."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    there = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(there, critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)


def test_keys_and_tls_on_every_interface(folder):
    certificate(folder)
    made = serve(folder, "key", "keys.json", "--name", "app", "--index", "live", "--access", "write")
    assert made.returncode == 0
    secret = made.stdout.strip()
    arguments = ("live", "--host", "0.0.0.0", "--keys", "keys.json", "--certificate", "cert.pem", "--private-key", "key.pem")
    with command(folder, *arguments, ready=False) as (process, address):
        address = address.replace("http://", "https://")
        context = ssl.create_default_context(cafile=folder / "cert.pem")
        with httpx.Client(base_url=address, verify=context) as client:
            end = time.monotonic() + 60
            while time.monotonic() < end:
                try:
                    client.get("/healthz")
                    break
                except httpx.HTTPError:
                    time.sleep(0.1)
            body = {"documents": [{"id": 1, "tokens": [[1.0, 0.0]]}]}
            assert client.post("/v1/indexes/live/documents", json=body).status_code == 401
            headers = {"authorization": f"Bearer {secret}"}
            assert client.post("/v1/indexes/live/documents", json=body, headers=headers).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    log = (folder / "serve.log").read_text()
    assert '"key": "app"' in log
    assert secret not in log
