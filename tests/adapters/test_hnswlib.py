"""The same program with hnswlib's index and with ours, which must agree; and what only multi-vector items have."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

hnswlib = pytest.importorskip("hnswlib", reason="pip install hnswlib")

from lemur_ann.adapters.hnswlib import Index  # noqa: E402

from lemur_ann import CorruptIndex, LemurIndex  # noqa: E402

D = 16
EF = 200  # more than there are items, so that hnswlib finds all of them


class Hnswlib:
    index = staticmethod(hnswlib.Index)

    @staticmethod
    def items(x):
        return x

    @staticmethod
    def vectors(items):
        return np.asarray(items)


class Ours:
    index = staticmethod(Index)

    @staticmethod
    def items(x):
        return x[:, None]

    @staticmethod
    def vectors(items):
        return np.squeeze(items, axis=-2)


def agree(program):
    """Run a program, a generator of (what, value), with both; the values must be the same, and distances nearly."""
    for (what, theirs), (_, ours) in zip(program(Hnswlib), program(Ours), strict=True):
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype, what
            assert ours.shape == theirs.shape, what
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=what)
        else:
            assert ours == theirs, what
            assert type(ours) is type(theirs), what


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(60, D)).astype(np.float32)


@pytest.fixture
def queries(rng):
    return rng.normal(size=(7, D)).astype(np.float32)


def made(host, vectors, labels=None, **how):
    index = host.index(space="ip", dim=D)
    index.init_index(**{"max_elements": 100, **how})
    index.set_ef(EF)
    index.add_items(host.items(vectors), labels)
    return index


def state(index):
    return index.get_current_count(), index.element_count, index.get_max_elements(), index.max_elements


def test_a_program(vectors, queries, tmp_path):
    def program(host):
        index = host.index(space="ip", dim=D)
        yield "before there is one", (index.M, index.ef, index.ef_construction, index.max_elements, index.element_count)
        index.init_index(max_elements=70, M=12, ef_construction=150, random_seed=3)
        yield "attributes", (index.space, index.dim, index.M, index.ef_construction, *state(index))
        index.set_ef(EF)
        index.set_num_threads(1)
        yield "ef", (index.ef, index.num_threads)
        index.ef, index.num_threads = EF - 1, 2
        yield "ef set", (index.ef, index.num_threads)
        yield "add", index.add_items(host.items(vectors[:40]))
        index.add_items(host.items(vectors[40:]), num_threads=1)
        for k in (1, 10, 60):
            labels, distances = index.knn_query(host.items(queries), k=k)
            yield from ((f"labels, k {k}", labels), (f"distances, k {k}", distances))
        even = index.knn_query(host.items(queries), k=30, num_threads=1, filter=lambda label: label % 2 == 0)
        yield from (("filtered labels", even[0]), ("filtered distances", even[1]))
        none = index.knn_query(host.items(queries[:0]), k=3)
        yield from (("no query, labels", none[0]), ("no query, distances", none[1]))
        yield "ids", sorted(index.get_ids_list())
        yield "items", host.vectors(index.get_items([3, 59, 3]))
        yield "types", type(index.get_items([3], return_type="list"))
        yield "state", state(index)
        path = str(tmp_path / host.__name__)
        index.save_index(path)
        index.save_index(path)  # in its own place
        for most in (0, 65, 10):
            again = host.index(space="ip", dim=D)
            again.load_index(path, max_elements=most)
            yield f"loaded for {most}", (again.M, again.ef_construction, *state(again))
        again.set_ef(EF)
        again.add_items(host.items(queries))  # the labels go on
        found = again.knn_query(host.items(queries), k=67)
        yield from (("labels after loading", found[0]), ("distances after loading", found[1]))
        again.resize_index(200)
        yield "resized", state(again)

    agree(program)


def test_labels_that_come_again_are_updated(vectors, queries):
    def program(host):
        index = made(host, vectors[:20], np.arange(20) * 3)
        index.add_items(host.items(vectors[20:25]), np.arange(5) * 3)
        yield "count", index.get_current_count()
        found = index.knn_query(host.items(queries), k=20)
        yield from (("labels", found[0]), ("distances", found[1]))
        yield "item", host.vectors(index.get_items([3]))
        index.add_items(host.items(vectors[:2]), [7, 7], num_threads=1)
        yield "the last of two", host.vectors(index.get_items([7]))
        index.add_items(host.items(vectors[:3]))  # labels 27, 28, 29: one more for each item that came; 27 is there
        yield "ids", sorted(index.get_ids_list())
        index.add_items(host.items(vectors[30:31]), 99)
        yield "one label", host.vectors(index.get_items([99]))

    agree(program)


def test_deleting_and_taking_it_back(vectors, queries, tmp_path):
    def program(host):
        index = made(host, vectors)
        for label in (3, 4, 50):
            yield f"mark {label}", index.mark_deleted(label)
        yield "state", (*state(index), sorted(index.get_ids_list()))
        found = index.knn_query(host.items(queries), k=57)
        yield from (("labels", found[0]), ("distances", found[1]))
        found = index.knn_query(host.items(queries), k=9, filter=lambda label: label < 12, num_threads=1)
        yield from (("filtered labels", found[0]), ("filtered distances", found[1]))
        path = str(tmp_path / host.__name__)
        index.save_index(path)
        index = host.index(space="ip", dim=D)
        index.load_index(path)
        index.set_ef(EF)
        yield "labels after loading", index.knn_query(host.items(queries), k=57)[0]
        yield "unmark", index.unmark_deleted(4)
        index.add_items(host.items(queries[:1]), [3])  # there again
        found = index.knn_query(host.items(queries), k=59)
        yield from (("labels after that", found[0]), ("distances after that", found[1]))
        yield "items", host.vectors(index.get_items([3, 4]))

    agree(program)


def test_new_items_in_the_place_of_deleted_ones(vectors, queries, tmp_path):
    def program(host):
        index = made(host, vectors[:40], max_elements=40, allow_replace_deleted=True)
        for label in range(10):
            index.mark_deleted(label)
        index.add_items(host.items(vectors[40:50]), np.arange(100, 110), replace_deleted=True)
        yield "ids", sorted(index.get_ids_list())
        yield "state", state(index)
        found = index.knn_query(host.items(queries), k=40)
        yield from (("labels", found[0]), ("distances", found[1]))
        index.mark_deleted(105)
        path = str(tmp_path / host.__name__)
        index.save_index(path)
        index = host.index(space="ip", dim=D)
        index.load_index(path, allow_replace_deleted=True)
        index.set_ef(EF)
        index.add_items(host.items(vectors[50:51]), [200], replace_deleted=True)
        yield "ids after loading", sorted(index.get_ids_list())
        yield "labels after loading", index.knn_query(host.items(queries), k=40)[0]

    agree(program)


def full(host, index, x):
    index.resize_index(60)
    index.add_items(host.items(x))


def marked_again(host, index, x):
    replacing = made(host, x, allow_replace_deleted=True)
    replacing.mark_deleted(1)
    replacing.add_items(host.items(x[:1]), [1])


WRONG = {
    "fewer than k": lambda host, index, x: index.knn_query(host.items(x), k=61),
    "fewer than k pass": lambda host, index, x: index.knn_query(host.items(x), k=3, filter=lambda label: label < 2),
    "dim of items": lambda host, index, x: index.add_items(host.items(x[:, :5])),
    "labels": lambda host, index, x: index.add_items(host.items(x), [1, 2]),
    "negative label": lambda host, index, x: index.add_items(host.items(x[:1]), [-1]),
    "too many": full,
    "made twice": lambda host, index, x: index.init_index(10),
    "too small": lambda host, index, x: index.resize_index(59),
    "no such item": lambda host, index, x: index.get_items([60]),
    "deleted item": lambda host, index, x: (index.mark_deleted(3), index.get_items([3])),
    "one label": lambda host, index, x: index.get_items(3),
    "return type": lambda host, index, x: index.get_items([3], return_type="tensor"),
    "deleted twice": lambda host, index, x: (index.mark_deleted(3), index.mark_deleted(3)),
    "unknown to delete": lambda host, index, x: index.mark_deleted(60),
    "unknown to take back": lambda host, index, x: index.unmark_deleted(60),
    "not deleted": lambda host, index, x: index.unmark_deleted(3),
    "no replacing": lambda host, index, x: index.add_items(host.items(x), replace_deleted=True),
    "marked again": marked_again,
    "no file": lambda host, index, x: host.index(space="ip", dim=D).load_index("not/there"),
    "space": lambda host, index, x: host.index(space="hamming", dim=D),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_errors_are_of_the_same_kind(wrong, vectors, queries):
    kinds = []
    for host in (Hnswlib, Ours):
        index = made(host, vectors)
        with pytest.raises((RuntimeError, ValueError, OverflowError)) as raised:
            wrong(host, index, queries)
        kinds.append(raised.type)
    assert index.get_current_count() == 60
    assert kinds[0] is kinds[1]


def test_before_there_is_an_index_it_says_so(queries):
    index = Index(space="maxsim", dim=D)  # where hnswlib crashes
    with pytest.raises(RuntimeError, match="init_index or load_index first"):
        index.add_items(queries[:, None])
    with pytest.raises(RuntimeError, match="init_index or load_index first"):
        index.knn_query(queries[:, None])


def test_queries_of_another_dim_are_refused(vectors, queries):
    index = made(Ours, vectors)  # hnswlib reads beyond them
    with pytest.raises(RuntimeError, match=r"expected \(num_tokens, 16\)"):
        index.knn_query(queries[:, None, :5])


def maxsim(query, documents):
    return np.array([(query @ document.T).max(axis=1).sum() for document in documents])


def test_items_of_many_tokens_in_every_form(make_matrices, rng):
    documents, queries = make_matrices(40, dim=D), make_matrices(5, dim=D)
    scores = np.stack([maxsim(query, documents) for query in queries])
    best = np.argsort(-scores, axis=1)[:, :6]
    index = Index("maxsim", D)
    index.init_index(100)
    index.add_items(documents[:20])
    index.add_items(np.concatenate(documents[20:]), offsets=np.cumsum([0, *map(len, documents[20:])]))
    bounds = np.cumsum([0, *map(len, queries)])
    for labels, distances in (index.knn_query(queries, 6), index.knn_query(np.concatenate(queries), 6, offsets=bounds)):
        np.testing.assert_array_equal(labels, best)
        np.testing.assert_allclose(distances, 1 - np.take_along_axis(scores, best, 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(index.get_items([27])[0], documents[27])
    assert index.get_items([27], return_type="list") == [documents[27].tolist()]
    assert index.get_items() == []
    cube = rng.normal(size=(3, 4, D)).astype(np.float32)
    index.add_items(cube, [50, 51, 50])
    np.testing.assert_array_equal(index.get_items([50])[0], cube[2])
    for call in (index.add_items, index.knn_query):
        with pytest.raises(RuntimeError, match=r"\[data\] for one item, data\[:, None\]"):
            call(cube[0])


# Learning

CENTRES = np.random.default_rng(1).normal(size=(30, D))
OPTIONS = {"num_features": 128, "epochs": 2, "rank": 31, "num_candidates": 50, "ef_search": 100}


def clustered(count, seed):
    """Documents of 3 to 8 tokens near a few of 30 centres, so that there is something to learn."""
    random = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        tokens = CENTRES[random.integers(30, size=random.integers(3, 9))] + 0.6 * random.normal(size=(1, D))
        tokens += 0.2 * random.normal(size=tokens.shape)
        documents.append((tokens / np.linalg.norm(tokens, axis=1, keepdims=True)).astype(np.float32))
    return documents


def recall(labels, exact):
    return np.mean([len({*a} & {*b}) / len(b) for a, b in zip(labels.tolist(), exact.tolist(), strict=True)])


def test_it_learns_by_itself_once_there_are_enough_items_and_keeps_that(tmp_path):
    documents, queries = clustered(500, 4), clustered(30, 5)
    index = Index("maxsim", D, training_queries=clustered(200, 2), fit_at=300, **OPTIONS)
    index.init_index(1000)
    assert index.ef == 100
    index.add_items(documents[:299])
    assert not index.index.is_fitted
    scores = np.stack([maxsim(query, documents) for query in queries])
    np.testing.assert_array_equal(index.knn_query(queries, k=10)[0], np.argsort(-scores[:, :299], axis=1)[:, :10])
    index.add_items(documents[299:300])
    assert index.index.is_fitted
    encoder = index.index.encoder
    index.add_items(documents[300:])
    assert index.index.encoder is encoder  # learned once
    best = np.argsort(-scores, axis=1)[:, :10]
    labels, distances = index.knn_query(queries, k=10)
    assert recall(labels, best) > 0.9  # 50 of 500 are reranked
    np.testing.assert_allclose(1 - distances, np.take_along_axis(scores, labels.astype(int), 1), rtol=1e-5, atol=1e-5)
    index.set_ef(500)
    assert recall(index.knn_query(queries, k=10)[0], best) >= recall(labels, best)
    for label in {*best[:, 0].tolist()}:
        index.mark_deleted(label)
    found, _ = index.knn_query(queries, k=5)
    assert not {*found.ravel().tolist()} & {*best[:, 0].tolist()}
    index.save_index(tmp_path / "index")
    program = """
import sys, numpy as np
from lemur_ann.adapters.hnswlib import Index
index = Index("maxsim", 16)
index.load_index("index")
assert index.index.is_fitted and index.ef == 500 and "torch" not in sys.modules
print(*index.knn_query(np.load("query.npy")[None], k=5)[0][0])
"""
    np.save(tmp_path / "query.npy", queries[0])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert [int(label) for label in done.stdout.split()] == found[0].tolist()


def test_fit_learns_when_it_is_called():
    documents, queries = clustered(150, 9), clustered(60, 10)
    index = Index("maxsim", D, **{**OPTIONS, "epochs": 0})
    index.init_index(200)
    index.add_items(documents)
    before = index.knn_query(queries[:5], k=3)
    index.fit(queries)
    assert index.index.is_fitted
    assert index.index.options.M == 16
    assert index.index.options.seed == 100
    assert recall(index.knn_query(queries[:5], k=3)[0], before[0]) > 0.5
    with pytest.warns(UserWarning, match="learns from document tokens"):
        index.fit()


def test_another_dim_is_not_loaded_and_other_files_are_not_replaced(tmp_path):
    index = Index("maxsim", D)
    index.init_index(10)
    index.add_items(clustered(3, 1))
    index.save_index(tmp_path / "index")
    with pytest.raises(RuntimeError, match="dim 16, and this index is for dim 8"):
        Index("maxsim", 8).load_index(tmp_path / "index")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not what save_index writes"):
        index.save_index(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert len(LemurIndex.load(tmp_path / "index" / "index")) == 3  # lemur_ann's own, which its command line reads


def test_items_come_from_many_threads_while_others_search(vectors):
    index = Index("maxsim", D)
    index.init_index(400)
    index.add_items(vectors[:, None])
    threads = [threading.Thread(target=index.add_items, args=(vectors[:10, None],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert index.knn_query(vectors[:3, None], k=60)[0].shape == (3, 60)
    for thread in threads:
        thread.join()
    assert sorted(index.get_ids_list()) == list(range(140))


def test_what_is_no_label_is_told(vectors):
    """1.7 is not 1, and True is not 1 either."""
    index = Index("maxsim", D)
    index.init_index(60)
    index.add_items(vectors[:, None])
    for wrong in (1.7, "1", True, None):
        for call in (index.mark_deleted, index.unmark_deleted):
            with pytest.raises(TypeError, match="a label must be an integer"):
                call(wrong)
    for wrong in ([1.7], ["1"], [True]):
        with pytest.raises(TypeError, match="a label must be an integer"):
            index.get_items(wrong)
    with pytest.raises(TypeError, match="new_size must be an integer"):
        index.resize_index(100.5)
    index.resize_index(np.int64(100))
    index.mark_deleted(np.int64(1))
    assert len(index.get_items(np.array([2, 3], np.uint64))) == 2
    assert 1 not in index.knn_query(vectors[:1, None], k=59)[0]


@pytest.mark.parametrize(
    "data", ["{", "[]", '{"my": "settings"}', '{"max_elements": 5, "ef": null, "next_label": 0, "deleted": ["a"]}']
)
def test_settings_that_are_none(vectors, tmp_path, data):
    index = Index("maxsim", D)
    index.init_index(np.int64(60))
    index.add_items(vectors[:, None])
    index.save_index(tmp_path / "index")
    index.save_index(tmp_path / "index")
    settings = tmp_path / "index" / "hnswlib.json"
    settings.write_text(data)
    with pytest.raises(CorruptIndex, match=r"hnswlib.json cannot be read"):
        Index("maxsim", D).load_index(tmp_path / "index")
    with pytest.raises(FileExistsError, match="not what save_index writes"):  # perhaps somebody else's
        index.save_index(tmp_path / "index")
    assert settings.read_text() == data
    (tmp_path / "site" / "index").mkdir(parents=True)
    (tmp_path / "site" / "index" / "page.html").write_text("mine")
    with pytest.raises(FileExistsError):
        index.save_index(tmp_path / "site")
    assert sorted(path.name for path in (tmp_path / "site").rglob("*")) == ["index", "page.html"]
