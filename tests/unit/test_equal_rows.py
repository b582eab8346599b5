"""Copies of documents, and vectors that codes cannot tell apart: one node of the graph for all."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lemur_ann import LemurIndex, _core
from lemur_ann.candidates.equals import EqualRows
from lemur_ann.candidates.kinds import kind_of
from lemur_ann.documents.rows import RowSet

DIM, OPTIONS = 32, {"M": 8, "ef_construction": 60, "seed": 0}


def on_a_sphere(vectors, radius=1.0):
    """Vectors with the coordinate that makes all of one length, as those of documents are."""
    vectors = 0.5 * radius * vectors / np.linalg.norm(vectors, axis=1, keepdims=True).max()
    last = np.sqrt(radius**2 - (vectors**2).sum(1))
    return np.column_stack([vectors, last]).astype(np.float32)


def num_copies(structure):
    return np.count_nonzero(structure.next_equal >= 0)


def built(vectors, blocks=1):
    builder = kind_of("hnsw").builder(DIM, OPTIONS)
    for block in np.array_split(vectors, blocks):
        builder.add(block, num_threads=2)
    return builder.finish()


def decoded(vectors):
    codes, scales = _core.int8_codes(vectors, 1)
    return codes[:, :DIM] * scales[:, None]


def recall(index, vectors, queries, count, excluded=None):
    """By inner products with what the codes say, to an eighth of their step: a copy is as good as another."""
    found = index.search(queries, count, 100, num_threads=2, excluded=excluded)
    products, scales = queries @ decoded(vectors).T, _core.int8_codes(vectors, 1)[1]
    if excluded is not None:
        products[:, excluded.mask] = -np.inf
    wanted = np.sort(products, axis=1)[:, -count]
    assert all(len(set(own.tolist())) == count for own in found)
    return np.mean(
        [
            (row[own] >= least - np.linalg.norm(query) * scales.max() / 8).mean()
            for own, query, row, least in zip(found, queries, products, wanted, strict=True)
        ]
    )


@pytest.fixture
def queries():
    random = np.random.default_rng(8)
    return np.pad(random.normal(size=(40, DIM - 1)), ((0, 0), (0, 1))).astype(np.float32)


@pytest.mark.parametrize(("groups", "copies"), [(1200, 3), (300, 12), (1500, 1)])
@pytest.mark.parametrize("noise", [0, 1e-6, 1e-3])
def test_copies_are_found_as_others_are(queries, groups, copies, noise):
    random = np.random.default_rng(1)
    base = np.tile(random.normal(size=(groups, DIM - 1)), (copies, 1))
    vectors = on_a_sphere(base * (1 + noise * random.normal(size=base.shape)))
    index = built(vectors, blocks=3)
    assert recall(index, vectors, queries, 10) > 0.95
    np.testing.assert_array_equal(index.take(np.arange(len(vectors))), decoded(vectors))  # each has its own
    if copies > 1:
        expected = (copies - 1) * groups
        assert 0.99 * expected < num_copies(index.structure) <= expected
    else:
        assert not len(index.structure.next_equal)


def test_a_thousand_copies_of_one_among_others(queries):
    random = np.random.default_rng(2)
    others = random.normal(size=(2000, DIM - 1))
    vectors = on_a_sphere(np.concatenate([others, np.repeat(others[:1], 1000, axis=0)]))
    index = built(vectors)
    assert recall(index, vectors, queries, 10) > 0.95
    found = index.search(np.pad(vectors[:1, :-1], ((0, 0), (0, 1))), 1001, 1200, num_threads=1)[0]
    assert set(found.tolist()) == {0, *range(2000, 3000)}


def test_deleted_copies_and_filters(queries):
    random = np.random.default_rng(3)
    vectors = on_a_sphere(np.tile(random.normal(size=(800, DIM - 1)), (3, 1)))
    index = built(vectors)
    without_first = np.arange(2400) < 800  # those that have the links
    for mask in (without_first, ~without_first, np.arange(2400) % 3 > 0):
        assert recall(index, vectors, queries, 10, RowSet.of(mask)) > 0.95
        for own in index.search(queries, 20, 60, num_threads=1, excluded=RowSet.of(mask)):
            assert not mask[own].any()


def test_copies_that_come_later(queries, tmp_path):
    random = np.random.default_rng(4)
    vectors = on_a_sphere(np.tile(random.normal(size=(1300, DIM - 1)), (4, 1)))
    index = built(vectors[:1500])
    for begin in range(1500, 5200, 1850):  # so many that the graph takes them in
        index = index.extended(vectors[begin : begin + 1850], num_threads=2)
        assert not index.parts
        paths = {role: tmp_path / f"{begin}-{role}" for role in kind_of("hnsw").files}
        index.structure.save(paths)
        structure = kind_of("hnsw").load_structure(paths, DIM, index.structure.num_rows)
        index = kind_of("hnsw").assemble(DIM, structure, [], OPTIONS)
        own = vectors[: index.num_rows]
        assert recall(index, own, queries, 10) > 0.95
        np.testing.assert_array_equal(index.take(np.arange(index.num_rows)), decoded(own))
    assert num_copies(structure) == 3 * 1300


def test_an_index_of_an_older_version_mends_itself_as_it_grows(tmp_path):
    folder = Path(__file__).parent.parent / "formats" / "format_4" / "index"
    shutil.copytree(folder, tmp_path / "index")
    index = LemurIndex.load(tmp_path / "index")
    copies = [index.get(index.ids()[i : i + 1].to_pylist()).column("tokens")[0].values for i in range(700)]
    copies = [np.array(tokens.flatten().to_numpy()).reshape(-1, 4) for tokens in copies]
    for begin in range(0, 700, 100):  # until they are in the graph
        index.add(copies[begin : begin + 100] * 2, ids=[f"copy {begin + i}, {n}" for n in range(2) for i in range(100)])
    structure = index.snapshot.learned.candidates.structure
    assert num_copies(structure) > 600
    for i in (0, 350, 699):
        hits = index.search(copies[i].astype(np.float32), k=3, num_candidates=200)
        exact = index.search(copies[i].astype(np.float32), k=3, exact=True)
        np.testing.assert_allclose(hits.scores, exact.scores, rtol=1e-5)


def test_which_rows_are_one_kind():
    random = np.random.default_rng(6)
    vectors = on_a_sphere(random.normal(size=(60, DIM - 1)))
    rows = np.concatenate([np.arange(60), [3, 7, 3, 3]])
    codes, scales = _core.int8_codes(vectors[rows], 1)
    equal = EqualRows(DIM)
    is_first = [equal.add(codes[a:b], scales[a:b]) for a, b in ((0, 61), (61, 64))]
    assert np.concatenate(is_first).tolist() == [True] * 60 + [False] * 4
    following = equal.next_equal
    assert (following[3], following[60], following[62], following[63], following[7]) == (60, 62, 63, -1, 61)
    again = EqualRows(DIM)
    again.known(codes, scales, following)
    assert again.add(codes[:2], scales[:2]).tolist() == [False, False]
    np.testing.assert_array_equal(again.next_equal[:64][2:], following[2:])
    assert EqualRows(DIM).next_equal.shape == (0,)
    longer = np.concatenate([vectors[:1], 1.5 * vectors[:1]])  # the same codes, another length
    codes, scales = _core.int8_codes(longer, 1)
    assert EqualRows(DIM).add(codes, scales).all()


@pytest.mark.parametrize("following", [[-1, 0], [5, -1], [0, -1]])
def test_lists_that_do_not_ascend_are_refused(following):
    codes, scales = _core.int8_codes(np.eye(2, 16, dtype=np.float32), 1)
    links, entries = np.full((2, 1), -1, np.int32), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match="ascend"):
        _core.better_links(16, codes, scales, links, entries, 1, 4, 1.2, 1, np.array(following, np.int32))
