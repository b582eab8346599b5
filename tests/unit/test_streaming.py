"""Documents that come in a stream: the same index as from memory, in bounded memory, and nothing left behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from lemur_ann import LemurIndex
from lemur_ann.documents import inputs as inputs_module
from lemur_ann.documents import sources
from lemur_ann.documents import tokens as tokens_module

OPTIONS = {"num_features": 64, "epochs": 0, "rank": 15, "num_sample_tokens": 256, "num_candidates": 40, "ef_search": None}
STREAMS = ["reader", "small batches", "foreign", "dataset", "scanner", "filtered", "file", "folder", "arrow file", "generator"]

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such limits and signals")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several reads, batches and blocks in a few hundred documents."""
    monkeypatch.setattr(sources, "VALUES_PER_READ", 16 * 100)
    monkeypatch.setattr(inputs_module, "BYTES_PER_BATCH", 2**12)
    monkeypatch.setattr(tokens_module, "VALUES_PER_BATCH", 16 * 300)
    monkeypatch.setattr(tokens_module, "BYTES_TO_MERGE", 2**11)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "temporary"
    path.mkdir()
    return path


def table(matrices, prefix="doc-"):
    flat = np.concatenate(matrices)
    offsets = np.concatenate([[0], np.cumsum([len(m) for m in matrices])])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    columns = {"id": [f"{prefix}{i}" for i in range(len(matrices))], "title": [f"title {i}" for i in range(len(matrices))]}
    return pa.table({**columns, "tokens": pa.LargeListArray.from_arrays(pa.array(offsets), vectors)})


class Foreign:
    """What Polars, DuckDB and others hand over."""

    def __init__(self, data):
        self._data = data

    def __arrow_c_stream__(self, requested_schema=None):
        return self._data.__arrow_c_stream__(requested_schema)


def stream(kind, data, matrices, path):
    """The documents of ``data`` as a stream, and the ids to pass with it."""
    path.mkdir()
    if kind == "generator":
        return (matrix for matrix in matrices), data.column("id")
    if kind == "reader":
        return data.to_reader(max_chunksize=37), None
    if kind == "small batches":
        return data.to_reader(max_chunksize=1), None
    if kind == "foreign":
        return Foreign(data), None
    if kind == "folder":
        for i in range(3):
            part = data[i * len(data) // 3 : (i + 1) * len(data) // 3]
            pq.write_table(part, path / f"part-{i}.parquet", row_group_size=[5, 40, 1000][i])
        return str(path), None
    if kind == "arrow file":
        with pa.OSFile(str(path / "docs.arrow"), "wb") as sink, pa.ipc.new_file(sink, data.schema) as writer:
            writer.write_table(data)
        return path / "docs.arrow", None
    pq.write_table(data, path / "docs.parquet")
    if kind == "file":
        return path / "docs.parquet", None
    dataset = ds.dataset(path / "docs.parquet")
    return {"dataset": dataset, "scanner": dataset.scanner(batch_size=9), "filtered": dataset.filter(ds.field("id") != "")}[
        kind
    ], None


def assert_same(one, other):
    assert len(one) == len(other)
    assert one.snapshot.store.dtype == other.snapshot.store.dtype
    assert one.snapshot.ids.column.array.equals(other.snapshot.ids.column.array)
    for i in range(len(one.snapshot.store)):
        np.testing.assert_array_equal(one.snapshot.store[i], other.snapshot.store[i])


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_stream_makes_the_index_that_memory_makes(make_matrices, tmp_path, folder, kind, dtype):
    first, more, queries = make_matrices(150, dtype=dtype), make_matrices(60, dtype=dtype), make_matrices(30)
    from_memory = LemurIndex(**OPTIONS).fit(table(first), queries=queries, num_threads=1)
    from_memory.add(table(more, "more-"), num_threads=1)  # hnswlib on several threads builds now this graph, now that
    documents, ids = stream(kind, table(first), first, tmp_path / "first")
    streamed = LemurIndex(**OPTIONS).fit(documents, queries=queries, ids=ids, directory=folder, num_threads=1)
    documents, ids = stream(kind, table(more, "more-"), more, tmp_path / "more")
    streamed.add(documents, ids=ids, directory=folder, num_threads=1)
    assert_same(from_memory, streamed)
    assert streamed.search(queries, k=5) == from_memory.search(queries, k=5)
    if kind != "generator":
        names = ["doc-0", "more-59", "doc-149"]
        assert streamed.metadata(names).equals(from_memory.metadata(names))
    assert not list(folder.iterdir())

    streamed.save(tmp_path / "streamed")
    from_memory.save(tmp_path / "from_memory")
    tokens = [next((tmp_path / name).glob("tokens-*.arrow")).read_bytes() for name in ("streamed", "from_memory")]
    assert tokens[0] == tokens[1]
    loaded = LemurIndex.load(tmp_path / "streamed")
    assert_same(loaded, streamed)
    assert loaded.search(queries, k=5) == streamed.search(queries, k=5)


def test_blocks_of_whole_documents(make_matrices, folder):
    matrices = make_matrices(150)
    data = table(matrices)
    index = LemurIndex().add(data.to_reader(max_chunksize=1), directory=folder)
    sizes = [len(tokens) for tokens, _, _ in index.snapshot.store.chunks]
    assert max(sizes) <= 300
    assert min(sizes[:-1]) > 300 - 12
    long = [*matrices[:3], np.ones((1000, 16), np.float32), *matrices[3:6]]
    index = LemurIndex().add(iter(long), directory=folder)
    assert [len(offsets) - 1 for _, offsets, _ in index.snapshot.store.chunks] == [3, 1, 3]
    for i, matrix in enumerate(long):
        np.testing.assert_array_equal(index.snapshot.store[i], matrix)


def test_queries_from_a_path(make_matrices, tmp_path):
    documents, queries = make_matrices(80), make_matrices(30)
    pq.write_table(table(queries), tmp_path / "queries.parquet")
    vectors = [
        LemurIndex(**OPTIONS, candidates="exact").fit(documents, queries=given).snapshot.learned.candidates.vectors
        for given in (queries, str(tmp_path / "queries.parquet"), iter(queries), ds.dataset(tmp_path / "queries.parquet"))
    ]
    for other in vectors[1:]:
        np.testing.assert_array_equal(vectors[0], other)


def test_only_the_needed_columns_are_read(make_matrices, tmp_path):
    pq.write_table(table(make_matrices(20)), tmp_path / "d.parquet")
    dataset = sources.open_path(tmp_path / "d.parquet")
    assert {tuple(b.schema.names) for b in sources.record_batches(dataset, ["tokens"])} == {("tokens",)}
    assert {tuple(b.schema.names) for b in sources.record_batches(dataset)} == {("id", "title", "tokens")}


def test_reads_do_not_grow_with_the_row_group(make_matrices, tmp_path):
    pq.write_table(table(make_matrices(500)), tmp_path / "d.parquet")
    assert pq.ParquetFile(tmp_path / "d.parquet").num_row_groups == 1
    sizes = [len(b) for b in sources.record_batches(sources.open_path(tmp_path / "d.parquet"))]
    assert sum(sizes) == 500
    assert max(sizes) <= 100 // 5  # 100 tokens a read, about 6.5 tokens a document


def test_folders_whose_files_differ(make_matrices, tmp_path, folder):
    matrices = make_matrices(6)
    data = table(matrices)
    (tmp_path / "files").mkdir()
    pq.write_table(data[:3].append_column("year", pa.array([1, 2, 3], pa.int32())), tmp_path / "files" / "a.parquet")
    pq.write_table(data[3:].drop_columns(["title"]), tmp_path / "files" / "b.parquet")
    index = LemurIndex().add(tmp_path / "files", directory=folder)
    assert index.metadata(["doc-5", "doc-1"]).to_pydict() == {
        "id": ["doc-5", "doc-1"],
        "title": [None, "title 1"],
        "year": [None, 2],
    }
    pq.write_table(data[:1].drop_columns(["id"]), tmp_path / "files" / "c.parquet")
    with pytest.raises(TypeError, match="documents from row 6 on have no ids, those before string ids"):
        LemurIndex().add(tmp_path / "files", directory=folder)
    (tmp_path / "files" / "c.parquet").write_text("not Parquet")
    with pytest.raises(ValueError, match=r"c.parquet cannot be read as parquet"):
        LemurIndex().add(tmp_path / "files", directory=folder)


def test_datasets_keep_their_schema_and_partitions(make_matrices, tmp_path):
    data = table(make_matrices(4)).append_column("year", pa.array([1, 2, 3, 4], pa.int32()))
    (tmp_path / "parts" / "kind=x").mkdir(parents=True)
    (tmp_path / "parts" / "kind=y").mkdir()
    pq.write_table(data[:2], tmp_path / "parts" / "kind=x" / "a.parquet")
    pq.write_table(data[2:], tmp_path / "parts" / "kind=y" / "a.parquet")
    schema = ds.dataset(tmp_path / "parts", partitioning="hive").schema
    schema = schema.set(schema.get_field_index("year"), pa.field("year", pa.int64()))
    dataset = ds.dataset(tmp_path / "parts", schema=schema, partitioning="hive")
    found = LemurIndex().add(dataset).metadata([f"doc-{i}" for i in range(4)])
    assert found.column("kind").to_pylist() == ["x", "x", "y", "y"]
    assert found.column("year").to_pylist() == [1, 2, 3, 4]
    assert found.schema.field("year").type == pa.int64()


def test_ids_and_metadata_do_not_keep_the_tokens_in_memory(make_matrices, tmp_path):
    data = table(make_matrices(300, low=20, high=20))
    with pa.OSFile(str(tmp_path / "s"), "wb") as sink, pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data, max_chunksize=50)
    size_bytes = data.column("tokens").nbytes
    del data
    before = pa.total_allocated_bytes()
    with pa.OSFile(str(tmp_path / "s")) as source:
        index = LemurIndex().add(pa.ipc.open_stream(source))
    gc.collect()
    assert pa.total_allocated_bytes() - before < size_bytes / 10
    assert index.metadata("doc-299").column("title").to_pylist() == ["title 299"]


# Token dtypes


def test_the_first_of_a_stream_decide_the_dtype(make_matrices, folder):
    half, single = make_matrices(20, dtype=np.float16), make_matrices(20)
    assert LemurIndex().add(iter(single + half), directory=folder).snapshot.store.dtype == np.float32
    with pytest.raises(ValueError, match="documents from row 20 on are float32, those before are float16.*float32 holds both"):
        LemurIndex().add(iter(half + single), directory=folder)
    index = LemurIndex().add(iter(half), directory=folder)
    index.add(iter(single + half), directory=folder)  # the index decides
    assert index.snapshot.store.dtype == np.float16
    np.testing.assert_array_equal(index.snapshot.store[20], single[0].astype(np.float16))
    with pytest.raises(ValueError, match="document 20 exceeds the range of float16"):
        index.add(iter([*single, np.full((1, 16), 1e6, np.float32)]), directory=folder)
    assert len(index) == 60


def test_files_of_two_dtypes(make_matrices, tmp_path):
    pq.write_table(table(make_matrices(20, dtype=np.float16)), tmp_path / "a.parquet")
    pq.write_table(table(make_matrices(20), "more-"), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="documents from row 20 on are float32, those before are float16"):
        LemurIndex().add(tmp_path)
    (tmp_path / "b.parquet").rename(tmp_path / "0.parquet")
    assert LemurIndex().add(tmp_path).snapshot.store.dtype == np.float32


# Errors


def breaking_off(error):
    """A reader whose source fails after a few good batches."""

    def wrap(matrices):
        data = table(matrices, "new-")

        def batches():
            yield from data.to_batches(max_chunksize=7)
            raise error

        return pa.RecordBatchReader.from_batches(data.schema, batches())

    return wrap


def ending_in(last):
    return lambda matrices: iter([*matrices, last])


def joined(*parts):
    return pa.concat_tables(parts).to_reader(max_chunksize=9)


BROKEN = [
    (breaking_off(KeyboardInterrupt()), KeyboardInterrupt, None),
    (breaking_off(RuntimeError("the source is gone")), RuntimeError, "the source is gone"),
    (breaking_off(ConnectionResetError(104, "reset")), ConnectionResetError, "reset"),
    (ending_in(np.full((1, 16), np.nan)), ValueError, "document 60 .*has a NaN"),
    (ending_in(np.empty((0, 16), np.float32)), ValueError, "document 60 .*has no tokens"),
    (ending_in(np.ones((2, 8), np.float32)), ValueError, r"documents\[60\] has dim 8, those before have dim 16"),
    (ending_in(np.ones((2, 16), np.int8)), TypeError, r"documents\[60\] must be float32 or float16, got int8"),
    (lambda m: joined(table(m, "new-"), table(m[:1], "new-")), ValueError, "id 'new-0' is repeated in row 60"),
    (lambda m: table(m).drop_columns(["tokens"]).to_reader(), ValueError, "must have a column 'tokens'"),
]


@pytest.mark.parametrize(("source", "error", "message"), BROKEN)
@pytest.mark.parametrize("fitted", [False, True])
def test_a_stream_that_breaks_off_changes_nothing(small_index, make_matrices, folder, fitted, source, error, message):
    matrices, query = make_matrices(60), make_matrices(1)[0]
    documents = source(matrices)
    ids = None if hasattr(documents, "schema") else [f"new-{i}" for i in range(61)]
    index = small_index()[0] if fitted else LemurIndex(**OPTIONS)
    rows, before = len(index), index.search(query, k=200)
    with pytest.raises(error, match=message):
        (index.add if fitted else index.fit)(documents, ids=ids, directory=folder)
    assert not list(folder.iterdir())
    assert (len(index), index.is_fitted, index.snapshot.metadata) == (rows, fitted, None)
    assert len(index.snapshot.store) == rows
    assert index.search(query, k=200) == before
    index.add(iter(matrices), ids=[f"new-{i}" for i in range(60)], directory=folder)  # and it goes on working
    assert len(index) == rows + 60
    assert "new-59" in index


def test_an_id_of_the_index_or_metadata_of_another_type(small_index, make_matrices, folder):
    index, *_ = small_index()
    index.add(table(make_matrices(1), "a-"))
    for data, error, message in [
        (table(make_matrices(20)), ValueError, "id 'doc-0' in row 0 names a document of the index already"),
        (table(make_matrices(20)).drop_columns(["id"]), ValueError, "documents have no ids, and the index holds string ids"),
        (table(make_matrices(20)).set_column(0, "id", pa.array(range(20))), TypeError, "ids are integers, index has"),
        (
            table(make_matrices(20), "b-").set_column(1, "title", pa.array(range(20))),
            TypeError,
            "metadata column 'title' is int64, index has it as large_string",
        ),
    ]:
        # the first batch is refused: what comes after it is not asked for
        batches = iter([data[:5].to_batches()[0], AssertionError("read on")])
        reader = pa.RecordBatchReader.from_batches(data.schema, batches)
        with pytest.raises(error, match=message):
            index.add(reader, directory=folder)
        assert len(index) == 201


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ids": ["a", "b"]}, ValueError, "expected one id for each document, got 2 ids and at least 5 documents"),
        ({"ids": list("abcdef")}, ValueError, "expected one id for each of 5 documents, got 6 ids"),
        ({"offsets": [0, 1]}, TypeError, "offsets= goes with one flat matrix, got documents of type generator"),
        ({"directory": "no/such/folder"}, FileNotFoundError, "directory must be a folder, and 'no/such/folder' is not"),
        ({"directory": __file__}, NotADirectoryError, "directory must be a folder"),
        ({"directory": 7}, TypeError, "directory must be a path, got int"),
    ],
)
def test_bad_arguments(make_matrices, arguments, error, message):
    index = LemurIndex()
    with pytest.raises(error, match=message):
        index.add((m for m in make_matrices(5)), **arguments)
    assert len(index) == 0


def test_bad_paths(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("x")
    for path, error, message in [
        ("missing", FileNotFoundError, "no Parquet file or folder of Parquet files at .*missing"),
        ("empty", ValueError, "is a folder without Parquet files"),
        ("text", ValueError, "cannot be read as parquet"),
    ]:
        for documents in (tmp_path / path, str(tmp_path / path)):
            with pytest.raises(error, match=message):
                LemurIndex().fit(documents)
            with pytest.raises(error, match=message):
                LemurIndex().fit([np.ones((1, 2), np.float32)], queries=documents)


def test_streams_of_nothing(make_matrices, folder):
    with pytest.raises(ValueError, match="fit needs at least one document"):
        LemurIndex().fit(iter(()), directory=folder)
    index = LemurIndex().add(iter(()), directory=folder).add(table(make_matrices(3))[:0].to_reader(), directory=folder)
    assert len(index) == 0
    assert index.dim is None
    index.add(table(make_matrices(2))).add(iter(()), directory=folder)
    assert index.metadata("doc-1").column("title").to_pylist() == ["title 1"]


# Where the tokens are


def maps_of(folder):
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


@linux
def test_the_tokens_are_in_the_folder_until_the_index_is_gone(make_matrices, folder):
    descriptors = len(os.listdir("/proc/self/fd"))
    index = LemurIndex(**OPTIONS).fit(iter(make_matrices(100)), queries=make_matrices(20), directory=folder)
    for _ in range(5):
        index.add(iter(make_matrices(100)), directory=folder)
    assert len(maps_of(folder)) == 6
    assert not list(folder.iterdir())
    assert len(os.listdir("/proc/self/fd")) == descriptors  # a thousand additions need no thousand descriptors
    del index
    gc.collect()
    assert not maps_of(folder)


def test_where_no_descriptor_has_a_path(make_matrices, folder, monkeypatch):
    """As on Windows: Python's mmap takes over."""
    matrices = make_matrices(100)

    def fail(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(pa, "memory_map", fail)
    index = LemurIndex().add(iter(matrices), directory=folder)
    for i, matrix in enumerate(matrices):
        np.testing.assert_array_equal(index.snapshot.store[i], matrix)


def test_later_additions_do_not_copy_the_file_into_memory(make_matrices, folder):
    index = LemurIndex().add(iter(make_matrices(400)), directory=folder)
    before = [tokens.__array_interface__["data"][0] for tokens, _, _ in index.snapshot.store.chunks]
    assert len(before) > 3
    for _ in range(20):
        index.add(make_matrices(10))
    after = [tokens.__array_interface__["data"][0] for tokens, _, _ in index.snapshot.store.chunks]
    assert after[: len(before) - 1] == before[:-1]


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, "-I", "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=500
    )


@posix
def test_a_killed_process_leaves_no_file(folder):
    program = """
import os, signal, sys
import numpy as np
import lemur_ann, lemur_ann.documents.tokens
lemur_ann.documents.tokens.VALUES_PER_BATCH = 2**12

def documents():
    for i in range(1000):
        yield np.ones((20, 16), np.float32)
    print(len(os.listdir(f"/proc/{os.getpid()}/fd")) if sys.platform == "linux" else "", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

lemur_ann.LemurIndex().add(documents(), directory=sys.argv[1])
"""
    assert run(program, folder).returncode == -9
    assert not list(folder.iterdir())


@posix
def test_a_full_disk(folder):
    """A limit on file sizes stands in for it: the write fails in the same place."""
    program = """
import os, resource, sys
import numpy as np
import lemur_ann, lemur_ann.documents.tokens
lemur_ann.documents.tokens.VALUES_PER_BATCH = 2**12
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
index = lemur_ann.LemurIndex().add([np.ones((2, 16), np.float32)])
try:
    index.add((np.ones((20, 16), np.float32) for _ in range(1000)), directory=sys.argv[1])
except OSError as error:
    print(error)
print(len(index), len(index.add([np.ones((2, 16), np.float32)])), os.listdir(sys.argv[1]))
"""
    result = run(program, folder)
    assert result.returncode == 0, result.stderr
    message, state = result.stdout.splitlines()
    assert f"writing streamed tokens to a temporary file in {folder}; directory= names another folder" in message
    assert state == "1 2 []"


PEAK_GROWTH_MB = 120  # whatever the corpus: a block of 64 MiB, a read and what decoding it takes, and the little index itself

SOURCES = r"""
import gc, re, sys, threading, time
import numpy as np
import pyarrow as pa
import pyarrow.dataset, pyarrow.parquet
from pathlib import Path
from lemur_ann import LemurIndex

schema = pa.schema([("tokens", pa.large_list(pa.list_(pa.float32(), 128)))])

def documents():
    matrix = np.random.default_rng(0).normal(size=(1000, 128)).astype(np.float32)
    for i in range(600):  # 307 MB
        yield matrix + np.float32(i)

def batches():
    for matrix in documents():
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), 128)
        yield pa.record_batch([pa.LargeListArray.from_arrays(pa.array([0, 1000]), vectors)], schema=schema)
"""

WRITE_ONE_ROW_GROUP = r"""
with pyarrow.parquet.ParquetWriter(sys.argv[1], schema, use_dictionary=False, compression="none") as writer:
    writer.write_table(pa.Table.from_batches(batches(), schema), row_group_size=1000)
"""

MEASURE = r"""
def anonymous_mb():
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000

kind, folder = sys.argv[1], Path(sys.argv[2])
options = dict(num_features=64, epochs=0, rank=15, num_sample_tokens=256, num_training_documents=64)
random = np.random.default_rng(1)
queries = [random.normal(size=(8, 128)).astype(np.float32) for _ in range(50)]
LemurIndex(**options).fit([query[:4] for query in queries], queries)  # loads what has to be loaded
source = {
    "generator": documents,
    "pooled": documents,
    "reader": lambda: pa.RecordBatchReader.from_batches(schema, batches()),
    "path": lambda: folder / "d.parquet",
}[kind]()
gc.collect()
pa.default_memory_pool().release_unused()
peak = base = anonymous_mb()
done = False

def sample():
    global peak
    while not done:
        peak = max(peak, anonymous_mb())
        time.sleep(0.002)

thread = threading.Thread(target=sample)
thread.start()
try:
    # in runs: the matrix of all distances, which each thread has, would be of 8 MB
    options |= dict(pool_factor=2, pooling="sequential") if kind == "pooled" else {}
    threads = 1 if kind == "pooled" else None
    index = LemurIndex(**options).fit(source, queries, directory=folder, num_threads=threads)
    print("fit", peak - base)
    index.add(documents(), directory=folder, num_threads=threads)
    print("add", peak - base)
    index.save(folder / "index")
    print("save", peak - base)
finally:
    done = True
    thread.join()
assert index.num_tokens <= (600_000 if kind == "pooled" else 1_200_000)
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generator", "pooled", "reader", "path"])
def test_peak_memory_does_not_grow_with_the_corpus(tmp_path, kind):
    try:
        if kind == "path":
            assert run(SOURCES + WRITE_ONE_ROW_GROUP, tmp_path / "d.parquet").returncode == 0
        result = run(SOURCES + MEASURE, kind, tmp_path)
        assert result.returncode == 0, result.stderr
        growth_mb = {name: float(value) for name, value in map(str.split, result.stdout.splitlines())}
        assert set(growth_mb) == {"fit", "add", "save"}
        groups_mb = 5 if kind == "pooled" else 0  # two bytes for each of 1.2 million original tokens, and once more in save
        assert max(growth_mb.values()) < PEAK_GROWTH_MB + groups_mb, growth_mb
    finally:
        for file in [*tmp_path.rglob("*.parquet"), *tmp_path.rglob("tokens-*.arrow")]:
            file.unlink()


def test_a_relative_folder_is_that_of_the_call(folder, make_matrices, monkeypatch):
    monkeypatch.chdir(folder.parent)
    index = LemurIndex(**OPTIONS, compact_at=None).fit(
        iter(make_matrices(300)), queries=make_matrices(20), directory="temporary"
    )
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    index.delete(list(range(150)))
    assert len(index.compact()) == 150
    assert len(index.add(iter(make_matrices(3)))) == 153
    index.refit(memory_limit="700MB")
    with pytest.raises(FileNotFoundError, match="directory must be a folder, and 'temporary' is not"):
        index.add(iter(make_matrices(3)), directory="temporary")
