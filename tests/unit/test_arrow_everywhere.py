"""Relations, frames and datasets of other libraries as documents and queries, and hits as tables that they read."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lemur_ann import Hits, LemurIndex, TextIndex, validate
from lemur_ann.documents import sources
from lemur_ann.documents.inputs import read_documents, read_queries
from lemur_ann.documents.sources import is_stream, record_batches

DIM = 8
COUNT = 150  # more than two reads
OPTIONS = {"num_features": 64, "epochs": 0, "rank": 15, "num_sample_tokens": 256, "candidates": "exact"}
IDS = [f"doc-{i}" for i in range(COUNT)]
TITLES = [f"title {i}" for i in range(COUNT)]
YEARS = list(range(1900, 1900 + COUNT))


@pytest.fixture
def duckdb():
    return pytest.importorskip("duckdb", reason="pip install duckdb")


@pytest.fixture
def pl():
    return pytest.importorskip("polars", reason="pip install polars")


@pytest.fixture
def pd():
    return pytest.importorskip("pandas", reason="pip install pandas")


@pytest.fixture
def hf():
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def lance():
    return pytest.importorskip("lance", reason="pip install pylance")


@pytest.fixture
def matrices(make_matrices):
    return make_matrices(COUNT, dim=DIM)


@pytest.fixture
def pages(make_matrices):
    """All of four tokens."""
    return make_matrices(COUNT, dim=DIM, low=4, high=4)


def flat_lists(matrices, list_type=pa.LargeListArray, dtype=np.float32):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(matrices).astype(dtype).reshape(-1)), DIM)
    offsets = np.cumsum([0, *map(len, matrices)])
    return list_type.from_arrays(pa.array(offsets.astype(np.int64 if list_type is pa.LargeListArray else np.int32)), vectors)


def nested(matrices, kind):
    return pa.array([matrix.tolist() for matrix in matrices], kind)


LAYOUTS = {
    "large_list<fixed_size_list>": flat_lists,
    "list<fixed_size_list>": lambda m: flat_lists(m, pa.ListArray),
    "of float16": lambda m: flat_lists(m, dtype=np.float16),
    "of float64": lambda m: flat_lists(m, dtype=np.float64),
    "list<list>": lambda m: nested(m, pa.list_(pa.list_(pa.float32()))),
    "list<list> of float64": lambda m: nested(m, pa.list_(pa.list_(pa.float64()))),
    "large_list<large_list>": lambda m: nested(m, pa.large_list(pa.large_list(pa.float32()))),
    "fixed_size_list<fixed_size_list>": lambda m: nested(m, pa.list_(pa.list_(pa.float32(), DIM), 4)),
}


@pytest.fixture(params=LAYOUTS)
def layout(request, matrices, pages):
    """A table of one layout, and its matrices as the index should hold them."""
    expected = pages if request.param.startswith("fixed") else matrices
    if "float16" in request.param:
        expected = [matrix.astype(np.float16) for matrix in expected]
    return table(LAYOUTS[request.param](expected)), expected


def table(tokens, **columns):
    return pa.table({"id": IDS, "tokens": tokens, "year": YEARS, **columns})


def assert_same(source, matrices, ids=IDS, metadata=("year", YEARS)):
    """What ``source()`` gives makes the index and the queries that the plain list of matrices makes."""
    plain = LemurIndex(**OPTIONS).add(matrices, ids=ids)
    index = LemurIndex(**OPTIONS).add(source())
    assert index.ids().to_pylist() == list(ids)
    assert index.snapshot.store.dtype == plain.snapshot.store.dtype
    for i in range(len(plain)):
        np.testing.assert_array_equal(index.snapshot.store[i], plain.snapshot.store[i])
    if metadata:
        assert index.metadata(ids).column_names == ["id", metadata[0]]
        assert index.metadata(ids).column(metadata[0]).to_pylist() == list(metadata[1])
    found = index.search(source(), k=3)
    assert len(found) == len(matrices)
    assert found == plain.search(matrices, k=3)
    assert is_stream(source()) or isinstance(source(), pa.Table)


def assert_learns(source, matrices):
    """fit, upsert and add take it; the learned vectors are those of the plain list."""
    index = LemurIndex(**OPTIONS).fit(source(), queries=source(), num_threads=1)
    plain = LemurIndex(**OPTIONS).fit(matrices, queries=matrices, ids=IDS, num_threads=1)
    assert index.search(matrices[:20], k=5) == plain.search(matrices[:20], k=5)
    index.upsert(source())
    assert len(index) == COUNT
    assert index.search(matrices[:20], k=5, exact=True) == plain.search(matrices[:20], k=5, exact=True)
    with pytest.raises(ValueError, match="id 'doc-0' in row 0 names a document of the index already"):
        index.add(source())


def assert_texts(documents, word_encoder):
    """``documents`` have the columns id, text and year."""
    texts = TextIndex(word_encoder).add(documents)
    assert texts.search("title 77", k=1).ids.tolist() == ["doc-77"]
    assert texts.index.metadata(["doc-77"]).to_pylist() == [{"id": "doc-77", "text": "title 77", "year": 1977}]


def read_sizes(data):
    return [len(batch) for batch in record_batches(data)]


@pytest.mark.parametrize("of", [pa.ListArray, pa.ListViewArray])
def test_list_views_of_vectors(of):
    values = pa.array([3, 4, 1, 2, 5, 6], pa.float32())
    vectors = pa.ListViewArray.from_arrays([2, 0, 4], [2, 2, 2], values)
    column = of.from_arrays([1, 0], [2, 1], vectors) if of is pa.ListViewArray else of.from_arrays([0, 2, 3], vectors)
    (batch,) = read_documents(pa.table({"tokens": column}))
    assert batch.offsets.tolist() == [0, 2, 3]
    expected = [[3, 4], [5, 6], [1, 2]] if of is pa.ListViewArray else [[1, 2], [3, 4], [5, 6]]
    assert batch.tokens.tolist() == expected


# DuckDB


@pytest.fixture
def database(duckdb, tmp_path):
    with duckdb.connect(tmp_path / "d.duckdb") as connection:
        yield connection


def test_duckdb_arrow(database, layout):
    data, matrices = layout
    if data.schema.field("tokens").type.value_type.value_type == pa.float16():
        pytest.skip("DuckDB has no float16")
    database.register("data", data)
    assert_same(lambda: database.sql("SELECT * FROM data"), matrices)


@pytest.mark.parametrize("kind", [f"FLOAT[{DIM}][]", "FLOAT[][]", "DOUBLE[][]", f"FLOAT[{DIM}][4]"])
def test_duckdb_types(database, matrices, pages, kind):
    given = pages if kind.endswith("[4]") else matrices
    database.register("data", table(flat_lists(given)))
    database.execute(f"CREATE TABLE documents AS SELECT id, tokens::{kind} AS tokens, year FROM data")
    assert_same(lambda: database.table("documents"), given)
    assert_same(
        lambda: database.sql("FROM documents WHERE year < 1910 ORDER BY year"), given[:10], IDS[:10], ("year", YEARS[:10])
    )
    assert_same(lambda: pa.RecordBatchReader.from_stream(database.table("documents")), given)


def test_duckdb_learns_and_encodes(database, matrices, word_encoder):
    database.register("data", table(flat_lists(matrices), text=TITLES))
    database.execute("CREATE TABLE documents AS FROM data")
    assert_learns(lambda: database.sql("SELECT id, tokens FROM documents"), matrices)
    assert_texts(database.sql("SELECT id, text, year FROM documents"), word_encoder)


def test_duckdb_is_read_a_few_rows_at_a_time(database, matrices):
    database.register("data", table(flat_lists(matrices)))
    sizes = read_sizes(database.sql("FROM data"))
    assert sum(sizes) == COUNT
    assert max(sizes) <= sources.ROWS_PER_READ


# Polars


def test_polars_from_arrow(pl, layout):
    data, matrices = layout
    frame = pl.from_arrow(data)
    assert_same(lambda: frame, matrices)
    assert_same(lambda: frame.lazy(), matrices)
    assert_same(lambda: pl.concat([frame[:7], frame[7:]], rechunk=False), matrices)


def test_polars_types(pl, matrices, pages):
    def frame(values, kind):
        return pl.DataFrame({"id": IDS, "tokens": pl.Series(values, dtype=kind), "year": YEARS})

    lists = [matrix.tolist() for matrix in matrices]
    assert_same(lambda: frame(lists, pl.List(pl.List(pl.Float32))), matrices)
    assert_same(lambda: frame(lists, pl.List(pl.Array(pl.Float32, DIM))), matrices)
    assert_same(lambda: frame(np.stack(pages), pl.Array(pl.Float32, (4, DIM))), pages)
    assert_same(lambda: frame(np.stack(pages), pl.Array(pl.Float32, (4, DIM)))[3:9], pages[3:9], IDS[3:9], ("year", YEARS[3:9]))


def test_polars_categories_are_strings(pl, matrices):
    frame = pl.from_arrow(table(flat_lists(matrices)))
    kinds = pl.Series("kind", ["a", "b", None] * (COUNT // 3), dtype=pl.Categorical)
    frame = frame.drop("year").with_columns(kinds, pl.col("id").cast(pl.Categorical))
    assert_same(lambda: frame, matrices, metadata=("kind", kinds.to_list()))


def test_polars_learns_and_encodes(pl, matrices, word_encoder, tmp_path):
    frame = pl.from_arrow(table(flat_lists(matrices), text=TITLES))
    assert_learns(lambda: frame.select("id", "tokens"), matrices)
    assert_learns(lambda: frame.lazy().select("id", "tokens"), matrices)
    assert_texts(frame.select("id", "text", "year"), word_encoder)
    assert_texts(frame.lazy().select("id", "text", "year"), word_encoder)
    frame.write_parquet(tmp_path / "d.parquet")
    scanned = pl.scan_parquet(tmp_path / "d.parquet").select("id", "tokens", "year").filter(pl.col("year") >= 1920)
    assert_same(lambda: scanned, matrices[20:], IDS[20:], ("year", YEARS[20:]))


def test_a_lazy_frame_is_read_a_few_rows_at_a_time(pl, matrices, tmp_path):
    pq.write_table(table(flat_lists(matrices)), tmp_path / "d.parquet")
    sizes = read_sizes(pl.scan_parquet(tmp_path / "d.parquet"))
    assert sum(sizes) == COUNT
    assert max(sizes) <= sources.ROWS_PER_READ


# pandas


def test_pandas_from_arrow(pd, layout):
    data, matrices = layout
    assert_same(lambda: data.to_pandas(), matrices)
    assert_same(lambda: data.to_pandas(types_mapper=pd.ArrowDtype), matrices)


def pandas_frame(pd, tokens):
    return pd.DataFrame({"id": IDS, "tokens": tokens, "year": YEARS})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_pandas_matrices(pd, matrices, pages, dtype):
    for given in (matrices, pages):
        converted = [matrix.astype(dtype) for matrix in given]
        assert_same(lambda values=converted: pandas_frame(pd, values), converted)


def test_pandas_lists_and_tensors(pd, matrices):
    assert_same(lambda: pandas_frame(pd, [list(matrix) for matrix in matrices]), matrices)
    assert_same(lambda: pandas_frame(pd, [matrix.astype(np.float32).tolist() for matrix in matrices]), matrices)
    assert_same(lambda: pandas_frame(pd, [torch.from_numpy(matrix) for matrix in matrices]), matrices)


def test_pandas_tokens_alone(pd, matrices):
    assert_same(lambda: pd.DataFrame({"tokens": matrices}), matrices, range(COUNT), metadata=None)
    assert_same(lambda: pd.DataFrame({"tokens": [list(matrix) for matrix in matrices]}), matrices, range(COUNT), metadata=None)


def test_the_index_of_pandas_is_no_column_but_for_ids(pd, matrices):
    for tokens in (matrices, [list(matrix) for matrix in matrices]):
        frame = pandas_frame(pd, tokens)
        assert_same(lambda frame=frame: frame.set_index(pd.Index(TITLES, name="title")), matrices)
        assert_same(lambda frame=frame: frame[frame.year % 2 == 1], matrices[1::2], IDS[1::2], ("year", YEARS[1::2]))
        assert_same(lambda frame=frame: frame.set_index("id"), matrices, IDS)
        assert_same(lambda frame=frame: frame.set_index("id", drop=False), matrices, IDS)


def test_pandas_learns_and_encodes(pd, matrices, word_encoder):
    assert_learns(lambda: pandas_frame(pd, matrices).drop(columns="year"), matrices)
    assert_texts(pd.DataFrame({"id": IDS, "text": TITLES, "year": YEARS}, index=TITLES), word_encoder)


def test_pandas_matrices_are_converted_many_at_a_time(pd, matrices, monkeypatch):
    checks, real = [], validate.token_matrix

    def counted(*args, **how):
        checks.append(threading.get_ident())
        return real(*args, **how)

    monkeypatch.setattr(validate, "token_matrix", counted)
    batches = read_documents(pandas_frame(pd, matrices))
    assert sum(map(len, batches)) == COUNT
    own = [thread for thread in checks if thread == threading.get_ident()]  # another test's may be at work yet
    assert len(own) == 2 * len(batches) == 2 * -(-COUNT // sources.ROWS_PER_READ)


# Hugging Face datasets


def hf_dataset(hf, tokens, kind=None, **columns):
    data = {"id": IDS, "tokens": tokens, "year": YEARS, **columns}
    if kind is None:
        return hf.Dataset.from_dict(data)
    features = {"id": hf.Value("string"), "tokens": kind, "year": hf.Value("int64")}
    return hf.Dataset.from_dict(data, features=hf.Features(features))


def test_hf_from_arrow(hf, layout):
    data, matrices = layout
    assert_same(lambda: hf.Dataset(data), matrices)


def test_hf_features(hf, matrices, pages):
    single, half = hf.Value("float32"), hf.Value("float16")
    for kind in [
        hf.Sequence(hf.Sequence(single)),
        hf.List(hf.List(single)),
        hf.List(hf.List(single, length=DIM)),
        hf.LargeList(hf.List(single, length=DIM)),
        hf.Array2D((None, DIM), "float32"),
    ]:
        assert_same(lambda kind=kind: hf_dataset(hf, matrices, kind), matrices)
    assert_same(lambda: hf_dataset(hf, matrices, hf.List(hf.List(half))), [matrix.astype(np.float16) for matrix in matrices])
    assert_same(lambda: hf_dataset(hf, pages, hf.Array2D((4, DIM), "float32")), pages)
    assert_same(lambda: hf_dataset(hf, [matrix.tolist() for matrix in matrices]), matrices)  # features as it finds them


@pytest.mark.parametrize("name", ["numpy", "torch", "arrow", "pandas", "polars"])
def test_hf_formats(hf, matrices, name):
    if name in ("pandas", "polars"):
        pytest.importorskip(name, reason=f"pip install {name}")
    data = hf_dataset(hf, matrices)
    assert_same(lambda: data.with_format(name), matrices)
    assert_same(lambda: data.with_format(name, columns=["tokens", "id"]), matrices, metadata=None)
    assert LemurIndex().add(data.with_format(name, columns=["tokens", "id"])).metadata("doc-1").column_names == ["id"]
    everything = data.with_format(name, columns=["tokens"], output_all_columns=True)
    assert_same(lambda: everything, matrices)


def test_hf_rows_in_another_order_and_on_disk(hf, matrices, tmp_path):
    data = hf_dataset(hf, matrices)
    order = np.random.default_rng(3).permutation(COUNT)
    chosen = [matrices[i] for i in order], [IDS[i] for i in order], ("year", [YEARS[i] for i in order])
    assert_same(lambda: data.select(order), *chosen)
    data.save_to_disk(tmp_path / "hf")
    mapped = hf.load_from_disk(tmp_path / "hf")
    assert mapped.cache_files
    assert_same(lambda: mapped, matrices)
    assert read_sizes(mapped) == [64, 64, 22]


def test_hf_iterable(hf, matrices, tmp_path):
    def rows():
        for doc_id, matrix, year in zip(IDS, matrices, YEARS, strict=True):
            yield {"id": doc_id, "tokens": matrix, "year": year}

    data = hf_dataset(hf, matrices)
    assert_same(lambda: data.to_iterable_dataset(), matrices)
    assert_same(lambda: data.to_iterable_dataset().with_format("torch"), matrices)
    assert_same(
        lambda: data.to_iterable_dataset().map(lambda row: {**row, "year": row["year"] + 1}),
        matrices,
        IDS,
        ("year", [y + 1 for y in YEARS]),
    )
    assert_same(lambda: hf.IterableDataset.from_generator(rows), matrices)
    pq.write_table(table(flat_lists(matrices)), tmp_path / "d.parquet")
    files = {"data_files": str(tmp_path / "d.parquet"), "split": "train", "cache_dir": str(tmp_path / "cache")}
    assert_same(lambda: hf.load_dataset("parquet", streaming=True, **files), matrices)


def test_hf_learns_and_encodes(hf, matrices, word_encoder):
    data = hf_dataset(hf, matrices, text=TITLES)
    assert_learns(lambda: data.select_columns(["id", "tokens"]), matrices)
    assert_texts(data.select_columns(["id", "text", "year"]), word_encoder)
    assert_texts(data.select_columns(["id", "text", "year"]).to_iterable_dataset(), word_encoder)


def test_extension_types_of_metadata_are_kept_as_what_they_store(hf, matrices, tmp_path):
    boxes = hf.Features({"tokens": hf.List(hf.List(hf.Value("float32"))), "box": hf.Array2D((2, 2), "int32")})
    data = hf.Dataset.from_dict({"tokens": matrices[:1], "box": [[[1, 2], [3, 4]]]}, features=boxes)
    index = LemurIndex().add(data)
    index.save(tmp_path / "index")
    assert index.metadata(0).schema.field("box").type == pa.large_list(pa.large_list(pa.int32()))
    assert LemurIndex.load(tmp_path / "index").metadata(0).column("box").to_pylist() == [[[1, 2], [3, 4]]]


# Lance


def test_lance(lance, layout, tmp_path):
    data, matrices = layout
    dataset = lance.write_dataset(data, tmp_path / "d.lance", max_rows_per_file=70)
    assert_same(lambda: dataset, matrices)
    assert_same(lambda: dataset.scanner(), matrices)
    assert_same(lambda: dataset.scanner().to_reader(), matrices)
    assert_same(lambda: dataset.scanner(filter="year >= 1930"), matrices[30:], IDS[30:], ("year", YEARS[30:]))


def test_lance_learns_encodes_and_is_read_a_few_rows_at_a_time(lance, matrices, word_encoder, tmp_path):
    data = table(flat_lists(matrices), text=TITLES)
    dataset = lance.write_dataset(data.select(["id", "tokens"]), tmp_path / "d.lance")
    assert_learns(lambda: dataset, matrices)
    assert max(read_sizes(dataset)) <= sources.ROWS_PER_READ
    assert_texts(lance.write_dataset(data.drop_columns("tokens"), tmp_path / "t.lance"), word_encoder)


def test_lancedb(matrices, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="pip install lancedb pylance")
    made = lancedb.connect(tmp_path).create_table("documents", table(flat_lists(matrices)))
    assert_same(lambda: made.to_arrow(), matrices)
    assert_same(lambda: made.search().to_batches(), matrices)
    index = LemurIndex().add(made)  # by its to_arrow, in memory
    assert index.search(matrices, k=1) == LemurIndex().add(matrices, ids=IDS).search(matrices, k=1)
    pytest.importorskip("lance", reason="pip install pylance")
    assert_same(lambda: made.to_lance(), matrices)


# What cannot be read


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (
            [np.ones((2, 3)), np.ones((1, 4))],
            ValueError,
            r"matrices \(num_tokens, dim\) of one dim, got ndarray of shape \(1, 4\) in row 1",
        ),
        ([np.ones((2, 3)), np.ones(3)], ValueError, r"got ndarray of shape \(3,\) in row 1"),
        ([np.ones((2, 3)), None], ValueError, r"got NoneType of shape \(\) in row 1"),
        ([None, np.ones((2, 3))], ValueError, r"got NoneType of shape \(\) in row 0"),
        ([np.ones((2, 3), int)] * 2, TypeError, "column 'tokens' must be float32 or float16, got int64"),
        ([np.ones((2, 3)), np.empty((0, 3))], ValueError, r"document 1 \(id 'b'\) has no tokens"),
        ([np.ones((2, 3)), np.full((1, 3), np.nan)], ValueError, r"document 1 \(id 'b'\) has a NaN"),
        ([np.ones(3), np.ones(3)], TypeError, "must be list<fixed_size_list.*got lists of double"),
        (["a", "b"], TypeError, "must be list<fixed_size_list.*got (large_)?string"),
    ],
)
def test_bad_pandas_frames(pd, tokens, error, message):
    with pytest.raises(error, match=message):
        LemurIndex().add(pd.DataFrame({"id": ["a", "b"], "tokens": pd.Series(tokens)}))


def test_bad_row_numbers_count_all_reads(pd, matrices):
    frame = pandas_frame(pd, [*matrices[:-1], np.ones((1, DIM + 1), np.float32)])
    with pytest.raises(ValueError, match=r"shape \(1, 9\) in row 149"):
        LemurIndex().add(frame)
    shifted = pandas_frame(pd, [*matrices[: sources.ROWS_PER_READ], *(m[:, 1:] for m in matrices[sources.ROWS_PER_READ :])])
    with pytest.raises(ValueError, match=r"document 64 \(id 'doc-64'\) has dim 7, index has dim 8"):
        LemurIndex().add(shifted)


def test_columns_that_are_missing_or_alone(pd, pl, hf, duckdb):
    for given in (pd.DataFrame({"id": [1]}), pl.DataFrame({"id": [1]}), pl.LazyFrame({"id": [1]})):
        with pytest.raises(ValueError, match=r"must have a column 'tokens' .* got columns \['id'\]"):
            LemurIndex().add(given)
    for given in (hf.Dataset.from_dict({"id": [1]}), duckdb.sql("SELECT 1 AS id")):
        with pytest.raises(ValueError, match=r"queries must have a column 'tokens' .* got columns \['id'\]"):
            LemurIndex().search(given)
    for given in (pd.Series([np.ones((2, 3))]), pl.Series([[[1.0]]])):  # tokens, and no ids
        assert LemurIndex().add(given).ids().to_pylist() == [0]
    for given in (pd.Series([1.0, 2.0]), pl.Series([1.0, 2.0])):
        with pytest.raises(TypeError, match="column 'tokens' of documents must be list<.*, got double"):
            LemurIndex().add(given)
    with pytest.raises(TypeError, match="must be token embeddings, got DatasetDict"):
        LemurIndex().add(hf.DatasetDict(train=hf.Dataset.from_dict({"id": [1]})))
    with pytest.raises(TypeError, match="got fixed_size_binary"):
        LemurIndex().add(pl.DataFrame({"tokens": pl.Series([np.ones((2, 3))], dtype=pl.Object)}))
    with pytest.raises(TypeError, match="carry ids and offsets as columns"):
        LemurIndex().add(pd.DataFrame({"tokens": [np.ones((2, 3))]}), ids=["a"])


def test_frames_without_rows(pd, pl, hf, duckdb, matrices):
    data = table(flat_lists(matrices))[:0]
    relation = duckdb.from_arrow(data)
    for given in (data.to_pandas(), pl.from_arrow(data), pl.from_arrow(data).lazy(), hf.Dataset(data), relation):
        assert len(LemurIndex().add(given)) == 0
        assert len(read_queries(given)) == 0


# Hits as tables


@pytest.fixture
def index(matrices):
    return LemurIndex().add(table(flat_lists(matrices), title=TITLES))


def test_hits_to_arrow(index, matrices):
    hits = index.search(matrices[3], k=4)
    found = hits.to_arrow()
    assert found.schema == pa.schema([("id", pa.large_string()), ("score", pa.float32())])
    assert found.column("id").to_pylist() == hits.ids.tolist()
    np.testing.assert_array_equal(found.column("score").to_numpy(), hits.scores)
    integers = LemurIndex().add(matrices).search(matrices[3], k=4).to_arrow()
    assert integers.schema.field("id").type == pa.int64()
    assert integers.column("id")[0].as_py() == 3
    for empty in (np.empty(0, object), np.empty(0, np.int64)):
        nothing = Hits(empty, np.empty(0, np.float32)).to_arrow()
        assert nothing.schema.field("id").type == (pa.large_string() if empty.dtype == object else pa.int64())
        assert len(nothing) == 0


def test_a_table_of_one_query(index, matrices):
    hits = index.search(matrices[3], k=4)
    found = index.to_table(hits)
    assert found.schema.names == ["rank", "id", "score", "year", "title"]
    assert found.schema.types[:3] == [pa.int64(), pa.large_string(), pa.float32()]
    assert found.column("rank").to_pylist() == [1, 2, 3, 4]
    assert found.select(["id", "score"]).equals(hits.to_arrow())
    assert found.column("title").to_pylist() == [f"title {doc_id[4:]}" for doc_id in hits.ids]
    assert index.to_table(hits, ["title"]).equals(found.select(["rank", "id", "score", "title"]))
    assert index.to_table(hits, columns=[]).column_names == ["rank", "id", "score"]


def test_a_table_of_a_batch(index, matrices):
    few = index.search(matrices[7], k=2)
    none = Hits(np.empty(0, object), np.empty(0, np.float32))
    more = index.search(matrices[8], k=3)
    found = index.to_table([few, none, more], columns=["year"])
    assert found.column_names == ["query", "rank", "id", "score", "year"]
    assert found.schema.field("query").type == pa.int64()
    assert found.column("query").to_pylist() == [0, 0, 2, 2, 2]
    assert found.column("rank").to_pylist() == [1, 2, 1, 2, 3]
    assert found.column("id").to_pylist() == [*few.ids, *more.ids]
    assert found.column("score").to_pylist() == [*few.scores, *more.scores]
    assert found.column("year").to_pylist() == [1900 + int(doc_id[4:]) for doc_id in [*few.ids, *more.ids]]
    assert index.to_table(index.search(matrices[:2], k=3)).column("query").to_pylist() == [0, 0, 0, 1, 1, 1]


def test_tables_of_nothing(index, matrices):
    assert index.to_table([]).schema == index.to_table(index.search(matrices[:2], k=1)).schema
    assert len(index.to_table([])) == 0
    fresh = LemurIndex()
    assert fresh.to_table(fresh.search(matrices[0])).column_names == ["rank", "id", "score"]
    plain = LemurIndex().add(matrices)
    assert plain.to_table(plain.search(matrices[0], k=1)).to_pydict()["id"] == [0]


def test_bad_tables(index, matrices):
    hits = index.search(matrices[:3], k=3)
    with pytest.raises(KeyError, match=r"no metadata column 'colour'; there are \['year', 'title'\]"):
        index.to_table(hits, columns=["year", "colour"])
    with pytest.raises(TypeError, match="hits must be Hits or a sequence of them, got list"):
        index.to_table([("doc-1", 0.5)])
    index.delete("doc-1")
    with pytest.raises(KeyError, match="no document has the id 'doc-1'"):
        index.to_table(hits)
    ranked = LemurIndex().add(table(flat_lists(matrices), score=YEARS))
    with pytest.raises(ValueError, match="metadata column 'score' has the name of a column of the hits; columns= can leave"):
        ranked.to_table(ranked.search(matrices[0]))
    assert "year" in ranked.to_table(ranked.search(matrices[0]), columns=["year"]).column_names


def test_duckdb_reads_hits(index, matrices, duckdb):
    found = index.to_table(index.search(matrices[:5], k=2))
    rows = duckdb.sql("SELECT query, title, score FROM found WHERE rank = 1 ORDER BY query").fetchall()
    assert [row[:2] for row in rows] == [(i, f"title {i}") for i in range(5)]
    assert len(duckdb.sql("FROM found")) == len(found)


def test_polars_reads_hits(index, matrices, pl):
    hits = index.search(matrices[:5], k=2)
    frame = pl.from_arrow(index.to_table(hits))
    assert frame.filter(pl.col("rank") == 1)["title"].to_list() == TITLES[:5]
    assert pl.DataFrame(hits[0].to_arrow())["id"].to_list() == hits[0].ids.tolist()


def test_pandas_reads_hits(index, matrices, pd):
    frame = index.to_table(index.search(matrices[:5], k=2)).to_pandas()
    assert frame[frame["rank"] == 1]["title"].tolist() == TITLES[:5]
    assert frame.dtypes["score"] == np.float32
