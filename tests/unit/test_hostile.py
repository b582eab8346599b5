"""Folders and files as a stranger might send them, signed anew: refused as such, or taken without harm.

tests/durability/fuzz.py tries many more of the kind; what stands here once went wrong, or is one of its siblings.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import hnswlib
import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save

import lemur_ann
from lemur_ann import CorruptIndex, IndexLocked, LemurEncoder, LemurIndex, _core, storage
from lemur_ann.candidates.hnswlib_file import HEADER
from lemur_ann.candidates.kinds import LIBRARIES
from lemur_ann.documents.arrow_files import open_arrow
from lemur_ann.saved import seal

TUNED = {"target_recall": 0.9, "k": 5, "num_candidates": 20, "ef_search": 30, "recall": 0.9, "num_queries": 20}
TUNED["recall_interval"] = [0.8, 1.0]
SETTINGS = {"num_features": 32, "rank": 15, "epochs": 0, "num_sample_tokens": 100, "M": 6}
pytestmark = pytest.mark.skipif(os.name == "nt", reason="makes links and pipes")


@pytest.fixture(scope="module")
def documents():
    random = np.random.default_rng(0)
    return [random.normal(size=(4, 16)).astype(np.float32) for _ in range(2700)]


@pytest.fixture(scope="module")
def original(documents, tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "index"
    LemurIndex(**SETTINGS).fit(documents[:1500], [d[:4] for d in documents[:30]], num_threads=1).save(path)
    return path


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "index")


def manifest_of(path):
    return json.loads((path / "manifest.json").read_text())


def sign(path, manifest):
    """As whoever makes a folder can: with the checksums of what is there."""
    for name in manifest["files"]:
        if (path / name).is_file():
            manifest["files"][name] = storage.describe(path / name)
    manifest.pop("manifest_sha256", None)
    manifest["manifest_sha256"] = storage._digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def refused(path, match=None):
    with pytest.raises(CorruptIndex, match=match):
        LemurIndex.load(path)
    with pytest.raises(CorruptIndex, match=match):
        LemurIndex.open(path)
    with pytest.raises(CorruptIndex, match=match):
        LemurIndex.open(path, read_only=True)


def peak_memory_limited(gigabytes):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return size + int(gigabytes * 10**9)


# Names


@pytest.mark.parametrize("role", ["tokens", "documents"])
@pytest.mark.parametrize(
    "name", ["../private/x.arrow", "/dev/zero", "", ".", "..", "manifest.json", "pipe", "no-such-file", 3, None]
)
def test_a_segment_uses_files_of_the_index_only(folder, role, name):
    os.mkfifo(folder / "pipe")
    manifest = manifest_of(folder)
    manifest["segments"][0][role] = name
    sign(folder, manifest)
    refused(folder, "among its files")


@pytest.mark.parametrize(
    "name", ["../x.arrow", "pipe", "tokens-٣٣٣٣٣٣.arrow", "tokens-000001.arrow:x", "TOKENS-000001.arrow", "writer.lock"]
)
def test_no_other_file_is_one_of_an_index(folder, name):
    manifest = manifest_of(folder)
    manifest["files"][name] = {"size_bytes": 0, "sha256": ""}
    manifest["segments"][0]["tokens"] = name
    sign(folder, manifest)
    refused(folder, "outside the index")


@pytest.mark.parametrize("role", ["learned", "deleted", "links", "vectors"])
def test_every_other_role_too(folder, role):
    manifest = manifest_of(folder)
    if role == "links":
        manifest["structure"]["files"][role] = "../elsewhere"
    elif role == "vectors":
        manifest["vectors"] = [{"file": "../elsewhere", "num_rows": 0}]
    else:
        manifest[role] = "../elsewhere"
    sign(folder, manifest)
    refused(folder, "among its files")


@pytest.mark.parametrize("what", ["pipe", "link", "folder", "device"])
def test_a_file_is_a_file(folder, what):
    manifest = manifest_of(folder)
    name = manifest["segments"][0]["documents"]
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    if what == "pipe":
        os.mkfifo(folder / name)
    elif what == "folder":
        (folder / name).mkdir()
    elif what == "link":
        (folder / "elsewhere").write_bytes(data)
        (folder / name).symlink_to("elsewhere")
    else:
        (folder / name).symlink_to("/dev/zero")
    refused(folder, "is no file" if what in ("pipe", "folder") else "is a link")


@pytest.mark.parametrize("what", ["pipe", "link"])
def test_the_manifest_is_a_file_too(folder, what):
    (folder / "manifest.json").rename(folder / "other")
    os.mkfifo(folder / "manifest.json") if what == "pipe" else (folder / "manifest.json").symlink_to("other")
    refused(folder)


@pytest.mark.parametrize("what", ["pipe", "link", "folder"])
def test_a_lock_is_a_file_too(folder, what):
    outside = folder.parent / "outside"
    outside.write_text("not ours")
    lock = folder / "writer.lock"
    lock.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(lock)
    elif what == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(outside)
    assert len(LemurIndex.load(folder)) == 1500
    with suppress(OSError, ValueError, IndexLocked), LemurIndex.open(folder) as index:
        index.delete([0])
    assert outside.read_text() == "not ours"


def test_a_manifest_that_becomes_a_pipe(folder):
    with LemurIndex.open(folder) as index:
        (folder / "manifest.json").rename(folder / "other")
        os.mkfifo(folder / "manifest.json")
        with pytest.raises(IndexLocked, match="changed by something else"):
            index.delete([0])
        with pytest.raises(CorruptIndex):
            index.refresh()
        assert len(index) == 1500


@pytest.fixture
def cached(folder, tmp_path):
    """An index as the cache of a hub has it: the files are links to blobs, by their hashes."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"blob-{i}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{i}")
    return snapshot


def test_the_cache_of_a_hub(cached, documents, tmp_path):
    refused(cached, "cp -rL.*trusted=True")
    before = {file.name: file.read_bytes() for file in (cached.parent.parent / "blobs").iterdir()}
    index = LemurIndex.load(cached, trusted=True)
    assert index.search(documents[0], k=1).ids[0] == 0
    index.save(tmp_path / "own")
    assert not any(file.is_symlink() for file in (tmp_path / "own").iterdir())
    assert len(LemurIndex.load(tmp_path / "own")) == 1500
    assert len(pickle.loads(pickle.dumps(LemurIndex.load(cached, trusted=True)))) == 1500
    with LemurIndex.open(cached, read_only=True, trusted=True) as reader, LemurIndex.open(cached, trusted=True) as writer:
        writer.delete([0])
        writer.add(documents[1500:1510])
        assert reader.refresh()
        assert len(reader) == 1509
    with LemurIndex.open(cached, trusted=True) as index:
        index.compact(num_threads=1)
        assert len(index) == 1509
    assert before == {file.name: file.read_bytes() for file in (cached.parent.parent / "blobs").iterdir()}
    shutil.copytree(cached, tmp_path / "copy")  # follows links, as `cp -rL` does
    assert len(LemurIndex.load(tmp_path / "copy")) == 1509


@pytest.mark.parametrize("what", ["pipe", "folder", "device", "nothing", "circle"])
@pytest.mark.parametrize("name", ["manifest.json", "documents"])
def test_links_lead_to_files(cached, tmp_path, what, name):
    link = cached / (name if name == "manifest.json" else next(cached.glob("documents-*")).name)
    target = tmp_path / "target"
    if what == "pipe":
        os.mkfifo(target)
    elif what == "folder":
        target.mkdir()
    elif what == "device":
        target = Path("/dev/zero")
    elif what == "circle":
        target = link
    link.unlink()
    link.symlink_to(target)
    for read in (LemurIndex.load, LemurIndex.open):
        with pytest.raises(
            (CorruptIndex, FileExistsError) if name == "manifest.json" and read == LemurIndex.open else CorruptIndex
        ):
            read(cached, trusted=True)


def test_a_file_is_used_once(folder):
    manifest = manifest_of(folder)
    manifest["segments"] *= 2
    manifest["num_rows"] = manifest["num_documents"] = 3000
    sign(folder, manifest)
    refused(folder, "twice")


def test_saving_over_a_folder_deletes_what_is_no_file_of_an_index_never(folder, tmp_path):
    (folder / "thesis.txt").write_text("years of work")
    manifest = manifest_of(folder)
    manifest["files"]["thesis.txt"] = {}
    sign(folder, manifest)
    with pytest.raises(FileExistsError, match="thesis"):
        LemurIndex().save(folder)
    assert (folder / "thesis.txt").read_text() == "years of work"


# The manifest


@pytest.mark.parametrize("key", ["num_rows", "num_documents", "version", "num_tokens", "dim"])
@pytest.mark.parametrize("value", [-1, 2**63, 1.5, "1", True, [], float("nan")])
def test_numbers_of_the_manifest(folder, key, value):
    manifest = manifest_of(folder)
    manifest[key] = value
    sign(folder, manifest)
    refused(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m["segments"][0].update(num_rows=1499),
        lambda m: m["structure"].update(num_rows=2**40),
        lambda m: m["structure"].update(num_rows=-1500),
        lambda m: m["training"].update(num_rows=1501),
        lambda m: m["training"].update(seconds=[]),
        lambda m: m["feature_map"].update(num_features=2**40),
        lambda m: m["feature_map"].update(activation="exec"),
        lambda m: m.update(tuned=[{"k": 2**60}]),
        lambda m: m.update(tuned=[TUNED | {"recall_interval": [0, 1, 1]}]),
        lambda m: m.update(tuned=[TUNED | {"num_candidates": 2**60}]),
        lambda m: m.update(tuned=[TUNED | {"recall": float("nan")}]),
        lambda m: m["files"].update({"tokens-000009.arrow": 3}),
        lambda m: m.update(format_version=-1),
        lambda m: m.update(num_rows=1501),
        lambda m: m.update(num_documents=3),
    ],
)
def test_what_does_not_fit_the_files(folder, damage):
    manifest = manifest_of(folder)
    damage(manifest)
    sign_numbers(folder, manifest)
    refused(folder)


def sign_numbers(folder, manifest):
    manifest.pop("manifest_sha256", None)
    manifest["manifest_sha256"] = storage._digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_manifest_that_is_deep_long_or_says_things_twice(folder):
    manifest = manifest_of(folder)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text('{"version": 7, ' + text[1:])
    refused(folder, "twice")
    node = manifest["options"]["candidates_options"] = {}
    for _ in range(300):
        node["x"] = node = {}
    sign_numbers(folder, manifest)
    refused(folder, "deeper")
    with (folder / "manifest.json").open("wb") as file:
        file.truncate(2**33)  # nothing of which is on the disk, or in memory
    refused(folder, "more than")


# Options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("M", value) for value in (1, 513, 2**31, 2**60)),
        *(("ef_construction", value) for value in (0, 10_001, 2**60)),
        *(("num_features", value) for value in (1, 65_537, 2**60)),
        *(("rank", value) for value in (0, 65_537, 2**60)),
        *(("compact_at", value) for value in (float("nan"), float("inf"), 0, -1, 2)),
        *(("ridge", value) for value in (float("nan"), float("inf"), -1, 10**400)),
        *(("device", value) for value in ("meta", "cuda:", "cuda:1234", "cpu\n", "cuda:x", "xpu")),
        ("num_candidates", 2**62),
        ("ef_search", 2**62),
        ("seed", 2**63),
        ("epochs", 2**60),
        ("candidates", "os"),
    ],
)
def test_options_out_of_any_sense(folder, name, value):
    with pytest.raises(ValueError, match=name):
        LemurIndex(**{name: value})
    manifest = manifest_of(folder)
    manifest["options"][name] = value
    sign(folder, manifest)
    refused(folder, "options")


def test_a_device_that_is_not_here(folder):
    manifest = manifest_of(folder)
    manifest["options"]["device"] = "cuda:99"
    sign(folder, manifest)
    for read in (LemurIndex.load, LemurIndex.open, lambda path: LemurIndex.load(path, device="cuda:99")):
        with pytest.raises(ValueError, match="pass device='cpu'") as raised:
            read(folder)
        assert not isinstance(raised.value, CorruptIndex), "nothing is wrong with the folder"
    assert len(LemurIndex.load(folder, device="cpu")) == 1500
    LemurIndex.load(folder, device="cpu").encoder.save(folder.parent / "map")
    for call in (LemurEncoder.load, lambda path, **where: LemurEncoder.from_bytes(path.read_bytes(), **where)):
        with pytest.raises(ValueError, match="pass device='cpu'") as raised:
            call(folder.parent / "map", device="cuda:99")
        assert not isinstance(raised.value, CorruptIndex)


# The graph


def graph_of(folder):
    """hnswlib's file alone, as the first formats had it, in the place of the links."""
    manifest = manifest_of(folder)
    vectors = LemurIndex.load(folder).snapshot.learned.candidates.take(np.arange(1500))
    graph = hnswlib.Index("l2", 16)
    graph.init_index(1500, M=SETTINGS["M"], random_seed=0)
    graph.add_items(vectors, num_threads=1)
    path = folder / "graph.hnsw"
    graph.save_index(str(path))
    manifest["files"][path.name] = None
    del manifest["files"][manifest["structure"]["files"]["links"]]
    manifest["structure"]["files"] = {"graph": path.name}
    data = bytearray(path.read_bytes())
    return manifest, path, data, np.frombuffer(bytes(data[: HEADER.itemsize]), HEADER)[0]


def loads_or_refuses(folder, documents):
    """All that works with a graph, within 2 GB more than there are."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (peak_memory_limited(2), before[1]))
    try:
        index = LemurIndex.load(folder)
        index.search(documents[0], k=3, num_threads=1)
        index.to_arrow().read_all()
        index.add(documents[1500:], num_threads=1)
        index.check()
        index.delete(list(range(1100)))
        index.compact(num_threads=1)
        index.search(documents[0], k=3, num_threads=1)
    except CorruptIndex:
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    return True


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("mult", value) for value in (float("nan"), float("inf"), 0.0, -1.0, 1e7)),
        *(("ef", value) for value in (0, 10_001, 2**60)),
        *(("room", value) for value in (0, 1499, 2**31, 2**63)),
        *(("count", value) for value in (0, 1499, 1501, 2**40, 2**64 - 1)),
        *(("M", value) for value in (0, 1, 7, 2**60)),
        *(("degree", value) for value in (0, 13, 2**60)),
        *(("node_bytes", value) for value in (0, 8, 2**60)),
        *(("label_offset", value) for value in (0, 2**60)),
        *(("vector_offset", value) for value in (0, 2**60)),
        *(("highest_level", value) for value in (-1, 0, 2**31 - 1)),
        *(("first_node", value) for value in (-1, 1500, 2**31 - 1)),
    ],
)
def test_header_of_the_graph(folder, documents, field, value):
    manifest, path, data, _ = graph_of(folder)
    kind, place = HEADER.fields[field][:2]
    raw = np.float64(value).tobytes() if field == "mult" else (value % 2**64).to_bytes(8, "little")
    data[place : place + kind.itemsize] = raw[: kind.itemsize]
    path.write_bytes(data)
    sign(folder, manifest)
    assert not loads_or_refuses(folder, documents)


@pytest.mark.parametrize("value", [2**31 - 1, 2**31, 2**63, 1500, 0])
def test_labels(folder, documents, value):
    manifest, path, data, header = graph_of(folder)
    place = HEADER.itemsize + 1499 * int(header["node_bytes"]) + int(header["label_offset"])
    data[place : place + 8] = value.to_bytes(8, "little")
    path.write_bytes(data)
    sign(folder, manifest)
    assert not loads_or_refuses(folder, documents)


@pytest.mark.parametrize("value", [-2, -(2**31), 2700, 2**31 - 1])
@pytest.mark.parametrize("name", ["links", "entries"])
def test_links_that_lead_nowhere(folder, documents, name, value):
    manifest = manifest_of(folder)
    path = folder / manifest["structure"]["files"]["links"]
    arrays = {key: array.copy() for key, array in load_file(path).items()}
    arrays[name][...] = value
    path.write_bytes(save(arrays))
    sign(folder, manifest)
    assert not loads_or_refuses(folder, documents)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scales", lambda array: array * np.nan),
        ("scales", lambda array: array * np.inf),
        ("links", lambda array: array[:, :0]),
        ("links", lambda array: array.astype(np.int64)),
        ("codes", lambda array: array[:, :16]),
        ("entries", lambda array: np.tile(array, 100)),
    ],
)
def test_arrays_of_the_links(folder, documents, name, change):
    manifest = manifest_of(folder)
    path = folder / manifest["structure"]["files"]["links"]
    arrays = dict(load_file(path))
    with np.errstate(invalid="ignore"):
        arrays[name] = np.ascontiguousarray(change(arrays[name]))
    path.write_bytes(save(arrays))
    sign(folder, manifest)
    assert not loads_or_refuses(folder, documents)


def test_a_graph_of_deleted_nodes_takes_more(folder, documents):
    """As formats 1 and 2 marked them."""
    manifest, path, data, header = graph_of(folder)
    for node in range(1500):
        data[HEADER.itemsize + node * int(header["node_bytes"]) + 2] = 1
    path.write_bytes(data)
    sign(folder, manifest)
    assert loads_or_refuses(folder, documents)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_vectors_of_the_graph(folder, documents, value):
    manifest, path, data, header = graph_of(folder)
    place = HEADER.itemsize + 7 * int(header["node_bytes"]) + int(header["vector_offset"])
    data[place : place + 4] = np.float32(value).tobytes()
    path.write_bytes(data)
    sign(folder, manifest)
    assert not loads_or_refuses(folder, documents)


# The map


@pytest.mark.parametrize(
    "name", ["radius", "target_mean", "projection", "offset", "query_map", "sample_tokens", "token_weights"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_of_the_map(folder, tmp_path, name, value):
    LemurIndex.load(folder).encoder.save(tmp_path / "map")
    manifest = manifest_of(folder)
    for path in (folder / manifest["learned"], tmp_path / "map"):
        metadata = lemur_ann.encoder.read_metadata(path) or None
        arrays = {key: array.copy() for key, array in load_file(path).items()}
        arrays[name].reshape(-1)[-1] = value
        path.write_bytes(save(arrays, metadata))
    sign(folder, manifest)
    refused(folder, name)
    with pytest.raises(CorruptIndex, match=name):
        LemurEncoder.load(tmp_path / "map")
    with pytest.raises(CorruptIndex, match=name):
        LemurEncoder.from_bytes((tmp_path / "map").read_bytes())


def with_header(path, change):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["offset"].update(data_offsets=h["query_map"]["data_offsets"], shape=h["query_map"]["shape"]),
        lambda h: h["offset"].update(data_offsets=[0, 2**62]),
        lambda h: h["offset"].update(data_offsets=[-60, 0]),
        lambda h: h["offset"].update(shape=[2**32, 2**32]),
        lambda h: h["offset"].update(shape=[0, 2**62]),
        lambda h: h["offset"].update(shape=[-15]),
        lambda h: h["offset"].update(dtype="F64"),
        lambda h: h["offset"].update(dtype="BF16"),
        lambda h: h.pop("radius"),
        lambda h: h["__metadata__"].update(encoder="[" * 100_000),
        lambda h: h["__metadata__"].update(encoder="{}"),
    ],
)
def test_header_of_a_map(folder, tmp_path, change):
    file = tmp_path / "map"
    LemurIndex.load(folder).encoder.save(file)
    with_header(file, change)
    with pytest.raises(CorruptIndex):
        LemurEncoder.load(file)
    with pytest.raises(CorruptIndex):
        LemurEncoder.from_bytes(file.read_bytes())


@pytest.mark.parametrize("data", [b"", b"1234", b"\xff" * 8, (2**62).to_bytes(8, "little") + b"{}", b"\2" + bytes(7) + b"[]"])
def test_bytes_that_are_no_map(tmp_path, data):
    (tmp_path / "map").write_bytes(data)
    with pytest.raises(CorruptIndex):
        LemurEncoder.from_bytes(data)
    with pytest.raises(CorruptIndex):
        LemurEncoder.load(tmp_path / "map")


# Arrow files


def test_a_compressed_file_takes_no_memory(folder, tmp_path):
    """100 kB that stand for a gigabyte."""
    manifest = manifest_of(folder)
    name = manifest["segments"][0]["tokens"]
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2**27, np.float32)), 16)
    offsets = pa.array(np.linspace(0, len(zeros), 1501).astype(np.int64))
    table = pa.table({"tokens": pa.LargeListArray.from_arrays(offsets, zeros)})
    for codec in ("zstd", "lz4"):
        with pa.ipc.new_file(folder / name, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
            writer.write_table(table)
        sign(folder, manifest)
        refused(folder, "compressed")


def test_columns_of_more_elements_than_bytes(folder):
    """A list of nulls, or of empty structs, takes no bytes: 2^31 of them fit into a small file."""
    rows, length = 1500, 2**31 - 1
    manifest = manifest_of(folder)
    name = manifest["segments"][0]["documents"]
    offsets = pa.py_buffer(np.linspace(0, length, rows + 1).astype(np.int64))
    nothing = pa.StructArray.from_buffers(pa.struct([]), length, [None])
    column = pa.Array.from_buffers(pa.large_list(nothing.type), rows, [None, offsets], children=[nothing])
    table = pa.table({"id": pa.array(range(rows)), "metadata": pa.StructArray.from_arrays([column], ["x"])})
    with pa.ipc.new_file(folder / name, table.schema) as writer:
        writer.write_table(table)
    sign(folder, manifest)
    refused(folder, "more elements")


@pytest.mark.parametrize("number", ["rows", "length", "nulls"])
@pytest.mark.parametrize("value", [-1, -(2**31), -(2**63), 2**62, 2**63 - 1])
def test_numbers_of_a_batch(tmp_path, number, value):
    """Arrow's own reader takes rows below 0, and counts on from there."""
    path = tmp_path / "file"
    table = pa.table({"id": pa.array([7, None, 9] * 41)})  # 123 rows and 41 nulls
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    data = path.read_bytes()
    node = data.index(struct.pack("<qq", 123, 41))  # the one column's
    if number == "rows":
        places = [at for at in range(0, node, 4) if data[at : at + 8] == struct.pack("<q", 123)]
        assert len(places) == 1
        place = places[0]
    else:
        place = node + 8 * (number == "nulls")
    path.write_bytes(data[:place] + struct.pack("<q", value) + data[place + 8 :])
    with pytest.raises(ValueError, match="less than none"):
        open_arrow(path)


def test_every_table_that_arrow_writes_opens(tmp_path):
    table = pa.table(
        {
            "a": pa.array(["x", None, "y"]).dictionary_encode(),
            "b": pa.array([[1], [], None]),
            "c": pa.array([{"x": 1}] * 3),
            "d": pa.nulls(3),
            "e": pa.array(["x" * 30] * 3, pa.string_view()),
        }
    )
    for count in (0, 1, 3):
        with pa.ipc.new_file(tmp_path / "file", table.schema) as writer:
            writer.write_table(table[:count], max_chunksize=1)
        assert open_arrow(tmp_path / "file").read_all().equals(table[:count])


# Copies of documents


@pytest.fixture
def copied(documents, tmp_path):
    """An index in which every fifth document is there three times."""
    some = documents[:1000] + documents[:1000:5] * 2
    LemurIndex(**SETTINGS).fit(some, [d[:4] for d in documents[:30]], num_threads=1).save(tmp_path / "copied")
    return tmp_path / "copied"


def with_links(folder, change):
    manifest = manifest_of(folder)
    path = folder / manifest["structure"]["files"]["links"]
    found = {name: array.copy() for name, array in load_file(path).items()}
    assert (found["next_equal"] >= 0).sum() > 300
    change(found)
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in found.items()}))
    sign(folder, manifest)


def following(change):
    """A change of rows that follow each other."""

    def changed(found):
        rows = found["next_equal"]
        change(rows, np.flatnonzero(rows >= 0))

    return changed


@pytest.mark.parametrize(
    "change",
    [
        following(lambda rows, listed: rows.__setitem__(listed[0], listed[0])),  # itself
        following(lambda rows, listed: rows.__setitem__(rows[listed[0]], listed[0])),  # a circle
        following(lambda rows, listed: rows.__setitem__(slice(None), np.arange(len(rows))[::-1])),
        following(lambda rows, listed: rows.__setitem__(listed[0], rows[listed[1]])),  # two before one
        following(lambda rows, listed: rows.__setitem__(listed[0], len(rows))),
        following(lambda rows, listed: rows.__setitem__(listed[0], 2**31 - 1)),
        lambda found: found.update(next_equal=found["next_equal"][:-1]),
        lambda found: found.update(next_equal=found["next_equal"].astype(np.int64)),
        lambda found: found.update(next_equal=found["next_equal"][:, None]),
    ],
)
def test_rows_that_follow_as_copies(copied, change):
    with_links(copied, change)
    refused(copied)


@pytest.mark.parametrize(
    "change",
    [
        following(lambda rows, listed: rows.__setitem__(listed[0], -2)),
        following(lambda rows, listed: rows.__setitem__(slice(None), -1)),
        following(lambda rows, listed: rows.__setitem__(slice(0, -1), np.arange(1, len(rows)))),  # all are one document
        following(lambda rows, listed: rows.__setitem__(slice(0, -1), np.where(np.arange(len(rows) - 1) % 2, -1, 1))),
        lambda found: found.pop("next_equal"),
        lambda found: found["scales"].__setitem__(slice(None), 3e38),
    ],
)
def test_copies_of_a_stranger(copied, documents, change):
    """They load or not; searches and changes stay within their memory."""
    with_links(copied, change)
    loads_or_refuses(copied, documents)


def test_vectors_of_codes_are_finite(copied):
    with_links(copied, lambda found: found["scales"].__setitem__(slice(None), 3e38))
    index = LemurIndex.load(copied)
    index.delete(list(range(700)))
    with pytest.raises(CorruptIndex, match="not finite"):
        index.compact(num_threads=1)
    assert len(index) == 700


@pytest.mark.parametrize(
    ("of", "name", "value"),
    [
        *(("feature_map", "homogeneous", value) for value in (None, 1, "true", [])),
        *(("training", "nearness", value) for value in (None, [], 3, {"low": None}, {"low": "x"}, {"low": True})),
        *(("training", "num_unfamiliar", value) for value in (-1, 2**48, 1.5, None, True, "1")),
    ],
)
def test_what_newer_maps_say(folder, of, name, value):
    manifest = manifest_of(folder)
    manifest[of][name] = value
    sign(folder, manifest)
    refused(folder)


# Graphs of other libraries


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch, tmp_path, documents):
    """The folder of an index of a library, whose graph this user made."""
    pytest.importorskip(LIBRARIES[request.param][0])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    index = LemurIndex(candidates=request.param, **SETTINGS)
    index.fit(documents[:1500], [d[:4] for d in documents[:30]], num_threads=1).save(tmp_path / "index")
    return tmp_path / "index", index.search(documents[:20], k=5)


def test_whoever_wrote_a_graph_reads_it(library, documents, caplog):
    folder, hits = library
    with caplog.at_level(logging.WARNING, "lemur_ann"):
        assert LemurIndex.load(folder).search(documents[:20], k=5) == hits
        with LemurIndex.open(folder) as index:
            index.delete([1])
        with LemurIndex.open(folder) as index:
            index.delete([2])
    assert not caplog.records
    assert oct(seal.key_path().stat().st_mode & 0o777) == "0o600"


def test_a_graph_of_others_is_made_anew(library, documents, caplog, monkeypatch, tmp_path):
    folder, hits = library
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    with caplog.at_level(logging.WARNING, "lemur_ann"):
        index = LemurIndex.load(folder)
    assert "trusted=True" in caplog.text
    assert f"{folder.resolve()}/graph-" in caplog.text
    assert np.mean([a.ids[0] == b.ids[0] for a, b in zip(index.search(documents[:20], k=5), hits, strict=True)]) > 0.9
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lemur_ann"):
        assert LemurIndex.load(folder, trusted=True).search(documents[:20], k=5) == hits
        assert LemurIndex.open(folder, read_only=True, trusted=True).search(documents[:20], k=5) == hits
    assert not caplog.records


def test_a_changed_graph_is_not_read(library, documents, caplog):
    folder, _ = library
    manifest = manifest_of(folder)
    path = folder / manifest["structure"]["files"]["graph"]
    data = bytearray(path.read_bytes())
    data[len(data) // 3 :: 4] = b"\xff" * len(data[len(data) // 3 :: 4])
    path.write_bytes(data)
    sign(folder, manifest)
    with caplog.at_level(logging.WARNING, "lemur_ann"):
        index = LemurIndex.load(folder)
    assert "made anew" in caplog.text
    assert index.search(documents[0], k=1).ids[0] == 0


@pytest.mark.parametrize("own", [{"factory": "HNSW2000000000"}, {"alpha": float("nan")}, {"dtype": ["f32"]}, {"x": {}}])
def test_what_a_stranger_gives_to_a_library(library, own):
    folder, _ = library
    manifest = manifest_of(folder)
    manifest["options"]["candidates_options"] = own
    sign(folder, manifest)
    refused(folder, "trusted=True")


# The core


@pytest.mark.parametrize("num_threads", [0, -1, -(2**31), -(2**62)])
def test_the_core_needs_a_thread(num_threads):
    tokens, offsets = np.ones((8, 4), np.float32), np.array([0, 3, 8])
    documents = _core.Documents([(tokens, offsets)])
    columns = _core.Columns(tokens, 1)
    codes, scales = _core.int8_codes(tokens, 1)
    links, entries = np.zeros((8, 1), np.int32), np.zeros(1, np.int32)
    graph = _core.CodedGraph(4, codes, scales, links, entries, codes[:0], scales[:0])
    layer = _core.Layer(np.ones((16, 4), np.float32), None, None, None, "gelu", False, 1.0)
    encoder = _core.QueryEncoder([layer], np.ones((16, 8), np.float32))
    calls = [
        lambda n: _core.scores(tokens, offsets, documents, n),
        lambda n: _core.token_maxima(tokens, documents, n),
        lambda n: _core.candidate_scores(tokens, offsets, documents, np.arange(2), np.arange(3), n),
        lambda n: _core.rerank(tokens, offsets, documents, np.tile(np.arange(2), 2), np.array([0, 2, 4]), 1, n),
        lambda n: _core.token_codes(tokens, n),
        lambda n: _core.int8_codes(tokens, n),
        lambda n: _core.Columns(tokens, n),
        lambda n: _core.products(np.ones((2, 8), np.float32), columns, n),
        lambda n: graph.search(tokens, None, 0, 2, 4, n),
        lambda n: encoder.encode(tokens, offsets, n),
        lambda n: _core.better_links(4, codes, scales, links, entries, 2, 4, 1.2, n),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="num_threads"):
            call(num_threads)
        call(2**62)  # as many as there is work for


def test_sizes_of_the_core():
    tokens, offsets = np.ones((400, 4), np.float32), np.arange(401)
    documents = _core.Documents([(tokens, offsets)])
    candidates, bounds = np.tile(np.arange(400), 4), np.arange(5) * 400
    queries = np.ones((4, 4), np.float32)
    for k in (2**62, 2**63 - 1, 2**61):
        with pytest.raises((ValueError, MemoryError)):
            _core.rerank(queries, np.arange(5), documents, candidates, bounds, k, 1)
    for k in (0, -1, -(2**63)):
        with pytest.raises(ValueError, match="k must be"):
            _core.rerank(queries, np.arange(5), documents, candidates, bounds, k, 1)
    assert len(_core.top_k(np.ones(3, np.float32), 2**63 - 1)) == 3
    assert len(_core.top_k(np.ones(3, np.float32), -(2**63))) == 0
    for dim in (0, -1, 131_073, 2**62, 2**63 - 1):
        with pytest.raises(ValueError, match="components"):
            _core.int8_stride(dim)
    for wrong in (np.ones((3, 0), np.float32), np.empty((0, 2**30), np.float32), np.empty((2**60, 0), np.float32)):
        for call in (_core.first_bad_row, lambda x: _core.int8_codes(x, 1), lambda x: _core.token_codes(x, 1)):
            with pytest.raises(ValueError, match="components"):
                call(wrong)
    with pytest.raises(ValueError, match="components"):
        _core.token_codes(np.ones((1, 131_073), np.float32), 1)


def test_the_graph_of_the_core():
    codes, scales = np.ones((1024, 64), np.int8), np.ones(1024, np.float32)
    links = np.tile(np.arange(4, dtype=np.int32), (1024, 1))
    entries = np.zeros(1, np.int32)
    for degree in (0, -1, 2**15 + 1, 2**62, 2**63 - 1):
        with pytest.raises(ValueError, match="out of range"):
            _core.better_links(16, codes, scales, links, entries, degree, 10, 1.2, 1)
    with pytest.raises(ValueError, match="out of range"):
        _core.better_links(16, codes, scales, links[:1000], entries, 3, 10, 1.2, 1)
    with pytest.raises(ValueError, match="more rows than codes"):
        _core.better_links(16, codes[:1000], scales[:1000], links, entries, 4, 10, 1.2, 1)
    for alpha in (float("nan"), 0.5, -1):
        with pytest.raises(ValueError, match="out of range"):
            _core.better_links(16, codes, scales, links, entries, 4, 10, alpha, 1)
    for link in (-2, -(2**31), 1024, 2**31 - 1):
        wrong = links.copy()
        wrong[5] = link
        with pytest.raises(ValueError, match="not a node"):
            _core.better_links(16, codes, scales, wrong, entries, 4, 10, 1.2, 1)
        with pytest.raises(ValueError, match="not a node"):
            _core.better_links(16, codes, scales, links, np.full(1, link, np.int32), 4, 2, 1.2, 1)
    for scale in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="not finite"):
            _core.CodedGraph(16, codes, scales * np.float32(scale), links, entries, codes[:0], scales[:0])
        with pytest.raises(ValueError, match="not finite"):
            _core.CodedGraph(16, codes[:0], scales[:0], links[:0], entries[:0], codes, scales * np.float32(scale))
    long = _core.better_links(16, codes, scales * np.float32(1e38), links, entries, 4, 10, 1.2, 1)  # of infinite distances
    assert long.min() >= -1
    assert long.max() < 1024
    graph = _core.CodedGraph(16, codes, scales, links, entries, codes[:3], scales[:3])
    queries, mask = np.ones((2, 16), np.float32), np.zeros(1027, np.bool_)
    for count in (-1, -(2**62), 1028, 2**62):
        with pytest.raises(ValueError, match="num_excluded"):
            graph.search(queries, mask, count, 5, 10, 1)
    assert graph.search(queries, None, 0, 2**62, 2**62, 1).shape == (2, 1027)
    assert graph.search(queries, None, 0, -5, -5, 1).shape == (2, 0)
    mask[1:] = True
    assert graph.search(queries, mask, 1026, 2**62, 2**62, 1).tolist() == [[0], [0]]
    with pytest.raises(ValueError, match="not the number"):
        graph.search(queries, mask, 3, 5, 10, 1)


def test_layers_of_the_core():
    one = np.ones(16, np.float32)
    weight, query_map = np.ones((16, 4), np.float32), np.ones((16, 8), np.float32)
    for norms in ((one, None), (None, one)):
        layer = _core.Layer(weight, None, *norms, "gelu", False, 1.0)
        with pytest.raises(ValueError, match="both"):
            _core.QueryEncoder([layer], query_map)
    for norms in ((one[:3], one), (one, one[:3]), (np.ones(17, np.float32), one)):
        with pytest.raises(ValueError, match="width"):
            _core.QueryEncoder([_core.Layer(weight, None, *norms, "gelu", False, 1.0)], query_map)
    for wrong in (np.ones((0, 4), np.float32), np.ones((16, 0), np.float32)):
        with pytest.raises(ValueError, match="rows and columns"):
            _core.QueryEncoder([_core.Layer(wrong, None, None, None, "gelu", False, 1.0)], query_map)
    layer = _core.Layer(weight, None, None, None, "gelu", False, 1.0)
    for layers, matrix in (([], query_map), ([layer], query_map[:3]), ([layer], query_map[:, :0]), ([layer, layer], query_map)):
        with pytest.raises(ValueError, match=r"layer|query_map"):
            _core.QueryEncoder(layers, matrix)
    for array in (None, query_map.astype(np.float64), query_map.T, query_map[::2], one, query_map.tolist()):
        with pytest.raises(TypeError):
            _core.QueryEncoder([layer], array)
    encoder = _core.QueryEncoder([layer], query_map)
    for offsets in ([0, 9], [-1, 2], [2, 1], [0, 2**62], [2**62, 2**63 - 1]):
        with pytest.raises(ValueError, match="ascend"):
            encoder.encode(np.ones((2, 4), np.float32), np.array(offsets), 1)
    with pytest.raises(ValueError, match="offsets"):
        encoder.encode(np.ones((2, 4), np.float32), np.empty(0, np.int64), 1)


def test_scores_that_are_no_numbers_leave_a_document_out():
    """Tokens are checked when they are added; what a file holds is not read until it is scored."""
    tokens = np.ones((3000, 4), np.float32)
    tokens[::3] = np.nan
    tokens[1::3] = np.inf
    offsets = np.arange(3001)
    query = np.array([[1, -1, 1, -1]], np.float32)
    candidates, bounds = np.arange(3000), np.array([0, 3000])
    for codes in ([], [_core.token_codes(tokens, 1)]):
        documents = _core.Documents([(tokens, offsets)], codes)
        rows, scores, counts = _core.rerank(query, np.array([0, 1]), documents, candidates, bounds, 3000, 1)
        assert np.isfinite(scores[0, : counts[0]]).all()
        assert set(rows[0, : counts[0]].tolist()) <= set(range(2, 3000, 3))


def test_importing_the_library_stays_light():
    """`from lemur_ann import storage` is for those who sign folders, and costs others nothing."""
    program = "import sys, lemur_ann; print(sorted({'torch', 'hnswlib', 'faiss', 'svs', 'usearch'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tempfile.gettempdir(), capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "[]"
    assert "storage" not in lemur_ann.__all__
