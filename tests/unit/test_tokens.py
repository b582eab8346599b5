from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lemur_ann import CorruptIndex, _core
from lemur_ann.documents import tokens as tokens_module
from lemur_ann.documents.inputs import read_documents
from lemur_ann.documents.tokens import TokenStore


def store_of(matrices, sizes, coded=False):
    """A store filled in additions of the given sizes."""
    store, begin = TokenStore(coded=coded), 0
    for size in sizes:
        (batch,) = read_documents(matrices[begin : begin + size])
        store = store.extended(batch.tokens, batch.offsets)
        begin += size
    return store


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_write_and_open(make_matrices, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(tokens_module, "VALUES_PER_BATCH", 16 * 20)  # several batches
    matrices = make_matrices(50, dtype=dtype)
    store = store_of(matrices, [50])
    store.write(tmp_path / "tokens.arrow")
    opened = TokenStore.open(tmp_path / "tokens.arrow")
    assert len(opened.chunks) > 3
    assert (len(opened), opened.dim, opened.dtype, opened.num_tokens) == (50, 16, dtype, store.num_tokens)
    for i, matrix in enumerate(matrices):
        np.testing.assert_array_equal(opened[i], matrix)


def codes_of(store):
    """The codes of each document."""
    found = []
    for chunk in store.chunks:
        for begin, end in zip(chunk.offsets[:-1], chunk.offsets[1:], strict=True):
            found.append([array[begin:end] for array in chunk.codes])
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_codes_follow_their_tokens(make_matrices, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(tokens_module, "VALUES_PER_BATCH", 16 * 20)
    matrices = make_matrices(53, dtype=dtype)
    store = store_of(matrices, [20, 1, 1, 1, 30], coded=True)
    store.write(tmp_path / "tokens.arrow")
    for some in (store, TokenStore.open(tmp_path / "tokens.arrow", coded=True)):
        for matrix, codes in zip(matrices, codes_of(some), strict=True):
            for got, expected in zip(codes, _core.token_codes(matrix, 1), strict=True):
                np.testing.assert_array_equal(got, expected)
    plain = TokenStore.open(tmp_path / "tokens.arrow")
    assert plain.chunks[0].codes is None


def test_codes_of_a_slice_of_tokens(make_matrices):
    matrices = make_matrices(6)
    tokens, offsets = np.concatenate(matrices), np.concatenate([[0], np.cumsum([len(m) for m in matrices])])
    store = TokenStore(coded=True).extended(tokens, offsets[2:5])
    assert len(store) == 2
    for i in (0, 1):
        np.testing.assert_array_equal(store[i], matrices[2 + i])
        np.testing.assert_array_equal(codes_of(store)[i][0], _core.token_codes(matrices[2 + i], 1)[0])


def test_opened_tokens_are_views_of_the_file(make_matrices, tmp_path):
    store_of(make_matrices(20), [20]).write(tmp_path / "t.arrow")
    before = pa.total_allocated_bytes()
    opened = TokenStore.open(tmp_path / "t.arrow")
    assert pa.total_allocated_bytes() - before < opened.num_tokens * 16 * 4 / 2


def test_opened_file_is_ordinary_arrow(make_matrices, tmp_path):
    matrices = make_matrices(5, dtype=np.float16)
    store_of(matrices, [5]).write(tmp_path / "t.arrow")
    with pa.OSFile(str(tmp_path / "t.arrow")) as source:
        column = pa.ipc.open_file(source).read_all().column("tokens")
    assert column.type == pa.large_list(pa.list_(pa.float16(), 16))
    np.testing.assert_array_equal(np.array(column[3].as_py()), matrices[3])


def test_many_small_additions_stay_few_chunks(make_matrices):
    matrices = make_matrices(300, low=2, high=2)
    store = store_of(matrices, [1] * 300)
    assert len(store.chunks) <= 10
    for i in (0, 17, 255, 299):
        np.testing.assert_array_equal(store[i], matrices[i])
    with pytest.raises(IndexError):
        store[300]


def test_select_reads_the_right_documents(make_matrices):
    matrices = make_matrices(60)
    store = store_of(matrices, [30, 20, 10])
    chosen = np.array([0, 1, 2, 29, 30, 45, 58, 59])
    query = matrices[0]
    got = _core.scores(query, np.array([0, len(query)]), store.select(chosen), 1)[0]
    everything = _core.scores(query, np.array([0, len(query)]), store.documents, 1)[0]
    np.testing.assert_array_equal(got, everything[chosen])


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_truncated_files_are_refused(make_matrices, tmp_path, keep):
    path = tmp_path / "t.arrow"
    store_of(make_matrices(20), [20]).write(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptIndex, match="not a token file"):
        TokenStore.open(path)


def test_empty_store(tmp_path):
    TokenStore().write(tmp_path / "t.arrow")
    assert len(TokenStore.open(tmp_path / "t.arrow")) == 0


@pytest.mark.parametrize("coded", [False, True])
def test_parts_and_what_is_left(make_matrices, rng, coded, monkeypatch):
    monkeypatch.setattr(tokens_module, "BYTES_TO_MERGE", 16 * 4 * 100)  # several chunks
    matrices = make_matrices(90)
    store = store_of(matrices, [20, 20, 20, 5, 25], coded)
    assert len(store.chunks) > 2
    for begin, end in [(0, 90), (3, 4), (15, 77), (20, 40), (90, 90)]:
        part = TokenStore(store.part(begin, end), coded=coded)
        assert len(part) == end - begin
        for i in range(end - begin):
            np.testing.assert_array_equal(part[i], matrices[begin + i])
        if coded and len(part):
            np.testing.assert_array_equal(codes_of(part)[-1][0], _core.token_codes(matrices[end - 1], 1)[0])
    dropped = rng.random(90) < 0.4
    dropped[20:40] = False
    left = store.without(dropped)
    for got, expected in zip(range(len(left)), np.flatnonzero(~dropped), strict=True):
        np.testing.assert_array_equal(left[got], matrices[expected])
    assert any(chunk is store.chunks[1] for chunk in left.chunks), "a chunk that loses nothing stays where it lies"
    assert len(store.without(np.ones(90, bool))) == 0
    column = store.to_arrow(np.array([7, 3, 89]))
    np.testing.assert_array_equal(np.array(column[2].as_py(), np.float32), matrices[89])
