"""LemurIndex in shards on Ray: a real session of it, with actors that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray", reason="pip install lemur_ann[ray]")

import ray
from lemur_ann.adapters.ray import Overloaded, ShardedHits, ShardedLemurIndex, ShardUnavailable
from lemur_ann.adapters.ray.documents import shard_of

from lemur_ann import IndexLocked, LemurEncoder, LemurIndex, NotFitted
from lemur_ann.documents.inputs import tokens_from_arrow

START = {
    "address": "local",
    "_node_ip_address": "127.0.0.1",
    "include_dashboard": False,
    "num_cpus": 2,
    "object_store_memory": 200 * 2**20,
    "log_to_driver": False,
}
QUICK = {"num_features": 512, "epochs": 0, "num_sample_tokens": 1024, "num_candidates": 60, "ef_search": 200}

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray", "ignore:.*:DeprecationWarning:ray")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cwd"))  # where its processes look for modules first: not in the source tree
        ray.init(**START)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def queries(demo_data) -> list[np.ndarray]:
    tokens, offsets = tokens_from_arrow(demo_data.queries.column("tokens").combine_chunks(), "tokens")
    return np.split(tokens, offsets[1:-1])


@pytest.fixture(scope="module")
def one(documents, demo_data) -> LemurIndex:
    return LemurIndex(**QUICK).fit(documents, demo_data.training_queries)


@pytest.fixture(scope="module")
def sharded(session, documents, demo_data, tmp_path_factory) -> ShardedLemurIndex:
    """Fitted once, with a reader for each shard; tests leave it as they find it."""
    with ShardedLemurIndex(tmp_path_factory.mktemp("ray") / "index", replicas=2, **QUICK) as index:
        index.fit(documents, demo_data.training_queries)
        yield index


@pytest.fixture
def index(session, tmp_path) -> ShardedLemurIndex:
    """Empty, with 16-dimensional documents to come."""
    with ShardedLemurIndex(tmp_path / "index", num_features=64, epochs=0, rank=15, num_candidates=40) as index:
        yield index


def same_hits(found, expected) -> None:
    """Ids and scores, whatever the order of documents with the same score."""
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        assert np.array_equal(own.scores, other.scores)
        for score in np.unique(other.scores[:-1]):
            assert set(own.ids[own.scores == score]) == set(other.ids[other.scores == score]) or score == other.scores[-1]


def recall(found, exact) -> float:
    return float(np.mean([np.isin(b.ids, a.ids).mean() for a, b in zip(found, exact, strict=True)]))


def actor(index, shard, replica=0):
    return index._shards.actors.shards[shard][replica]


def process_of(index, shard, replica=0) -> int:
    return ray.get(actor(index, shard, replica).__ray_call__.remote(lambda self: os.getpid()))


def ids_in(index, shard) -> list:
    return [doc_id for doc_id in index.ids().to_pylist() if shard_of(doc_id, index.num_shards) == shard]


def test_the_answers_of_one_index(sharded, one, queries, documents):
    exact = one.search(queries, exact=True)
    same_hits(sharded.search(queries, exact=True), exact)
    assert recall(sharded.search(queries), exact) >= recall(one.search(queries), exact)

    hits = sharded.search(queries[0], k=3)
    assert isinstance(hits, ShardedHits)
    assert hits.missing_shards == ()
    assert hits == sharded.search(queries[:1], k=3)[0]
    assert [doc_id for doc_id, _ in hits] == hits.to_arrow().column("id").to_pylist()
    assert sharded.search([]) == []

    some = documents.column("id").to_pylist()[100:200]
    for filter in (pc.field("year") > 2015, some, iter(some), [], pc.field("id") < "b"):
        given = some if not hasattr(filter, "__len__") and not isinstance(filter, pc.Expression) else filter
        same_hits(sharded.search(queries, k=5, filter=filter, exact=True), one.search(queries, k=5, filter=given, exact=True))
    mask = np.arange(600) % 3 == 0
    allowed = np.array(sharded.ids().to_pylist(), object)[mask].tolist()
    same_hits(sharded.search(queries, filter=mask, exact=True), one.search(queries, filter=allowed, exact=True))


def test_what_it_holds(sharded, one, documents):
    assert len(sharded) == 600
    assert sorted(sharded) == sorted(one)
    assert [len(ids_in(sharded, shard)) for shard in range(2)] == [s.num_documents for s in _stats_of_shards(sharded)]
    wanted = documents.column("id").to_pylist()[17:3:-1]
    assert sharded.get(wanted).select(["id", "year", "text"]).equals(one.get(wanted).select(["id", "year", "text"]))
    assert sharded.get(wanted).column("tokens").to_pylist() == one.get(wanted).column("tokens").to_pylist()
    assert wanted[0] in sharded
    assert "nobody" not in sharded
    assert 7 not in sharded
    with pytest.raises(KeyError, match="no document has the id 'nobody'"):
        sharded.get(["nobody", wanted[0]])
    assert sharded.stats().num_tokens == one.stats().num_tokens
    assert sharded.is_fitted
    assert sharded.dim == 128
    assert isinstance(sharded.encoder, LemurEncoder)
    assert "2 shards" in repr(sharded)


def _stats_of_shards(index):
    return [ray.get(actor(index, shard).stats.remote()) for shard in range(index.num_shards)]


def test_errors_are_those_of_one_index(sharded, one, queries):
    bad = queries[0].copy()
    bad[2, 3] = np.nan
    for arguments, settings in (
        ((bad,), {}),
        ((queries[0][:, :5],), {}),
        ((queries[0], 0), {}),
        ((queries[0],), {"filter": [1, 2]}),
        ((queries[0],), {"filter": np.ones(3, bool)}),
        ((queries[0],), {"filter": 7}),
        ((queries[0],), {"filter": "text"}),
        ((queries[0],), {"target_recall": 0.9}),
        ((queries[0],), {"num_candidates": 0}),
    ):
        with pytest.raises((ValueError, TypeError)) as expected:
            one.search(*arguments, **settings)
        with pytest.raises(type(expected.value)) as raised:
            sharded.search(*arguments, **settings)
        assert str(raised.value) == str(expected.value)
    with pytest.raises(ValueError, match="does not fit the columns"):
        sharded.search(queries[0], filter=pc.field("nothing") > 1)
    with pytest.raises(ValueError, match="hedge_after must be a number of seconds above 0, got 0"):
        ShardedLemurIndex("never made", hedge_after=0)
    for timeout in (0, -1.0, "1", True):
        with pytest.raises(ValueError, match="timeout"):
            sharded.search(queries[0], timeout=timeout)


def test_from_a_task_and_an_event_loop(sharded, queries):
    expected = sharded.search(queries)

    @ray.remote
    def elsewhere(index):
        try:
            index.delete(filter=pc.field("year") > 0)
        except PermissionError:
            return len(index), index.dim, index.search(queries), index.search(queries, filter=pc.field("year") > 2000)

    size, dim, found, filtered = ray.get(elsewhere.remote(sharded))
    assert (size, dim) == (600, 128)
    assert found == expected
    assert filtered == sharded.search(queries, filter=pc.field("year") > 2000)

    async def side_by_side():
        mask = sharded.asearch(queries[0], filter=np.ones(600, bool))
        return await asyncio.gather(mask, *(sharded.asearch(query) for query in queries))

    first, *found = asyncio.run(side_by_side())
    assert found == expected
    assert first.scores[0] == expected[0].scores[0]
    with pytest.raises(TypeError, match="unexpected keyword argument 'effort'"):
        asyncio.run(sharded.asearch(queries[0], effort=3))


def test_changes(index, make_matrices):
    documents = make_matrices(60)
    single = LemurIndex()
    index.add(documents[:10])  # numbered over the whole index
    single.add(documents[:10])
    index.add(documents[10:30], ids=range(100, 120))
    single.add(documents[10:30], ids=range(100, 120))
    index.add(documents[30:32])
    single.add(documents[30:32])
    assert sorted(index) == sorted(single) == [*range(10), *range(100, 122)]
    index.upsert(documents[40:50], ids=range(5, 15))
    single.upsert(documents[40:50], ids=range(5, 15))
    assert index.delete(3) == single.delete(3) == 1
    assert index.delete([0, 1, 1]) == single.delete([0, 1, 1]) == 2
    assert index.delete(filter=pc.field("id") >= 115) == single.delete(filter=pc.field("id") >= 115) == 7
    assert index.delete(filter=[101, 102, 5000]) == single.delete(filter=[101, 102, 5000]) == 2
    mask = np.array(index.ids()) == 103
    assert index.delete(filter=mask) == single.delete(filter=[103]) == 1
    assert sorted(index) == sorted(single)
    same_hits(index.search(documents), single.search(documents))
    index.compact()
    assert index.stats().num_deleted == 0
    same_hits(index.search(documents), single.search(documents))
    assert index.delete([]) == 0


def test_bad_changes_change_nothing(index, make_matrices):
    documents = make_matrices(8)
    # all of one shard, so that the other knows nothing of their kind
    ids = [name for name in (f"doc-{i}" for i in range(40)) if shard_of(name, 2) == 0][:8]
    table = pa.table({"id": ids, "tokens": LemurIndex().add(documents).get(range(8)).column("tokens"), "n": range(8)})
    index.add(table)
    other = next(name for name in (f"doc-{i}" for i in range(40)) if shard_of(name, 2) == 1)
    before = index.search(documents), index.ids()
    wrong = documents[0].copy()
    wrong[0, 0] = np.inf
    for bad, settings, message in (
        ([documents[0][:, :5]], {"ids": [other]}, "dim 5, index has dim 16"),
        (documents[:1], {"ids": [7]}, "ids are integers, index has ids that are strings"),
        (documents[:1], {}, "the index holds string ids"),
        (documents[:3], {"ids": [other, "a", other]}, "is repeated in row 2"),
        (documents[:2], {"ids": [other, ids[3]]}, f"id '{ids[3]}' in row 1 names a document of the index already"),
        ([documents[0], wrong], {"ids": ["x", "y"]}, "document 1.* has a NaN"),
        (iter([documents[0], wrong]), {"ids": ["x", "y"]}, "document 1.* has a NaN"),
        (
            table.set_column(2, "n", pa.array(list("abcdefgh"))).set_column(0, "id", pa.array(list("abcdefgh"))),
            {},
            "column 'n'",
        ),
        (documents[:2], {"ids": ["x"]}, "expected one id for each of 2"),
        ("nowhere", {}, "no Parquet file"),
    ):
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
            index.add(bad, **settings)
    with pytest.raises(TypeError, match="upsert needs to know"):
        index.upsert(documents[:1])
    with pytest.raises(KeyError, match=r"no document has the id 'x' \(2 ids missing\)"):
        index.delete(["x", ids[0], "y"])
    with pytest.raises(TypeError, match="one of the two"):
        index.delete()
    for name in ("exact", "allow_partial"):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got str 'no'"):
            index.search(documents[0], **{name: "no"})
    for change in (index.add, index.upsert, index.fit):
        with pytest.raises(TypeError, match="resume must be True or False, got str 'no'"):
            change(documents, ids=ids, resume="no")
    with pytest.raises(ValueError, match="holds 8 documents already"):
        index.fit(documents, documents)
    with pytest.raises(ValueError, match="queries have dim 5, documents have dim 16"):
        index.fit(queries=[documents[0][:, :5]])
    with pytest.raises(NotFitted):
        index.refit(documents)
    with pytest.raises(NotFitted):
        _ = index.encoder
    assert (index.search(documents), index.ids()) == before
    # a column that one shard has is null in the other
    index.add(documents[:1], ids=[other])
    assert index.search(documents[0], filter=pc.field("n") >= 0, k=20).ids.tolist() == [i for i in before[0][0].ids if i in ids]
    assert index.search(documents[0], filter=pc.field("n").is_null()).ids.tolist() == [other]
    assert index.delete(filter=pc.field("n").is_null()) == 1


def test_queries_of_another_dimension_bring_no_documents(index, make_matrices):
    with pytest.raises(ValueError, match="queries have dim 8, documents have dim 16"):
        index.fit(make_matrices(20), make_matrices(5, dim=8))
    assert len(index) == 0
    index.add(make_matrices(1, dim=8))  # nothing is left of them


def test_token_types(index, make_matrices):
    documents = make_matrices(30)
    half = [matrix.astype(np.float16) for matrix in documents]
    with pytest.raises(ValueError, match="the first of a stream decide"):
        index.add(iter([*half[:10], *documents[10:20]]))
    index.add([*half[:10], *documents[10:20]])
    assert index.get([0]).schema.field("tokens").type.value_type.value_type == pa.float32()
    index.add(half[20:])
    same_hits(index.search(documents), LemurIndex().add([*half[:10], *documents[10:20]]).add(half[20:]).search(documents))


def test_learning(index, make_matrices, recwarn):
    documents, queries = make_matrices(300), make_matrices(60)
    with pytest.raises(ValueError, match="needs at least one document"):
        index.fit(queries=queries)
    index.add(documents)
    with pytest.warns(UserWarning, match="queries"):  # the task's own
        index.fit()
    assert index.is_fitted
    learned = LemurEncoder.fit(documents, queries, num_features=64, epochs=0, rank=15)
    index.refit(encoder=learned)
    assert np.array_equal(index.encoder.encode_queries(queries), learned.encode_queries(queries))
    index.refit(queries, rank=7, num_learning_documents=100)
    assert index.encoder.dim == 8
    index.refit()
    assert index.encoder.dim == 16
    with pytest.raises(TypeError, match="unknown options M"):
        index.refit(queries, M=3)
    tuned = index.tune(queries, target_recall=0.8, k=5)
    assert [t.target_recall for t in tuned] == [0.8, 0.8]
    assert recall(index.search(queries, k=5, target_recall=0.8), index.search(queries, k=5, exact=True)) > 0.6


def test_a_late_replica_is_not_waited_for(sharded, queries, monkeypatch):
    """One replica of each shard stands still: a hedged search comes back with what the other says, long before the timeout."""
    expected = [sharded.search(query, exact=True) for query in queries[:4]]
    monkeypatch.setattr(sharded, "_hedge_after", 0.3)
    stopped = [process_of(sharded, shard, 1) for shard in range(2)]
    try:
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        found = [sharded.search(query, exact=True, timeout=30.0) for query in queries[:4]]
        assert [pending[1] for pending in sharded._shards.actors._pending] == [1, 1]  # asked, and answered by the others
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)
    assert found == expected
    while any(pending[1] for pending in sharded._shards.actors._pending):  # what came late counts for nothing
        time.sleep(0.05)
    assert sharded.search(queries[0], exact=True) == expected[0]


def test_refit_while_it_is_searched(sharded, queries, demo_data):
    """One shard after the other has the new map, and every answer is whole."""
    before, exact = sharded.encoder, sharded.search(queries, exact=True)
    recalls, stop = [], threading.Event()

    def search():
        while not stop.is_set():
            recalls.append(recall(sharded.search(queries), exact))

    thread = threading.Thread(target=search)
    thread.start()
    sharded.refit(demo_data.training_queries, seed=5)
    stop.set()
    thread.join()
    assert not np.array_equal(before.encode_queries(queries), sharded.encoder.encode_queries(queries))
    assert len(recalls) > 3
    assert min(recalls) > 0.9


def test_readers_show_a_change_before_it_returns(sharded, queries):
    for number in range(10):
        sharded.upsert([queries[number]], ids=["new"])
        for _ in range(4):  # both replicas
            assert sharded.search(queries[number], k=1).ids[0] == "new"
    assert sharded.delete("new") == 1
    assert all("new" not in sharded.search(queries[9]).ids for _ in range(4))


def test_shards_that_die_under_load(sharded, one, queries, make_matrices):
    """Actors are killed, in two ways, while threads search and one adds: every answer is right, and nothing is lost."""
    exact = one.search(queries, exact=True)
    far = [0.01 * matrix for matrix in make_matrices(200, dim=128, low=2, high=3)]  # of scores below all others
    stop, failures, acknowledged, answers = threading.Event(), [], [], []

    def watched(work):
        def run():
            try:
                while not stop.is_set():
                    work()
            except BaseException as error:
                failures.append(error)

        return threading.Thread(target=run)

    def search():
        same_hits(sharded.search(queries[:5], exact=True), exact[:5])
        answers.append(time.monotonic())

    def add():
        names = [f"far-{len(acknowledged) + i}" for i in range(2)]
        sharded.add(far[len(acknowledged) : len(acknowledged) + 2], ids=names)
        acknowledged.extend(names)

    threads = [watched(search), watched(search), watched(add)]
    for thread in threads:
        thread.start()
    for victim in ((0, 0), (1, 1), (1, 0), (0, 0)):
        time.sleep(0.7)
        if victim == (1, 0):
            os.kill(process_of(sharded, *victim), signal.SIGKILL)
        else:
            ray.kill(actor(sharded, *victim), no_restart=False)
    time.sleep(2.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert len(answers) > 10
    assert acknowledged
    there = {doc_id for doc_id in sharded if doc_id.startswith("far-")}
    assert there == set(acknowledged)
    assert len(sharded) == 600 + len(acknowledged)
    assert sharded.delete(acknowledged) == len(acknowledged)
    same_hits(sharded.search(queries, exact=True), exact)


def test_a_shard_that_stays_away(session, tmp_path, make_matrices):
    documents = make_matrices(40)
    with ShardedLemurIndex(tmp_path / "index", num_shards=3, timeout=2.0) as index:
        index.add(documents)
        ray.kill(actor(index, 1))
        started = time.monotonic()
        with pytest.raises(ShardUnavailable, match=r"no answer from shard 1 \(search, 0\.5 s\)") as raised:
            index.search(documents[0], timeout=0.5)
        assert raised.value.shards == (1,)
        assert time.monotonic() - started < 1.5
        lost = {i for i in range(40) if shard_of(i, 3) == 1}
        hits = index.search(documents[:2], k=40, timeout=0.5, allow_partial=True)
        assert [own.missing_shards for own in hits] == [(1,), (1,)]
        assert set(hits[0].ids.tolist()) == set(range(40)) - lost
        single = LemurIndex()
        single.add([documents[i] for i in range(40) if i not in lost], ids=[i for i in range(40) if i not in lost])
        same_hits(hits, single.search(documents[:2], k=40))
        with pytest.raises(ShardUnavailable):
            asyncio.run(index.asearch(documents[0], timeout=0.5))
        # a filter of ids needs no more shards than hold them
        there = [i for i in range(40) if i not in lost][:3]
        assert len(index.search(documents[0], filter=there, timeout=0.5)) == 3
        with pytest.raises(ShardUnavailable):
            index.add(documents, ids=range(100, 140))
        with pytest.raises(ShardUnavailable):
            len(index)
    with ShardedLemurIndex.load(tmp_path / "index") as index:
        assert sorted(index) == list(range(40))


def test_too_many_searches(session, tmp_path, make_matrices):
    """Past max_pending a search is refused at once, and those before it are answered."""
    documents = make_matrices(40)
    with ShardedLemurIndex(tmp_path / "index", num_shards=1, num_searches=1, max_pending=4) as index:
        index.add(documents)
        blocked = actor(index, 0).__ray_call__.options(concurrency_group="search").remote(lambda self: time.sleep(2.0))
        time.sleep(0.3)

        async def many():
            first = [asyncio.ensure_future(index.asearch(documents[0])) for _ in range(4)]
            await asyncio.sleep(0.1)
            started = time.monotonic()
            refused = await asyncio.gather(*(index.asearch(documents[0]) for _ in range(50)), return_exceptions=True)
            return refused, time.monotonic() - started, await asyncio.gather(*first)

        refused, waited, found = asyncio.run(many())
        ray.get(blocked)
        expected = index.search(documents[0])
        assert {type(error) for error in refused} == {Overloaded}
        assert waited < 1.0
        assert found == [expected] * 4
        # what nobody waits for any more still counts, until it is answered
        blocked = actor(index, 0).__ray_call__.options(concurrency_group="search").remote(lambda self: time.sleep(1.5))
        for _ in range(4):
            with pytest.raises(ShardUnavailable):
                index.search(documents[0], timeout=0.1)
        with pytest.raises(Overloaded, match="max_pending=4"):
            index.search(documents[0])
        ray.get(blocked)
        time.sleep(0.2)
        assert index.search(documents[0]) == expected


def test_opening(index, tmp_path, make_matrices):
    index.add(make_matrices(20))
    with pytest.raises(TypeError, match="options \\(rank\\) are for a new index"):
        ShardedLemurIndex(tmp_path / "index", rank=31)
    with pytest.raises(ValueError, match="num_shards is 3, and the index"):
        ShardedLemurIndex(tmp_path / "index", num_shards=3)
    with pytest.raises(FileNotFoundError, match=r"it has no shards\.json"):
        ShardedLemurIndex.load(tmp_path / "nothing")
    with pytest.raises(TypeError, match="colour"):
        ShardedLemurIndex(tmp_path / "new", colour="red")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        ShardedLemurIndex(tmp_path / "full")
    with pytest.raises(FileExistsError):
        index.save(tmp_path / "full")
    index.save(tmp_path / "copy")
    assert LemurIndex.load(tmp_path / "copy" / "shard-000").ids().to_pylist() == ids_in(index, 0)
    with pytest.raises(IndexLocked):
        ShardedLemurIndex(tmp_path / "index", timeout=0.5)
    index.close()
    with pytest.raises(RuntimeError, match="closed"):
        len(index)
    with ShardedLemurIndex.open(tmp_path / "copy") as copy:
        assert sorted(copy) == list(range(20))
        copy.add(make_matrices(1))
        assert 20 in copy


def in_files(folder: Path, documents: pa.Table, rows: int = 75) -> Path:
    """A folder of Parquet files."""
    folder.mkdir()
    for number, begin in enumerate(range(0, len(documents), rows)):
        pq.write_table(documents[begin : begin + rows], folder / f"part-{number:02}.parquet")
    return folder


def marks_of(folder: Path) -> dict[str, str]:
    try:
        partitions = json.loads((folder / "build.json").read_text())["partitions"]
    except FileNotFoundError:
        return {}
    return {Path(name).name: own["state"] for name, own in partitions.items()}


@pytest.mark.parametrize("form", ["folder", "paths", "arrow", "lance", "ray"])
def test_partitions(session, tmp_path, one, documents, demo_data, queries, form):
    folder = in_files(tmp_path / "files", documents)
    if form == "lance":
        lance = pytest.importorskip("lance", reason="pip install lemur_ann[lancedb]")
        data = lance.write_dataset(documents, tmp_path / "lance", max_rows_per_file=100)
    elif form == "ray":
        ray.data.DataContext.get_current().enable_progress_bars = False
        data = ray.data.read_parquet(str(folder))
    else:
        paths = sorted(folder.iterdir())
        data = {"folder": folder, "paths": paths, "arrow": pa.dataset.dataset(folder)}[form]
    with ShardedLemurIndex(tmp_path / "index", **QUICK) as index:
        if form == "folder":
            stages = []
            index.fit(data, demo_data.training_queries, max_tasks=2, progress=lambda *told: stages.append(told))
            assert ("partitions", 8, None) in stages
            assert ("shards", 2, 2) in stages
            assert recall(index.search(queries), one.search(queries, exact=True)) >= recall(
                one.search(queries), one.search(queries, exact=True)
            )
        else:
            index.add(data)
        assert sorted(index) == sorted(one)
        same_hits(index.search(queries, exact=True), one.search(queries, exact=True))
        found = index.search(queries[0], k=50, filter=pc.field("year") == 2001, exact=True)
        assert found.ids.tolist() == one.search(queries[0], k=50, filter=pc.field("year") == 2001, exact=True).ids.tolist()
        if form != "ray":  # whose blocks are not named
            index.add(data, resume=True)  # nothing is left to do
            with pytest.raises(ValueError, match="names a document of the index already"):
                index.add(data)
            index.upsert(data)
            assert len(index) == 600


def test_partitions_without_ids_are_numbered_over_all(session, tmp_path, documents):
    folder = in_files(tmp_path / "files", documents.select(["tokens", "text"]))
    with ShardedLemurIndex(tmp_path / "index") as index:
        index.add(folder)
        assert sorted(index) == list(range(600))
        assert index.get([80, 3, 599]).column("text").to_pylist() == documents.column("text").take([80, 3, 599]).to_pylist()
        index.add(folder)
        assert sorted(index) == list(range(1200))


def test_a_bad_partition_is_named_and_the_build_goes_on_when_it_is_mended(session, tmp_path, documents):
    folder = in_files(tmp_path / "files", documents)
    bad = folder / "part-05.parquet"
    good = bad.read_bytes()
    pq.write_table(documents[5 * 75 : 6 * 75].set_column(0, "id", documents.column("id")[:75]), bad)
    with ShardedLemurIndex(tmp_path / "index") as index:
        with pytest.raises(ValueError, match=r"part-05\.parquet: id '.*' in row 0 names a document of the index already"):
            index.add(folder, max_tasks=1)
        assert len(index) == 5 * 75
        bad.write_bytes(good)
        index.add(folder, resume=True)
        assert sorted(index) == sorted(documents.column("id").to_pylist())
        pq.write_table(documents[:3], bad)
        with pytest.raises(ValueError, match=r"part-05\.parquet has 3 documents, and had 75 when the build began"):
            index.add(folder, resume=True)
        with pytest.raises(TypeError, match="resume=True goes with partitions"):
            index.add(documents, resume=True)


def test_a_partition_that_one_shard_has_taken_is_made_whole(session, tmp_path, documents):
    folder = in_files(tmp_path / "files", documents[:300])
    with ShardedLemurIndex(tmp_path / "index") as index:
        index.add(folder)
        names = documents.column("id")[75:150].to_pylist()
        index.delete([name for name in names if shard_of(name, 2) == 1])
        marks = json.loads((tmp_path / "index" / "build.json").read_text())
        name = next(name for name in marks["partitions"] if name.endswith("part-01.parquet"))
        marks["partitions"][name]["state"] = "committing"
        (tmp_path / "index" / "build.json").write_text(json.dumps(marks))
        index.add(folder, resume=True)
        assert sorted(index) == sorted(documents.column("id")[:300].to_pylist())
        assert index.get(names).column("text").to_pylist() == documents.column("text")[75:150].to_pylist()


BUILD = """
import sys, ray
from lemur_ann.adapters.ray import ShardedLemurIndex
ray.init(**{start})
ShardedLemurIndex(sys.argv[2], **{options}).add(sys.argv[1], max_tasks=2)
print("built")
"""


def test_a_build_goes_on_after_its_driver_was_killed(session, tmp_path, one, documents, demo_data, queries):
    folder, place = in_files(tmp_path / "files", documents, rows=30), tmp_path / "index"
    program = BUILD.format(start=START, options=QUICK)
    command = [sys.executable, "-I", "-c", program, str(folder), str(place)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as driver:
        while list(marks_of(place).values()).count("done") < 3 and driver.poll() is None:
            time.sleep(0.005)
        driver.kill()
        assert b"built" not in driver.stdout.read()
    with ShardedLemurIndex.load(place) as index:
        there = len(index)
        assert 90 <= there < 600
        assert not list(place.glob("*.staging/*"))
        index.fit(folder, demo_data.training_queries, resume=True, progress=False)
        assert set(marks_of(place).values()) == {"done"}
        assert sorted(index) == sorted(one)
        same_hits(index.search(queries, exact=True), one.search(queries, exact=True))


def test_workers_and_shards_die_during_a_build(session, tmp_path, documents):
    folder = in_files(tmp_path / "files", documents, rows=20)
    raylet = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
    killed, stop = [], threading.Event()

    def is_a_reader(process):
        """A task that reads a partition, in this session."""
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            return parent == raylet and (process / "cmdline").read_bytes().startswith(b"ray::stage")
        except OSError:
            return False

    def kill(index):
        ray.kill(actor(index, 0), no_restart=False)
        while not stop.is_set() and len(killed) < 2:
            for process in filter(is_a_reader, Path("/proc").glob("[0-9]*")):
                os.kill(int(process.name), signal.SIGKILL)
                killed.append(process.name)
            time.sleep(0.05)
        ray.kill(actor(index, 1), no_restart=False)

    with ShardedLemurIndex(tmp_path / "index") as index:
        thread = threading.Thread(target=kill, args=(index,))
        thread.start()
        index.add(folder, max_tasks=2)
        stop.set()
        thread.join()
        assert killed
        assert sorted(index) == sorted(documents.column("id").to_pylist())
        index.close()
    for shard in range(2):
        LemurIndex.load(tmp_path / "index" / f"shard-{shard:03}").check()


def dies_in(index, shard, step, replica=0) -> None:
    """The next time that the actor comes to this step, its process ends."""

    def prepare(self):
        setattr(self, step, lambda *_: os._exit(1))

    ray.get(actor(index, shard, replica).__ray_call__.remote(prepare))


@pytest.mark.parametrize("step", ["_changeable", "_publish"])  # before a change, and after it
def test_a_change_whose_actor_dies_is_made_once(index, make_matrices, step):
    documents, queries = make_matrices(30), make_matrices(10)
    single = LemurIndex(num_features=64, epochs=0, rank=15)

    def change(method, *arguments, **settings):
        dies_in(index, 0, step)
        done = getattr(index, method)(*arguments, **settings)
        expected = getattr(single, method)(*arguments, **settings)
        assert sorted(index) == sorted(single)
        same_hits(index.search(documents, exact=True), single.search(documents, exact=True))
        return done, expected

    change("add", documents[:20])
    change("upsert", documents[20:25], ids=range(5))
    done, expected = change("delete", [1, 3, 4, 17])
    assert done == expected == 4
    done, expected = change("delete", filter=pc.field("id") > 12)
    assert done == expected
    change("fit", queries=queries)
    assert index.is_fitted
    change("compact")
    assert index.stats().num_deleted == 0


def test_another_replica_answers(session, tmp_path, make_matrices):
    documents = make_matrices(30)
    with ShardedLemurIndex(tmp_path / "index", num_shards=1, replicas=3, timeout=5.0) as index:
        index.add(documents)
        expected = index.search(documents)
        ray.kill(actor(index, 0, 1))  # for good
        assert all(index.search(documents) == expected for _ in range(6))
        index.add(documents[:1], ids=[77])
        assert all(77 in index.search(documents[0]).ids for _ in range(6))
        ray.kill(actor(index, 0, 0))  # the one that writes
        assert all(77 in index.search(documents[0]).ids for _ in range(6))
        with pytest.raises(ShardUnavailable):
            index.delete(77)
        assert asyncio.run(index.asearch(documents[0])) == index.search(documents[0])


def test_under_a_url(session, object_store, tmp_path, one, documents, demo_data, queries):
    """Actors die and their disks with them: what is in the object store comes back."""
    url, options = object_store
    settings = {"storage_options": options, "cache": tmp_path / "cache"}
    with ShardedLemurIndex(f"{url}/index", num_shards=1, replicas=2, **settings, **QUICK) as index:
        index.fit(documents[:400], demo_data.training_queries)
        index.add(documents[400:])
        index.delete(documents.column("id")[0].as_py())
        expected = index.search(queries), index.search(queries, exact=True)
        assert len(index) == 599
        for replica in (0, 1):
            os.kill(process_of(index, 0, replica), signal.SIGKILL)
        shutil.rmtree(tmp_path / "cache")
        assert (index.search(queries), index.search(queries, exact=True)) == expected
        dies_in(index, 0, "_publish")  # the change is in the folder of the actor, and nowhere else
        index.upsert(documents[:1])
        assert all(len(index.search(queries[0], exact=True, k=600)) == 600 for _ in range(4))
        index.compact()
        index.save(f"{url}/copy", storage_options=options)
        index.save(tmp_path / "copy")
    shutil.rmtree(tmp_path / "cache")
    exact = one.search(queries, exact=True)
    same_hits(LemurIndex.load(tmp_path / "copy" / "shard-000").search(queries, exact=True), exact)
    for place in (f"{url}/index", f"{url}/copy"):
        with ShardedLemurIndex.load(place, **settings) as index:
            assert index.is_fitted
            same_hits(index.search(queries, exact=True), exact)
    with pytest.raises(FileNotFoundError):
        ShardedLemurIndex.load(f"{url}/nothing", **settings)


def test_a_change_that_cannot_be_published_is_undone_by_the_next(session, tmp_path, make_matrices):
    documents, store = make_matrices(6), tmp_path / "store"
    with ShardedLemurIndex(store.as_uri(), num_shards=1, cache=tmp_path / "cache") as index:
        index.add(documents[:2])
        (store / "shard-000").rename(tmp_path / "away")
        (store / "shard-000").write_text("in the way")
        with pytest.raises(OSError, match="shard-000"):
            index.add(documents[2:4])
        (store / "shard-000").unlink()
        (tmp_path / "away").rename(store / "shard-000")
        index.add(documents[4:], ids=[7, 8])
        assert sorted(index) == [0, 1, 7, 8]


def test_documents_that_were_sent_and_lost_are_sent_again(session, tmp_path, make_matrices):
    """A shard loses its disk between the sending of documents and the change."""
    place = (tmp_path / "store").as_uri()
    with ShardedLemurIndex(place, num_shards=1, cache=tmp_path / "cache") as index:
        index.add(make_matrices(5))
        check, losses = index._changes.check, []

        def lost(staged, joining):
            if not losses:
                losses.append(staged)
                os.kill(process_of(index, 0), signal.SIGKILL)
                shutil.rmtree(tmp_path / "cache")
            check(staged, joining)

        index._changes.check = lost
        index.add(make_matrices(5))
        assert sorted(index) == list(range(10))
        losses.clear()
        with pytest.raises(ShardUnavailable, match="try again"):
            index.add(iter(make_matrices(5)))  # which can be read only once
        assert sorted(index) == list(range(10))
