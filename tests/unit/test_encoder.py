from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import uuid

import numpy as np
import pyarrow as pa
import pytest

from lemur_ann import CorruptIndex, LemurEncoder, LemurIndex, formats
from lemur_ann.arrays import map_arrays, write_arrays
from lemur_ann.options import Options


@pytest.fixture
def encoder(small_index):
    index, documents, queries = small_index(rank=31)
    return index.encoder, documents, queries


def order(distances):
    return np.argsort(distances, axis=1, kind="stable")


def test_the_order_is_the_same_whatever_the_metric(encoder):
    encoder, documents, queries = encoder
    d, q = encoder.encode_documents(documents).astype(np.float64), encoder.encode_queries(queries).astype(np.float64)
    assert d.shape == (200, 32)
    assert q.shape == (60, 32)
    products = q @ d.T
    l2 = ((q[:, None] - d[None]) ** 2).sum(2)
    cosine = products / np.linalg.norm(d, axis=1) / np.linalg.norm(q, axis=1)[:, None]
    best = np.sort(products, axis=1)[:, ::-1]
    for other in (-l2, cosine):  # ties aside, the same order
        np.testing.assert_allclose(np.take_along_axis(products, order(-other), 1), best, atol=5e-5)
    np.testing.assert_allclose(np.linalg.norm(d, axis=1), encoder.radius, rtol=1e-5)


def test_the_estimates_follow_maxsim(encoder):
    encoder, documents, queries = encoder
    estimates = encoder.encode_queries(queries) @ encoder.encode_documents(documents).T
    exact = np.array([[(q @ d.T).max(1).sum() for d in documents] for q in queries])
    for estimated, scores in zip(estimates, exact, strict=True):
        assert np.corrcoef(estimated, scores)[0, 1] > 0.8


def test_every_form_of_documents_gives_the_same_bits(encoder, tmp_path):
    encoder, documents, queries = encoder
    expected = encoder.encode_documents(documents)
    flat, offsets = np.concatenate(documents), np.cumsum([0, *map(len, documents)])
    table = pa.table({"tokens": pa.array([d.tolist() for d in documents], pa.list_(pa.list_(pa.float32(), 16)))})
    for given in (table, table.to_reader(), iter(documents)):
        np.testing.assert_array_equal(encoder.encode_documents(given), expected)
    np.testing.assert_array_equal(encoder.encode_documents(flat, offsets=offsets), expected)
    np.testing.assert_array_equal(encoder.encode_documents(documents[5:6]), expected[5:6])
    assert encoder.encode_documents([]).shape == (0, 32)
    np.testing.assert_array_equal(encoder.encode_queries(queries[3]), encoder.encode_queries(queries)[3])


def test_an_index_searches_by_these_vectors(small_index):
    index, documents, _ = small_index()
    vectors = index.snapshot.learned.candidates.take(np.arange(200))
    np.testing.assert_allclose(index.encoder.encode_documents(documents), vectors, atol=1e-4 * index.encoder.radius)


@pytest.mark.parametrize("epochs", [0, 1])
def test_saved_and_loaded(small_index, tmp_path, epochs):
    index, documents, queries = small_index(epochs=epochs)
    encoder = index.encoder
    encoder.save(tmp_path / "map.safetensors")
    encoder.save(tmp_path / "map.safetensors")  # in its place
    assert [file.name for file in tmp_path.iterdir()] == ["map.safetensors"]
    loaded = LemurEncoder.load(tmp_path / "map.safetensors")
    np.testing.assert_array_equal(loaded.encode_documents(documents), encoder.encode_documents(documents))
    np.testing.assert_array_equal(loaded.encode_queries(queries), encoder.encode_queries(queries))
    assert (loaded.dim, loaded.token_dim, loaded.training) == (16, 16, encoder.training)


def test_as_bytes(encoder, tmp_path):
    encoder, documents, queries = encoder
    encoder.save(tmp_path / "map.safetensors")
    saved, data = (tmp_path / "map.safetensors").read_bytes(), encoder.to_bytes()

    def parts(whole: bytes) -> tuple[dict, bytes]:  # the strings of a header stand in any order
        end = 8 + int.from_bytes(whole[:8], "little")
        return json.loads(whole[8:end]), whole[end:]

    assert parts(data) == parts(saved)
    for given in (data, saved, memoryview(data), np.frombuffer(data, np.uint8)):
        again = LemurEncoder.from_bytes(given)
        np.testing.assert_array_equal(again.encode_documents(documents), encoder.encode_documents(documents))
        np.testing.assert_array_equal(again.encode_queries(queries), encoder.encode_queries(queries))
        assert again.training == encoder.training
        assert again.fingerprint == encoder.fingerprint
    (tmp_path / "written").write_bytes(data)
    assert LemurEncoder.load(tmp_path / "written").fingerprint == encoder.fingerprint
    newer = data.replace(b'"format_version":"2"', b'"format_version":"9"')
    assert newer != data
    for bad in (b"", b"no map", data[:-1], data[:100], newer, b"\xff" * 100):
        with pytest.raises(CorruptIndex, match="what these bytes hold (cannot be read|is not an encoder|has encoder format 9)"):
            LemurEncoder.from_bytes(bad)


def tiny_map(**changes) -> LemurEncoder:
    """Of numbers that are the same on every machine."""

    def numbers(*shape: int) -> np.ndarray:
        return (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 3) / 8

    layer = {"0.weight": numbers(4, 2), "0.bias": numbers(4), "1.weight": numbers(4), "1.bias": numbers(4)}
    arrays = {
        **{f"feature_map.layers.{name}": array for name, array in layer.items()},
        "sample_tokens": numbers(5, 2),
        "token_weights": numbers(5),
        "target_mean": np.array([0.5]),
        "projection": numbers(5, 3),
        "offset": numbers(3),
        "query_map": numbers(4, 3),
        "radius": np.array([2.0]),
        **changes,
    }
    config = {"dim": 2, "num_features": 4, "kind": "trained", "hidden_dims": [], "activation": "gelu"}
    return LemurEncoder.from_arrays(formats.learned_map(arrays, config), config, {}, Options())


def test_a_map_has_one_name_for_ever(monkeypatch):
    """Tables that were made with lemur_ann 0.1 keep this name of their map."""
    tiny = tiny_map()
    assert tiny.fingerprint == "413437b5fcba1c25"
    assert tiny_map(radius=np.array([2.5])).fingerprint != tiny.fingerprint
    learned = tiny.arrays()
    monkeypatch.setattr(tiny, "arrays", lambda: {**learned, "feature_map.scale": np.ones(1), "a_later_array": np.ones(3)})
    assert tiny.fingerprint == "413437b5fcba1c25"


def test_queries_are_encoded_without_torch(encoder, tmp_path):
    encoder, _, queries = encoder
    encoder.save(tmp_path / "map.safetensors")
    np.save(tmp_path / "query.npy", queries[0])
    program = """
import sys, numpy as np
from lemur_ann import LemurEncoder
np.save("found.npy", LemurEncoder.load("map.safetensors").encode_queries(np.load("query.npy")))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-I", "-c", program], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), encoder.encode_queries(queries[0]))


def test_fit(make_matrices):
    documents, queries = make_matrices(200), make_matrices(60)
    options = {"num_features": 64, "epochs": 1, "rank": 15}
    encoder = LemurEncoder.fit(documents, queries, **options, num_threads=1)
    index = LemurIndex(**options).fit(documents, queries, num_threads=1)
    np.testing.assert_array_equal(encoder.encode_documents(documents), index.encoder.encode_documents(documents))
    assert repr(encoder) == "<LemurEncoder of tokens of dim 16 to vectors of dim 16>"
    with pytest.raises(TypeError, match="no_such_option"):
        LemurEncoder.fit(documents, queries, no_such_option=1)


def test_bad_tokens(encoder):
    encoder, _, _ = encoder
    with pytest.raises(ValueError, match="dim 8.*dim 16"):
        encoder.encode_documents([np.ones((2, 8), np.float32)])
    with pytest.raises(ValueError, match="dim 8.*dim 16"):
        encoder.encode_queries(np.ones((2, 8), np.float32))


def test_files_that_are_something_else(encoder, tmp_path):
    encoder, _, _ = encoder
    path = tmp_path / "map.safetensors"
    with pytest.raises(FileNotFoundError):
        LemurEncoder.load(path)
    path.write_bytes(b"something else altogether")
    with pytest.raises(CorruptIndex):
        LemurEncoder.load(path)
    write_arrays(path, {"a": np.zeros(3)})
    with pytest.raises(CorruptIndex, match="is not an encoder of this format"):
        LemurEncoder.load(path)
    encoder.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptIndex):
        LemurEncoder.load(path)
    arrays = dict(map_arrays_of(whole, path))
    del arrays["projection"]
    described = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    write_arrays(path, arrays, described)
    with pytest.raises(CorruptIndex, match="projection"):
        LemurEncoder.load(path)


def test_many_threads_save_and_load_one_file(encoder, tmp_path):
    encoder, faults = encoder[0], []
    path = tmp_path / "map.safetensors"
    encoder.save(path)

    def repeated(call):
        try:
            for _ in range(20):
                call()
        except Exception as error:
            faults.append(repr(error))

    def read():
        assert LemurEncoder.load(path).fingerprint == encoder.fingerprint

    calls = [lambda: encoder.save(path)] * 3 + [read]
    threads = [threading.Thread(target=repeated, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert [file.name for file in tmp_path.iterdir()] == ["map.safetensors"]


def test_what_is_there_stays_where_a_map_cannot_be_written(encoder, tmp_path, monkeypatch):
    path = tmp_path / "map.safetensors"
    path.write_bytes(b"before")

    def no_room(descriptor):
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patch:
        patch.setattr("lemur_ann.arrays.os.fsync", no_room)
        with pytest.raises(OSError, match="no room"):
            encoder[0].save(path)
    assert path.read_bytes() == b"before"
    with pytest.raises(OSError):  # noqa: PT011 (which one is the system's choice)
        encoder[0].save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["map.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_that_lies_ready_is_not_followed(encoder, tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("x")
    fixed = uuid.UUID(int=0)
    monkeypatch.setattr("lemur_ann.arrays.uuid.uuid4", lambda: fixed)  # as if the name could be guessed
    ready = tmp_path / f".map.{fixed.hex[:12]}"
    ready.symlink_to("precious")
    with pytest.raises(FileExistsError):
        encoder[0].save(tmp_path / "map")
    assert (tmp_path / "precious").read_text() == "x"
    assert ready.is_symlink(), "it is not ours to delete"


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_map_is_saved_where_a_link_leads(encoder, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "map").symlink_to(tmp_path / "there" / "map")
    encoder[0].save(tmp_path / "map")
    assert (tmp_path / "map").is_symlink()
    assert LemurEncoder.load(tmp_path / "there" / "map").fingerprint == encoder[0].fingerprint


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_map_is_saved_into_a_pipe(encoder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    encoder[0].save(tmp_path / "pipe")
    reader.join()
    assert LemurEncoder.from_bytes(got[0]).fingerprint == encoder[0].fingerprint
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("what", ["pipe", "socket", "folder", "device", "link to a pipe"])
def test_only_files_are_read_as_maps(tmp_path, what):
    path = tmp_path / "map"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))  # the name of a socket is a short one
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    with pytest.raises(CorruptIndex, match="is no file"):
        LemurEncoder.load(path)


def map_arrays_of(whole, path):
    path.write_bytes(whole)
    return {name: np.array(array) for name, array in map_arrays(path).items()}


def same_hits(one, other, queries):
    how = {"k": 5, "num_candidates": 20, "ef_search": 40}
    for a, b in zip(one.search(queries, **how), other.search(queries, **how), strict=True):
        assert a == b


def test_a_given_map_indexes_documents_as_the_one_that_learned_it(small_index):
    learned, documents, queries = small_index(rank=31)
    given = LemurIndex().fit(documents, ids=learned.ids(), encoder=learned.encoder)
    assert given.options.rank == 31
    assert given.options.num_features == learned.options.num_features
    np.testing.assert_array_equal(given.encoder.encode_queries(queries), learned.encoder.encode_queries(queries))
    same_hits(given, learned, queries)
    before = dict(learned.encoder.training["seconds"])
    LemurIndex(candidates="exact").fit(documents, encoder=learned.encoder)
    assert learned.encoder.training["seconds"] == before  # the map is copied


def test_an_index_on_disk_may_begin_with_a_map_and_no_documents(small_index, tmp_path):
    learned, documents, queries = small_index(rank=31)
    path = tmp_path / "map.safetensors"
    learned.encoder.save(path)
    with LemurIndex.open(tmp_path / "index") as index:
        index.fit(encoder=LemurEncoder.load(path))
        assert index.is_fitted
        assert index.dim == learned.dim
        assert len(index.search(queries[0])) == 0
        with pytest.raises(ValueError, match="dim 7"):
            index.add([np.ones((3, 7), np.float32)])
        with pytest.raises(ValueError, match="dim"):
            index.search(np.ones((3, 7), np.float32))
    with LemurIndex.open(tmp_path / "index") as index:
        ids = learned.ids().to_pylist()
        index.add(documents[:150], ids=ids[:150])
        index.add(documents[150:], ids=ids[150:])
        same_hits(index, learned, queries)
    same_hits(LemurIndex.load(tmp_path / "index"), learned, queries)


def test_refit_takes_a_map_too(small_index):
    learned, documents, queries = small_index(rank=31)
    other = LemurIndex(num_features=32, epochs=0, rank=7).fit(documents, queries, ids=learned.ids())
    other.add(documents[:5], ids=[*"abcde"])
    other.delete([*"abcde"])
    other.refit(encoder=learned.encoder)
    assert other.options.rank == 31
    same_hits(other, learned, queries)


def test_what_a_given_map_refuses(small_index):
    index, documents, queries = small_index(rank=31)
    with pytest.raises(TypeError, match="one of them"):
        LemurIndex().fit(documents, queries, encoder=index.encoder)
    with pytest.raises(TypeError, match="must be a LemurEncoder, got str"):
        LemurIndex().fit(documents, encoder="map.safetensors")
    with pytest.raises(ValueError, match="dim"):
        LemurIndex().fit([np.ones((3, 7), np.float32)], encoder=index.encoder)
    odd = LemurIndex().add([np.ones((3, 7), np.float32)])
    with pytest.raises(ValueError, match=r"encoder takes tokens of dim \d+, documents have dim 7"):
        odd.fit(encoder=index.encoder)
    assert not odd.is_fitted
    with pytest.raises(TypeError, match="no queries, resume or options"):
        index.refit(queries, encoder=index.encoder)
    with pytest.raises(TypeError, match="no queries, resume or options"):
        index.refit(encoder=index.encoder, rank=15)
