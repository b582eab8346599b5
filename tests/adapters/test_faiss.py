"""The same program with faiss's index and with ours, which must agree; and what only multi-vector items have."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

faiss = pytest.importorskip("faiss", reason="pip install faiss-cpu")

from lemur_ann.adapters.faiss import (  # noqa: E402
    METRIC_INNER_PRODUCT,
    IDSelectorBatch,
    IndexLemur,
    SearchParameters,
    read_index,
    write_index,
)

from lemur_ann import LemurIndex  # noqa: E402

OPTIONS = {"num_features": 128, "epochs": 2, "rank": 31, "num_candidates": 50, "ef_search": 100}
D = 16


class Faiss:
    flat = staticmethod(faiss.IndexFlatIP)
    write, read = staticmethod(faiss.write_index), staticmethod(faiss.read_index)

    @staticmethod
    def with_ids(d):
        return faiss.IndexIDMap2(faiss.IndexFlatIP(d))

    @staticmethod
    def items(x):
        return x

    @staticmethod
    def vectors(items):
        return np.asarray(items)


class Ours:
    flat = with_ids = staticmethod(IndexLemur)
    write, read = staticmethod(write_index), staticmethod(read_index)

    @staticmethod
    def items(x):
        return x[:, None]

    @staticmethod
    def vectors(items):
        return np.squeeze(items, axis=-2)


def agree(program):
    """Run a program, a generator of (what, value), with both; the values must be the same, and the scores nearly."""
    for (what, theirs), (_, ours) in zip(program(Faiss), program(Ours), strict=True):
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype, what
            assert ours.shape == theirs.shape, what
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=what)
        else:
            assert ours == theirs, what
            assert type(ours) is type(theirs), what


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(60, D)).astype(np.float32)


@pytest.fixture
def queries(rng):
    return rng.normal(size=(7, D)).astype(np.float32)


def maxsim(query, documents):
    return np.array([(query @ document.T).max(axis=1).sum() for document in documents])


def test_a_program_over_a_flat_index(vectors, queries, tmp_path):
    def program(host):
        index = host.flat(D)
        yield "attributes", (index.d, index.ntotal, index.metric_type)
        empty = index.search(host.items(queries), 3)
        yield from (("empty D", empty[0]), ("empty I", empty[1]))
        yield "add", index.add(host.items(vectors[:50]))
        index.add(host.items(vectors[50:]))
        index.add(host.items(vectors[:0]))
        yield "ntotal", index.ntotal
        for k in (1, 10, 70):
            found = index.search(host.items(queries), k)
            yield from ((f"D, k {k}", found[0]), (f"I, k {k}", found[1]))
        D_out, I_out = np.empty((7, 4), np.float32), np.empty((7, 4), np.int64)
        index.search(host.items(queries), 4, D=D_out, I=I_out)
        yield from (("D given", D_out), ("I given", I_out))
        none = index.search(host.items(queries[:0]), 3)
        yield from (("no query, D", none[0]), ("no query, I", none[1]))
        yield "reconstruct", host.vectors(index.reconstruct(3))
        path = str(tmp_path / host.__name__)
        host.write(index, path)
        host.write(index, path)
        again = host.read(path)
        yield "after reading", (again.d, again.ntotal, again.metric_type)
        again.add(host.items(queries))
        found = again.search(host.items(queries), 70)
        yield from (("D after reading", found[0]), ("I after reading", found[1]))

    agree(program)
    assert METRIC_INNER_PRODUCT == faiss.METRIC_INNER_PRODUCT


def test_a_program_with_ids(vectors, queries, tmp_path):
    ids = np.arange(60) * 7 + 1000
    selectors = {
        "batch": lambda: faiss.IDSelectorBatch(ids[5:40:3]),
        "range": lambda: faiss.IDSelectorRange(int(ids[10]), int(ids[20])),
        "not": lambda: faiss.IDSelectorNot(faiss.IDSelectorBatch(ids[:30])),
        "nobody": lambda: faiss.IDSelectorBatch(np.array([3], np.int64)),
    }

    def program(host):
        index = host.with_ids(D)
        index.add_with_ids(host.items(vectors), ids)
        for name, make in selectors.items():
            sel = make()
            found = index.search(host.items(queries), 20, params=faiss.SearchParameters(sel=sel))
            yield from ((f"D, {name}", found[0]), (f"I, {name}", found[1]))
        yield "removed", index.remove_ids(ids[[0, 3, 50]])
        yield "removed, unknown among them", index.remove_ids(np.array([ids[1], 5, ids[0]]))
        yield "removed by selector", index.remove_ids(faiss.IDSelectorRange(int(ids[10]), int(ids[20])))
        yield "removed by array selector", index.remove_ids(faiss.IDSelectorArray(ids[30:33]))
        yield "ntotal", index.ntotal
        found = index.search(host.items(queries), 60)
        yield from (("D after removal", found[0]), ("I after removal", found[1]))
        yield "reconstruct", host.vectors(index.reconstruct(int(ids[5])))
        path = str(tmp_path / host.__name__)
        host.write(index, path)
        index = host.read(path)
        index.add_with_ids(host.items(vectors[:1]), ids[:1])  # free again
        found = index.search(host.items(queries), 60)
        yield from (("D after reading", found[0]), ("I after reading", found[1]))
        index.reset()
        yield "ntotal after reset", index.ntotal
        found = index.search(host.items(queries), 2)
        yield from (("D after reset", found[0]), ("I after reset", found[1]))

    agree(program)


def test_range_search(vectors, queries):
    def program(host):
        index = host.with_ids(D)
        index.add_with_ids(host.items(vectors), np.arange(60) + 5)
        for thresh in (3.0, 1e6):
            lims, scores, ids = index.range_search(host.items(queries), thresh)
            yield "lims", lims
            order = np.lexsort((ids, np.repeat(np.arange(7), np.diff(lims).astype(int))))  # faiss's own order is by row
            yield from (("D", scores[order]), ("I", ids[order]))
        sel = faiss.IDSelectorRange(5, 25)
        yield "lims, filtered", index.range_search(host.items(queries), 3.0, params=faiss.SearchParameters(sel=sel))[0]

    agree(program)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda host, index, x: index.search(host.items(x), 0),
        lambda host, index, x: index.search(host.items(x[:, :5]), 3),
        lambda host, index, x: index.search(host.items(x), 3, D=np.empty((7, 2), np.float32)),
        lambda host, index, x: index.add_with_ids(host.items(x[:, :5]), np.arange(7)),
        lambda host, index, x: index.add_with_ids(host.items(x), np.arange(6)),
        lambda host, index, x: index.reconstruct(99),
        lambda host, index, x: host.read("not/there"),
    ],
)
def test_errors_are_of_the_same_kind(wrong, vectors, queries):
    kinds = []
    for host in (Faiss, Ours):
        index = host.with_ids(D)
        index.add_with_ids(host.items(vectors), np.arange(60))
        with pytest.raises((AssertionError, RuntimeError)) as raised:
            wrong(host, index, queries)
        assert index.ntotal == 60
        kinds.append(raised.type)
    assert kinds[0] is kinds[1]


def test_items_of_many_tokens_in_every_form(make_matrices, rng):
    documents, queries = make_matrices(40, dim=D), make_matrices(5, dim=D)
    index, flat = IndexLemur(D), IndexLemur(D)
    index.add_with_ids(documents, np.arange(40) + 100)
    offsets = np.cumsum([0, *map(len, documents)])
    flat.add_with_ids(np.concatenate(documents), np.arange(40) + 100, offsets=offsets)
    scores = np.stack([maxsim(query, documents) for query in queries])
    best = np.argsort(-scores, axis=1)[:, :6]
    for one in (index, flat):
        D_found, I_found = one.search(queries, 6)
        np.testing.assert_array_equal(I_found, best + 100)
        np.testing.assert_allclose(D_found, np.take_along_axis(scores, best, 1), rtol=1e-5)
    bounds = np.cumsum([0, *map(len, queries)])
    np.testing.assert_array_equal(index.search(np.concatenate(queries), 6, offsets=bounds)[1], best + 100)
    np.testing.assert_array_equal(index.reconstruct(107), documents[7])
    batch = flat.reconstruct_batch([139, 100])
    np.testing.assert_array_equal(batch[0], documents[39])
    np.testing.assert_array_equal(batch[1], documents[0])
    assert flat.reconstruct_batch([]) == []
    cube = rng.normal(size=(3, 4, D)).astype(np.float32)
    index.add(cube)
    np.testing.assert_array_equal(index.reconstruct(141), cube[1])  # the next integers
    nothing = index.search(cube[0, :0], 3, offsets=[0])
    assert nothing[1].shape == (0, 3)
    with pytest.raises(ValueError, match="already"):
        index.add_with_ids(cube[:1], [100])
    assert index.ntotal == 43


@pytest.mark.parametrize("call", [lambda index, x: index.add(x), lambda index, x: index.search(x, 1)])
def test_a_matrix_is_refused_for_it_could_be_one_item_or_many(call, vectors):
    index = IndexLemur(D)
    index.add([vectors])
    with pytest.raises(AssertionError, match=r"\[x\] for one item, x\[:, None\]"):
        call(index, vectors)
    assert index.ntotal == 1


def test_our_own_selector_and_parameters(make_matrices):
    documents, queries = make_matrices(50, dim=D), make_matrices(4, dim=D)
    index = IndexLemur(D)
    index.add(documents)
    some = {3, 4, 9, 77}
    _, found = index.search(queries, 5, params=SearchParameters(sel=IDSelectorBatch(some)))
    assert all({*row.tolist()} == {3, 4, 9, -1} for row in found)
    assert IDSelectorBatch(some).is_member(4)
    assert not IDSelectorBatch(some).is_member(5)
    assert index.remove_ids(IDSelectorBatch(some)) == 3
    assert index.remove_ids([0, 1]) == 2
    assert index.ntotal == 45


# Learning

CENTRES = np.random.default_rng(1).normal(size=(30, D))


def clustered(count, seed):
    """Documents of 3 to 8 tokens near a few of 30 centres, so that there is something to learn."""
    random = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        tokens = CENTRES[random.integers(30, size=random.integers(3, 9))] + 0.6 * random.normal(size=(1, D))
        tokens += 0.2 * random.normal(size=tokens.shape)
        documents.append((tokens / np.linalg.norm(tokens, axis=1, keepdims=True)).astype(np.float32))
    return documents


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A trained index without items, written."""
    index = IndexLemur(D, clustered(200, 2), **OPTIONS)
    assert not index.is_trained
    index.train(clustered(300, 3))
    assert index.is_trained
    assert index.ntotal == 0
    path = tmp_path_factory.mktemp("faiss") / "template"
    write_index(index, path)
    return path


def test_trained_on_a_sample_then_other_documents_added(template):
    documents, queries = clustered(500, 4), clustered(30, 5)
    index = read_index(template)
    assert (index.d, index.ntotal, index.is_trained) == (D, 0, True)
    empty = index.search(queries, 2)
    assert (empty[1] == -1).all()
    assert (empty[0] == np.finfo(np.float32).min).all()
    encoder = index.index.encoder
    index.add(documents)
    assert index.index.encoder is encoder  # added with the map as it is
    np.testing.assert_array_equal(index.reconstruct(0), documents[0])  # no document of the sample is there
    scores = np.stack([maxsim(query, documents) for query in queries])
    best = np.argsort(-scores, axis=1)[:, :10]
    found_scores, found = index.search(queries, 10)
    recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(found.tolist(), best.tolist(), strict=True)])
    assert recall > 0.9  # 50 of 500 are reranked
    np.testing.assert_allclose(found_scores, np.take_along_axis(scores, found, 1), rtol=1e-5)
    np.testing.assert_array_equal(index.search(queries, 10, params=SearchParameters(exact=True))[1], best)
    more = SearchParameters(num_candidates=300, efSearch=400)
    wide = index.search(queries, 10, params=more)[1]
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(wide.tolist(), best.tolist(), strict=True)]) >= max(recall, 0.98)
    sel = faiss.IDSelectorRange(0, 60)
    own = faiss.SearchParametersHNSW(sel=sel, efSearch=100)
    np.testing.assert_array_equal(
        index.search(queries, 60, params=own)[1], np.argsort(-scores[:, :60], axis=1)
    )  # k of 60: all that pass
    lims, _, ids = index.range_search(queries, float(scores[0, best[0, 4]]) - 1e-4)
    np.testing.assert_array_equal(ids[: lims[1]], best[0, :5])  # every item is scored


def test_reset_keeps_what_was_learned(template):
    index = read_index(template)
    index.add(clustered(20, 6))
    encoder = index.index.encoder
    index.reset()
    assert (index.ntotal, index.is_trained) == (0, True)
    assert index.index.encoder is encoder
    index.add(clustered(3, 7))
    assert list(index.index) == [0, 1, 2]


def test_written_items_are_there_in_a_new_process(template, tmp_path):
    documents = clustered(60, 8)
    index = read_index(template)
    index.add_with_ids(documents, np.arange(60) * 2)
    write_index(index, tmp_path / "index")
    program = """
import sys, numpy as np
from lemur_ann.adapters.faiss import read_index
index = read_index(sys.argv[1])
assert index.is_trained and index.ntotal == 60 and "torch" not in sys.modules
print(index.search([index.reconstruct(14)], 1)[1][0, 0])
"""
    command = [sys.executable, "-c", program, "index"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["14"]


def test_train_learns_from_what_was_added_where_no_sample_is_given():
    documents, queries = clustered(150, 9), clustered(60, 10)
    index = IndexLemur(D, **{**OPTIONS, "epochs": 0})
    index.add(documents)
    before = index.search(queries[:5], 3, params=SearchParameters(exact=True))
    with pytest.raises(RuntimeError, match="holds 150 items already"):
        index.train(clustered(10, 11))
    index.train(xq_train=queries)
    assert (index.is_trained, index.ntotal) == (True, 150)
    np.testing.assert_array_equal(index.search(queries[:5], 3, params=SearchParameters(num_candidates=150))[1], before[1])


def test_train_without_queries_warns_as_fit_does():
    index = IndexLemur(D, **{**OPTIONS, "epochs": 0})
    with pytest.warns(UserWarning, match="learns from document tokens"):
        index.train(clustered(50, 12))
    assert index.is_trained


def test_an_index_that_never_had_an_item_is_written_and_read(tmp_path):
    write_index(IndexLemur(D), tmp_path / "index")
    index = read_index(tmp_path / "index")
    assert (index.ntotal, index.is_trained, index.d) == (0, False, None)
    index.add(clustered(2, 13))
    assert index.ntotal == 2


def test_ids_that_are_strings_are_not_faiss_s(tmp_path):
    LemurIndex().add(clustered(2, 14), ids=["a", "b"]).save(tmp_path / "index")
    with pytest.raises(TypeError, match="integers"):
        read_index(tmp_path / "index")


def test_what_is_no_id_is_told():
    """NumPy would make integers of them, and another item would go."""
    index = IndexLemur(D)
    items = np.random.default_rng(0).normal(size=(5, 3, D)).astype(np.float32)
    index.add(items)
    mask = np.array([True, False, True, False, False])
    for wrong in ([1.5], mask, mask.tolist(), "12", {1: 2}, np.array([1.0]), ["1"], [None]):
        for call in (index.remove_ids, index.reconstruct_batch, IDSelectorBatch):
            with pytest.raises(TypeError):
                call(wrong)
    for wrong in ([1.5] * 5, np.arange(5.0), mask, set(range(5, 10))):
        with pytest.raises(TypeError):
            index.add_with_ids(items, wrong)
    for wrong in (None, True, 2.0, "2"):
        with pytest.raises(TypeError, match="k must be an integer"):
            index.search(items, wrong)
    with pytest.raises(ValueError, match="below 2"):
        index.remove_ids(np.array([2**63], np.uint64))
    assert index.ntotal == 5
    assert index.remove_ids(np.array([1, 2], np.uint8)) == 2
    assert index.remove_ids(range(1)) == 1
    assert index.remove_ids([]) == index.remove_ids(np.array([])) == 0
