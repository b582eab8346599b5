from __future__ import annotations

import uuid

import pytest


@pytest.fixture(scope="session")
def s3_server():
    """The endpoint of an S3 server of this machine, which keeps its objects in memory."""
    pytest.importorskip("s3fs", reason="pip install s3fs 'moto[server]'")
    pytest.importorskip("moto", reason="pip install s3fs 'moto[server]'")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def object_store(s3_server):
    """The URL of a new bucket, and fsspec's options for it."""
    import fsspec

    options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": s3_server}}
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3", **options).mkdir(bucket)
    return f"s3://{bucket}/place", options
