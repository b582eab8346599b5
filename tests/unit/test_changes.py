"""Adding, replacing, deleting, reading back, compacting; and changes beside searches."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest

from lemur_ann import LemurIndex


def table_of(matrices, ids, **metadata):
    index = LemurIndex().add(matrices, ids=ids)
    table = index.get(index.ids())
    for name, values in metadata.items():
        table = table.append_column(name, pa.array(values))
    return table


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_get_gives_what_was_added(make_matrices, dtype):
    documents = make_matrices(30, dtype=dtype)
    table = table_of(documents, list(range(30)), title=[f"t{i}" for i in range(30)])
    index = LemurIndex().add(table)
    got = index.get([7, 3, 7])
    assert got.column_names == ["id", "tokens", "title"]
    assert got.column("id").to_pylist() == [7, 3, 7]
    assert got.column("title").to_pylist() == ["t7", "t3", "t7"]
    np.testing.assert_array_equal(np.array(got.column("tokens")[1].as_py(), dtype), documents[3])
    again = LemurIndex().add(index.get(index.ids()))
    assert again.get(again.ids()).equals(index.get(index.ids()))
    assert len(index.get([])) == 0
    with pytest.raises(KeyError, match="no document has the id 99"):
        index.get([1, 99])


def test_ids_in_their_order(make_matrices):
    index = LemurIndex()
    assert list(index) == []
    assert len(index.get([])) == 0
    documents = make_matrices(6)
    index.add(documents, ids=list("abcdef"))
    index.delete(["b", "e"])
    index.upsert(documents[:2], ids=["c", "z"])
    assert index.ids().to_pylist() == ["a", "d", "f", "c", "z"] == list(index)
    assert ("c" in index, "b" in index, 3 in index, None in index) == (True, False, False, False)


def test_upsert(small_index, make_matrices):
    index, documents, _ = small_index()
    new = make_matrices(3)
    assert index.upsert(table_of(new, ["doc-5", "x", "doc-9"], colour=["red", None, "blue"])) is index
    assert len(index) == 201
    for matrix, name in zip(new, ["doc-5", "x", "doc-9"], strict=True):
        assert index.search(matrix, k=1, num_candidates=150).ids[0] == name
        assert index.search(matrix, k=1, exact=True).ids[0] == name
    hits = index.search(documents[5], k=201, exact=True)
    assert hits.ids.tolist().count("doc-5") == 1
    assert index.metadata(["doc-5", "doc-6"]).column("colour").to_pylist() == ["red", None]
    for bad, error, message in [
        ({"documents": new, "ids": ["q", "q", "r"]}, ValueError, "id 'q' is repeated in row 1"),
        ({"documents": new}, TypeError, "upsert needs to know which documents to replace"),
        ({"documents": iter(new)}, TypeError, "upsert needs to know which documents to replace"),
        ({"documents": new, "ids": [1, 2, 3]}, TypeError, "ids are integers, index has ids that are strings"),
    ]:
        with pytest.raises(error, match=message):
            index.upsert(**bad)
    assert len(index) == 201
    with pytest.raises(ValueError, match="names a document of the index already; delete it first, or upsert"):
        index.add(new[:1], ids=["x"])


def test_upsert_of_a_stream(make_matrices, tmp_path):
    import pyarrow.parquet as pq

    documents = make_matrices(20)
    index = LemurIndex().add(documents, ids=list(range(20)))
    pq.write_table(table_of(make_matrices(4), [3, 19, 50, 51]), tmp_path / "docs.parquet")
    index.upsert(tmp_path / "docs.parquet")
    assert index.ids().to_pylist() == [*range(3), *range(4, 19), 3, 19, 50, 51]


@pytest.mark.parametrize("candidates", ["hnsw", "exact"])
def test_compact(small_index, make_matrices, candidates, monkeypatch):
    monkeypatch.setattr("lemur_ann.candidates.MIN_SCANNED", 50)
    monkeypatch.setattr("lemur_ann.documents.tokens.BYTES_TO_MERGE", 1000)
    index, documents, queries = small_index(candidates=candidates)
    new = make_matrices(40)
    index.add(table_of(new, [f"new-{i}" for i in range(40)], number=list(range(40))))
    gone = [f"doc-{i}" for i in range(0, 200, 3)] + ["new-7"]
    index.delete(gone)
    everything, exact = index.get(index.ids()), index.search(queries, k=20, exact=True)
    before = index.num_tokens
    assert index.compact(num_threads=1) is index
    assert index.num_tokens == before - sum(len(documents[i]) for i in range(0, 200, 3)) - len(new[7])
    assert index.get(index.ids()).equals(everything)
    assert index.search(queries, k=20, exact=True) == exact
    assert index.evaluate(queries, num_candidates=100).recall > 0.95
    assert index.health(queries).recent.num_documents == 39
    assert index.stats().num_deleted == 0
    index.check()
    index.add([documents[0]], ids=["doc-0"])
    assert index.search(documents[0], k=1, num_candidates=150).ids[0] == "doc-0"
    index.delete(list(index))
    index.compact().check()
    assert (len(index), index.num_tokens, len(index.search(queries[0]))) == (0, 0, 0)
    index.add([documents[0]], ids=["doc-0"])
    assert index.search(documents[0]).ids.tolist() == ["doc-0"]


def test_it_compacts_itself(small_index, make_matrices, monkeypatch):
    monkeypatch.setattr("lemur_ann.changes.MIN_DELETED", 50)
    index, documents, _ = small_index(compact_at=0.4)
    index.delete([f"doc-{i}" for i in range(79)])
    assert index._changes.compaction is None
    index.delete("doc-100")
    index._changes.compaction.join()
    assert (index.snapshot.num_rows, len(index)) == (120, 120)
    assert index.search(documents[150], k=1, num_candidates=100).ids[0] == "doc-150"
    never, *_ = small_index(compact_at=None)
    never.delete([f"doc-{i}" for i in range(199)])
    assert never._changes.compaction is None
    with pytest.raises(ValueError, match="compact_at must be above 0 and at most 1, got 3"):
        LemurIndex(compact_at=3)


def test_close_gives_up_a_compaction(small_index, monkeypatch):
    monkeypatch.setattr("lemur_ann.changes.MIN_DELETED", 50)
    monkeypatch.setattr("lemur_ann.searching.snapshot.ROWS_PER_BLOCK", 10)
    index, *_ = small_index()
    started, go_on = threading.Event(), threading.Event()
    take = type(index.snapshot.learned.candidates).take

    def slow(self, rows):
        started.set()
        go_on.wait(10)
        return take(self, rows)

    monkeypatch.setattr("lemur_ann.candidates.hnsw.HnswCandidates.take", slow)
    index.delete([f"doc-{i}" for i in range(100)])
    assert started.wait(10)
    closing = threading.Thread(target=index.close)
    closing.start()
    while not index._changes.is_closing:
        pass
    go_on.set()
    closing.join(10)
    assert not closing.is_alive()
    assert index.snapshot.num_rows == 200


def test_changes_during_a_compaction_are_kept(small_index, make_matrices, monkeypatch):
    index, _, _ = small_index()
    index.delete([f"doc-{i}" for i in range(50)])
    new = make_matrices(3)
    take = type(index.snapshot.learned.candidates).take
    done = []

    def take_and_change(self, rows):
        if not done:
            done.append(True)
            worker = threading.Thread(
                target=lambda: index.add(new, ids=["a", "b", "c"]).upsert(new[:1], ids=["doc-60"]).delete(["b", "doc-70"])
            )
            worker.start()
            worker.join()
        return take(self, rows)

    monkeypatch.setattr("lemur_ann.candidates.hnsw.HnswCandidates.take", take_and_change)
    index.compact()
    assert sorted(index) == sorted(["a", "c", *(f"doc-{i}" for i in range(50, 200) if i != 70)])
    assert index.snapshot.num_rows == 154, "two of these deleted since"
    index.check()
    assert index.search(new[2], k=1, num_candidates=140).ids[0] == "c"
    assert set(index.search(new[0], k=2, num_candidates=140).ids) == {"a", "doc-60"}


@pytest.mark.slow
def test_searches_beside_changes(make_matrices, tmp_path, monkeypatch):
    """What a search returns is what some version of the index would have: ids with the tokens that belong to them."""
    monkeypatch.setattr("lemur_ann.candidates.MIN_SCANNED", 100)
    monkeypatch.setattr("lemur_ann.changes.MIN_DELETED", 60)
    rng = np.random.default_rng(3)
    fixed = make_matrices(150)
    index = LemurIndex.open(tmp_path / "i", num_features=64, epochs=0, rank=15, num_candidates=60, compact_at=0.2)
    index.fit(fixed, queries=fixed[:40], ids=[f"fixed-{i}" for i in range(150)])
    stop, failures, counts = threading.Event(), [], [0, 0]

    def changing_document(round_number):  # of which the score tells the round
        return np.full((1, 16), (1 + round_number) / 1000, np.float32)

    def search(kind):
        last = 0
        try:
            while not stop.is_set():
                i = int(rng.integers(150))
                for doc_id, score in index.search(fixed[i], k=3, filter={f"fixed-{i}"} if kind else None, num_threads=1):
                    if doc_id.startswith("fixed"):
                        expected = (fixed[i] @ fixed[int(doc_id.partition("-")[2])].T).max(1).sum()
                        assert np.isclose(score, expected, rtol=1e-4), (doc_id, score, expected)
                hits = index.search(np.ones((1, 16), np.float32), k=1, filter=["changing"])
                number = round(float(hits.scores[0]) * 1000 / 16) - 1
                assert len(hits) == 1, "it is always there"
                assert number >= last, "and never an older one than before"
                last = number
                assert len(index.get(["changing"]).column("tokens")[0]) == 1
                counts[kind] += 1
        except BaseException as error:
            failures.append(error)

    index.add([changing_document(0)], ids=["changing"])
    threads = [threading.Thread(target=search, args=(kind,)) for kind in (0, 1)]
    for thread in threads:
        thread.start()
    for number in range(1, 60):
        index.upsert(
            [changing_document(number), *make_matrices(3)], ids=["changing", *(f"other-{number % 20}-{i}" for i in range(3))]
        )
        if number == 30:
            index.refit(fixed[:40])
    while not failures and min(counts) < 20:
        pass
    stop.set()
    for thread in threads:
        thread.join()
    index.close()
    assert not failures, failures[0]
    assert len(index) == 151 + 60
    index.check()


def test_the_version_grows_with_every_change(small_index, tmp_path):
    index, documents, _ = small_index()
    seen = [index.version]
    for change in (
        lambda: index.add(documents[:1], ids=["new"]),
        lambda: index.upsert(documents[:1], ids=["new"]),
        lambda: index.delete("new"),
        lambda: index.compact(),
        lambda: index.refit(),
    ):
        change()
        seen.append(index.version)
    assert seen == sorted(set(seen))
    index.search(documents[0])
    index.save(tmp_path / "index")
    assert index.version == seen[-1]
    with LemurIndex.open(tmp_path / "index") as writer, LemurIndex.open(tmp_path / "index", read_only=True) as reader:
        before = reader.version
        writer.delete("doc-0")
        assert reader.version == before
        reader.refresh()
        assert reader.version > before


def test_ids_that_no_index_can_have(small_index):
    index, _, _ = small_index()
    assert 10**30 not in index
    assert None not in index
    assert 10**30 not in LemurIndex().add([np.ones((1, 2), np.float32)])
