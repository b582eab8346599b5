"""Every form that documents and queries may take."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

from lemur_ann.documents.inputs import read_documents, read_queries, tokens_from_arrow


def arrow_tokens(matrices, list_type=pa.LargeListArray, offset_type=np.int64):
    flat = np.concatenate(matrices)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    offsets = np.concatenate([[0], np.cumsum([len(m) for m in matrices])]).astype(offset_type)
    return list_type.from_arrays(pa.array(offsets), vectors)


def table(matrices, **columns):
    return pa.table({"id": [f"d{i}" for i in range(len(matrices))], "tokens": arrow_tokens(matrices), **columns})


def unpack(batches):
    return [b.tokens[b.offsets[i] : b.offsets[i + 1]] for b in batches for i in range(len(b))]


def assert_same(batches, matrices):
    got = unpack(batches)
    assert len(got) == len(matrices)
    for a, b in zip(got, matrices, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_column_of_matrices_by_itself(make_matrices):
    matrices = make_matrices(5)
    column = table(matrices)["tokens"]
    assert_same(read_documents(column[1:4]), matrices[1:4])
    assert_same([read_queries(column.combine_chunks())], matrices)
    with pytest.raises(TypeError, match="tokens"):
        read_queries(pa.array([1, 2, 3]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_arrow_table_is_not_copied(make_matrices, dtype):
    matrices = make_matrices(5, dtype=dtype)
    data = table(matrices)
    (batch,) = read_documents(data)
    assert_same([batch], matrices)
    assert batch.ids.to_pylist() == ["d0", "d1", "d2", "d3", "d4"]
    buffer = data.column("tokens").chunk(0).values.values.buffers()[1]
    assert batch.tokens.__array_interface__["data"][0] == buffer.address


def test_arrow_list_with_int32_offsets(make_matrices):
    matrices = make_matrices(4)
    assert_same(read_documents(pa.table({"tokens": arrow_tokens(matrices, pa.ListArray, np.int32)})), matrices)


def test_sliced_and_chunked_arrow(make_matrices):
    matrices = make_matrices(12)
    data = table(matrices)
    assert_same(read_documents(data.slice(3, 5)), matrices[3:8])
    chunked = pa.concat_tables([data.slice(0, 2), data.slice(5, 1), data.slice(2, 3)])
    batches = read_documents(chunked)
    assert_same(batches, matrices[:2] + matrices[5:6] + matrices[2:5])
    assert [i for b in batches for i in b.ids.to_pylist()] == ["d0", "d1", "d5", "d2", "d3", "d4"]


def test_slices_stay_views_of_the_buffer(make_matrices):
    matrices = make_matrices(6)
    data = table(matrices)
    (batch,) = read_documents(data.slice(2, 2))
    buffer = data.column("tokens").chunk(0).values.values.buffers()[1]
    start = sum(m.nbytes for m in matrices[:2])
    assert batch.tokens.__array_interface__["data"][0] == buffer.address + start


def test_child_arrays_with_offsets_of_their_own(make_matrices):
    matrices = make_matrices(3)
    flat = np.concatenate([np.full((2, 16), 99, np.float32), *matrices])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), 16).slice(2)
    offsets = np.concatenate([[0], np.cumsum([len(m) for m in matrices])])
    column = pa.LargeListArray.from_arrays(pa.array(offsets), vectors)
    assert_same(read_documents(pa.table({"tokens": column})), matrices)
    assert_same(read_documents(pa.table({"tokens": column.slice(1)})), matrices[1:])


def test_record_batch_reader_dataset_and_parquet(make_matrices, tmp_path):
    matrices = make_matrices(7)
    data = table(matrices, text=list("abcdefg"))
    assert_same(read_documents(data.to_batches()[0]), matrices)
    assert_same(read_documents(data.to_reader(max_chunksize=3)), matrices)
    pq.write_table(data, tmp_path / "docs.parquet", row_group_size=3)
    batches = read_documents(ds.dataset(tmp_path / "docs.parquet"))
    assert_same(batches, matrices)
    assert [t for b in batches for t in b.metadata.column("text").to_pylist()] == list("abcdefg")
    assert_same(read_documents(ds.dataset(tmp_path / "docs.parquet").scanner(batch_size=2)), matrices)


def test_pycapsule_interface(make_matrices):
    class Foreign:  # what Polars, DuckDB and others hand over
        def __init__(self, data):
            self._data = data

        def __arrow_c_stream__(self, requested_schema=None):
            return self._data.__arrow_c_stream__(requested_schema)

    matrices = make_matrices(4)
    assert_same(read_documents(Foreign(table(matrices))), matrices)


def test_variable_lists_of_one_dim(make_matrices):
    matrices = make_matrices(3, dim=4)
    nested = pa.array([m.tolist() for m in matrices], pa.list_(pa.list_(pa.float32())))
    assert_same(read_documents(pa.table({"tokens": nested})), matrices)
    uneven = pa.array([[[1.0, 2.0]], [[1.0]]], pa.list_(pa.list_(pa.float32())))
    with pytest.raises(ValueError, match="dim 2 and 1"):
        read_documents(pa.table({"tokens": uneven}))


def test_fixed_number_of_tokens(rng):
    """Pages: every document has as many tokens as the others."""
    cube = rng.normal(size=(3, 5, 4)).astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(cube.reshape(-1)), 4)
    column = pa.FixedSizeListArray.from_arrays(vectors, 5)
    assert_same(read_documents(pa.table({"tokens": column})), list(cube))
    assert_same(read_documents(cube), list(cube))
    assert_same(read_documents(torch.from_numpy(cube)), list(cube))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_encoder_outputs(make_matrices, dtype):
    """sentence-transformers and PyLate return lists of tensors, or of arrays."""
    matrices = make_matrices(4)
    tensors = [torch.from_numpy(m).to(dtype).requires_grad_() for m in matrices]
    assert_same(read_documents(tensors), [t.detach().numpy() for t in tensors])
    assert len(read_queries(tensors)) == 4


def test_bfloat16_and_float64_become_float32(make_matrices):
    matrices = make_matrices(2)
    assert_same(read_documents([m.astype(np.float64) for m in matrices]), matrices)
    rounded = [torch.from_numpy(m).bfloat16() for m in matrices]
    assert_same(read_documents(rounded), [r.float().numpy() for r in rounded])


def test_flat_matrix_with_offsets(make_matrices):
    matrices = make_matrices(4)
    flat = np.concatenate(matrices)
    offsets = np.concatenate([[0], np.cumsum([len(m) for m in matrices])])
    (batch,) = read_documents(flat, offsets=offsets, ids=[3, 1, 4, 15])
    assert_same([batch], matrices)
    assert batch.ids.to_pylist() == [3, 1, 4, 15]
    assert not np.shares_memory(batch.tokens, flat)  # the caller may reuse the buffer
    flat.flags.writeable = False
    (batch,) = read_documents(flat, offsets=offsets)
    assert np.shares_memory(batch.tokens, flat)


def test_generators_and_many_batches(make_matrices):
    matrices = make_matrices(40, dim=3)
    assert_same(read_documents(m for m in matrices), matrices)


@pytest.mark.parametrize(
    "ids",
    [
        ["a", "b"],
        np.array(["a", "b"]),
        np.array(["a", "b"], object),
        pa.array(["a", "b"]),
        pa.array(["a", "b"]).dictionary_encode(),
    ],
)
def test_string_ids(make_matrices, ids):
    (batch,) = read_documents(make_matrices(2), ids=ids)
    assert batch.ids.type == pa.large_string()
    assert batch.ids.to_pylist() == ["a", "b"]


@pytest.mark.parametrize("ids", [[5, 6], np.array([5, 6], np.int32), np.array([5, 6], np.uint64), pa.array([5, 6], pa.int8())])
def test_integer_ids(make_matrices, ids):
    (batch,) = read_documents(make_matrices(2), ids=ids)
    assert batch.ids.type == pa.int64()
    assert batch.ids.to_pylist() == [5, 6]


def test_empty_arrow_data():
    kind = pa.large_list(pa.list_(pa.float32(), 4))
    assert sum(map(len, read_documents(pa.table({"tokens": pa.array([], kind)})))) == 0
    tokens, offsets = tokens_from_arrow(pa.array([], kind), "x")
    assert tokens.shape == (0, 4)
    assert offsets.tolist() == [0]


GOOD = [np.ones((2, 3), np.float32), np.ones((1, 3), np.float32)]
ONE_TOKEN = pa.list_(pa.list_(pa.float32(), 2))


@pytest.mark.parametrize(
    ("documents", "arguments", "error", "message"),
    [
        ([GOOD[0], np.ones((1, 4), np.float32)], {}, ValueError, r"documents\[1\] has dim 4, those before have dim 3"),
        ([GOOD[0], np.empty((0, 3), np.float32)], {}, ValueError, "document 1 has no tokens"),
        (
            [GOOD[0], np.full((1, 3), np.nan, np.float32)],
            {},
            ValueError,
            "document 1 has a NaN, infinite or huge value .* in token 0",
        ),
        ([np.full((1, 3), np.inf, np.float16)], {"ids": ["x"]}, ValueError, r"document 0 \(id 'x'\) has a NaN, infinite"),
        ([np.full((1, 3), 1e300)], {}, ValueError, "infinite"),
        ([np.ones((2, 3), np.int8)], {}, TypeError, r"documents\[0\] must be float32 or float16, got int8"),
        (
            [np.ones(3, np.float32)],
            {},
            ValueError,
            r"documents\[0\] must be a matrix of shape \(num_tokens, dim\), got shape \(3,\)",
        ),
        ([np.ones((2, 0), np.float32)], {}, ValueError, "dim 0"),
        ([[[1.0, 2.0], [1.0]]], {}, TypeError, r"documents\[0\] must be a numeric array, got list of mixed or ragged items"),
        (np.ones((2, 3), np.float32), {}, ValueError, "one matrix of shape .* pass offsets="),
        (np.ones((2, 3), np.float32), {"offsets": [0, 2, 1]}, ValueError, "must not run backwards, got 2 then 1"),
        (np.ones((2, 3), np.float32), {"offsets": [0, 1]}, ValueError, "must end at the number of tokens 2, got 1"),
        (np.ones((2, 3), np.float32), {"offsets": [1, 2]}, ValueError, "must start at 0, got 1"),
        (np.ones((2, 3), np.float32), {"offsets": [0.0, 2.0]}, TypeError, "must be integers, got float64"),
        (GOOD, {"offsets": [0, 1]}, TypeError, "offsets= goes with one flat matrix"),
        (GOOD, {"ids": ["a"]}, ValueError, "one id for each of 2 documents, got 1 ids"),
        (GOOD, {"ids": ["a", None]}, ValueError, "id is null in row 1"),
        (GOOD, {"ids": ["a", 1]}, TypeError, "all strings or all integers"),
        (GOOD, {"ids": [1.5, 2.5]}, TypeError, "strings or integers, got float"),
        (GOOD, {"ids": [True, False]}, TypeError, "strings or integers, got bool"),
        (GOOD, {"ids": [1, 2**63]}, ValueError, "fit in int64"),
        ("text", {}, TypeError, "must be token embeddings, got str"),
        (7, {}, TypeError, "got int"),
        (pa.table({"id": ["a"]}), {}, ValueError, r"must have a column 'tokens' .* got columns \['id'\]"),
        (pa.table({"tokens": pa.array([None], ONE_TOKEN)}), {}, ValueError, "null in row 0"),
        (pa.table({"tokens": pa.array([[None]], ONE_TOKEN)}), {}, ValueError, "null token vector"),
        (pa.table({"tokens": pa.array([[[1.0, None]]], ONE_TOKEN)}), {}, ValueError, "null value"),
        (pa.table({"tokens": pa.array([[[1, 2]]], pa.list_(pa.list_(pa.int32(), 2)))}), {}, TypeError, "got int32"),
        (pa.table({"tokens": pa.array([1.0])}), {}, TypeError, "must be list<fixed_size_list.*got double"),
        (pa.table({"tokens": pa.array([[1.0]])}), {}, TypeError, "got lists of double"),
        (pa.table({"tokens": pa.array([[[1.0, 2.0]]], ONE_TOKEN), "id": [1.5]}), {}, TypeError, "got double"),
        (pa.table({"tokens": pa.array([[]], ONE_TOKEN), "id": ["a"]}), {}, ValueError, r"document 0 \(id 'a'\) has no tokens"),
        (
            pa.table({"tokens": pa.array([[[1.0, 2.0]]], ONE_TOKEN)}),
            {"ids": ["a"]},
            TypeError,
            "ids= and offsets= must be None",
        ),
    ],
)
def test_bad_documents(documents, arguments, error, message):
    with pytest.raises(error, match=message):
        read_documents(documents, **arguments)


def test_backward_arrow_offsets():
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(24, np.float32)), 3)
    column = pa.ListArray.from_arrays(pa.array([0, 5, 3, 8], pa.int32()), vectors)
    with pytest.raises(ValueError, match="must not run backwards, got 5 then 3"):
        read_documents(pa.table({"tokens": column}))


def test_rows_are_counted_over_all_batches():
    table = pa.table({"tokens": pa.array([[[1.0, 2.0]]] * 3, ONE_TOKEN)})
    bad = pa.table({"tokens": pa.array([[[1.0, 2.0]], None], ONE_TOKEN)})
    with pytest.raises(ValueError, match="null in row 4"):
        read_documents(pa.concat_tables([table, bad]))


def test_empty_batches_decide_nothing():
    kind = pa.list_(pa.list_(pa.float32()))
    empty, full = pa.table({"tokens": pa.array([], kind)}), pa.table({"tokens": pa.array([[[1.0, 2.0, 3.0]]], kind)})
    for tables in ([empty, full], [full, empty]):
        (batch,) = read_documents(pa.concat_tables(tables))
        assert batch.tokens.shape == (1, 3)
        assert read_queries(pa.concat_tables(tables)).tokens.shape == (1, 3)


def test_queries_need_no_ids():
    table = pa.table({"tokens": pa.array([[[1.0, 2.0]]], ONE_TOKEN), "id": [1.5]})
    assert len(read_queries(table)) == 1
    with pytest.raises(ValueError, match="pass query_offsets="):
        read_queries(np.ones((2, 3), np.float32))


def test_a_dim_that_is_not_the_index_s(make_matrices):
    with pytest.raises(ValueError, match="document 0 has dim 16, index has dim 8"):
        read_documents(make_matrices(1), dim=8)
