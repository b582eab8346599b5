"""What every database does alike. A new one is a generator in ``ENGINES``, and the whole contract runs over it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lemur_ann import LemurEncoder, LemurIndex

pytestmark = pytest.mark.filterwarnings("ignore:legacy embedding function config:DeprecationWarning")  # Chroma's

NAMES = (f"contract_{number}" for number in itertools.count())


@dataclass
class Engine:
    """How to make and open what is tested, of string ids and a column ``year``, by name.

    Attributes:
        create, open: of a name and an encoder; what was created is empty.
        year_is: the engine's filter.
        is_float16: whether tokens are stored so.
        takes_integers: whether ids may be integers beside strings.
        takes_nul: whether ids may have the character NUL.
        empty_filters: which let everything through.
    """

    create: Callable[[str, LemurEncoder], Any]
    open: Callable[[str, LemurEncoder], Any]
    year_is: Callable[[int], Any]
    is_float16: bool = True
    takes_integers: bool = False
    takes_nul: bool = True
    empty_filters: tuple[Any, ...] = ("", "  ")


def chroma(folder: Path, server: Callable, *, beside: bool = False):
    chromadb = pytest.importorskip("chromadb", reason="pip install lemur_ann[chroma]")
    from chromadb.config import Settings
    from lemur_ann.adapters.chroma import LemurCollection

    client = chromadb.PersistentClient(str(folder / "db"), settings=Settings(anonymized_telemetry=False))
    indexes: dict[str, LemurIndex] = {}

    def create(name: str, encoder: LemurEncoder) -> LemurCollection:
        if beside and name not in indexes:
            indexes[name] = LemurIndex.open(folder / name, candidates="exact", token_codes=None)
        return LemurCollection.create(client, name, encoder, tokens=indexes.get(name))

    yield Engine(
        create,
        lambda name, encoder: LemurCollection(client, name, encoder, tokens=indexes.get(name)),
        lambda year: {"year": year},
        empty_filters=({},),
    )
    for index in indexes.values():
        index.close()


def chroma_beside(folder: Path, server: Callable):
    yield from chroma(folder, server, beside=True)


def lancedb(folder: Path, server: Callable):
    lancedb = pytest.importorskip("lancedb", reason="pip install lemur_ann[lancedb]")
    pytest.importorskip("lance", reason="pip install lemur_ann[lancedb]")
    from lemur_ann.adapters.lancedb import LemurTable

    db = lancedb.connect(folder)
    schema = pa.schema([("id", pa.string()), ("tokens", pa.list_(pa.list_(pa.float16(), 8))), ("year", pa.int64())])
    yield Engine(
        lambda name, encoder: LemurTable.create(db, name, encoder, schema=schema),
        lambda name, encoder: LemurTable(db, name, encoder),
        lambda year: f"year = {year}",
    )


def milvus(folder: Path, server: Callable):
    pymilvus = pytest.importorskip("pymilvus", reason="pip install lemur_ann[milvus]")
    pytest.importorskip("milvus_lite", reason="pip install lemur_ann[milvus]")
    from lemur_ann.adapters.milvus import LemurCollection

    client = pymilvus.MilvusClient(str(folder / "contract.db"))
    schema = pa.schema([("id", pa.string()), ("year", pa.int64())])
    yield Engine(
        lambda name, encoder: LemurCollection.create(client, name, encoder, schema),
        lambda name, encoder: LemurCollection(client, name, encoder),
        lambda year: f"year == {year}",
    )
    client.close()


def pgvector(folder: Path, server: Callable, *, tokens: str = "bytea"):
    psycopg = pytest.importorskip("psycopg", reason="pip install lemur_ann[pgvector]")
    from lemur_ann.adapters.pgvector import LemurTable

    schema = pa.schema([("id", pa.string()), ("year", pa.int64())])
    with psycopg.connect(server("postgres_server").get_uri(), autocommit=True) as connection:
        yield Engine(
            lambda name, encoder: LemurTable.create(connection, name, encoder, schema, tokens=tokens),
            lambda name, encoder: LemurTable(connection, name, encoder),
            lambda year: f"year = {year}",
            is_float16=tokens != "vector",
            takes_nul=False,
        )


def pgvector_arrays(folder: Path, server: Callable):
    yield from pgvector(folder, server, tokens="vector")


def qdrant_client(folder: Path, server: Callable):
    qdrant = pytest.importorskip("qdrant_client", reason="pip install lemur_ann[qdrant]")
    from lemur_ann.adapters.qdrant import LemurCollection

    client, models = qdrant.QdrantClient(":memory:"), qdrant.models
    yield Engine(
        lambda name, encoder: LemurCollection.create(client, name, encoder),
        lambda name, encoder: LemurCollection(client, name, encoder),
        lambda year: models.Filter(must=[models.FieldCondition(key="year", match=models.MatchValue(value=year))]),
        is_float16=False,
        takes_integers=True,
        empty_filters=({}, models.Filter(), models.Filter(must=[])),
    )


def qdrant_edge(folder: Path, server: Callable):
    edge = pytest.importorskip("qdrant_edge", reason="pip install lemur_ann[qdrant]")
    from lemur_ann.adapters.qdrant import LemurShard

    shards: dict[str, LemurShard] = {}

    def create(name: str, encoder: LemurEncoder) -> LemurShard:
        shards[name] = LemurShard.create(folder / name, encoder)
        return shards[name]

    yield Engine(
        create,
        lambda name, encoder: LemurShard(shards[name].shard, encoder),
        lambda year: edge.Filter(must=[edge.FieldCondition("year", match=edge.MatchValue(year))]),
        is_float16=False,
        takes_integers=True,
        empty_filters=(edge.Filter(), edge.Filter(must=[])),
    )
    for shard in shards.values():
        shard.close()


ENGINES = [chroma, chroma_beside, lancedb, milvus, pgvector, pgvector_arrays, qdrant_client, qdrant_edge]


@pytest.fixture(scope="module", params=ENGINES, ids=lambda engine: engine.__name__)
def engine(request, tmp_path_factory):
    yield from request.param(tmp_path_factory.mktemp(request.param.__name__), request.getfixturevalue)


def matrices(seed: int, count: int, dim: int = 8) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(int(random.integers(2, 6)), dim)).astype(np.float32) for _ in range(count)]


def table(ids: list, tokens: list[np.ndarray], **columns) -> pa.Table:
    kind = pa.list_(pa.list_(pa.float32(), tokens[0].shape[1]))
    return pa.table({"id": ids, "tokens": pa.array([matrix.tolist() for matrix in tokens], kind), **columns})


@pytest.fixture(scope="module")
def maps() -> list[LemurEncoder]:
    """Two of them, of the same dims."""
    return [LemurEncoder.fit(matrices(i, 100), matrices(i + 5, 60), num_features=64, epochs=1, rank=15) for i in (1, 2)]


@pytest.fixture
def empty(engine, maps):
    return engine.create(next(NAMES), maps[0])


IDS = [f"it's {number}" for number in range(30)]
TOKENS = matrices(9, 30)
YEARS = [2000 + number % 10 for number in range(30)]


@pytest.fixture(scope="module")
def filled(engine, maps):
    """Thirty documents, three of each year; tests must not change it."""
    made = engine.create(next(NAMES), maps[0])
    made.add(table(IDS, TOKENS, year=YEARS))
    return made


def test_scores_are_exact(filled):
    exact = LemurIndex().add(TOKENS, ids=IDS).search(TOKENS, k=30)
    for found, best in zip(filled.search(TOKENS, k=30), exact, strict=True):
        assert found.scores.dtype == np.float32
        assert found.ids.dtype == object
        assert np.all(np.diff(found.scores) <= 0)
        scores = dict(best)
        np.testing.assert_allclose(found.scores, [scores[doc_id] for doc_id in found.ids], rtol=1e-2, atol=1e-2)
        assert len(set(found.ids)) == 30
        assert found.ids[0] == best.ids[0]


def test_one_query_a_batch_and_a_flat_matrix(filled):
    batch = filled.search(TOKENS[:4], 3)
    assert [len(hits) for hits in batch] == [3] * 4
    flat, offsets = np.concatenate(TOKENS[:4]), np.cumsum([0, *map(len, TOKENS[:4])])
    for found in (
        [filled.search(query, 3) for query in TOKENS[:4]],
        filled.search(flat, 3, offsets=offsets),
        filled.search(table(IDS[:4], TOKENS[:4]), 3),
        filled.search(TOKENS[:4], 3, num_threads=1),
    ):
        assert [hits.ids.tolist() for hits in found] == [hits.ids.tolist() for hits in batch]
        for hits, expected in zip(found, batch, strict=True):
            np.testing.assert_allclose(hits.scores, expected.scores, rtol=1e-5)
    one = filled.search(flat[: offsets[1]], 3, offsets=[0, offsets[1]])
    assert [hits.ids.tolist() for hits in one] == [batch[0].ids.tolist()]
    assert filled.search([], 3) == []


def test_fewer_only_where_fewer_match(filled, engine):
    for query in TOKENS[:3]:
        few = filled.search(query, 10, num_candidates=1, filter=engine.year_is(2003))
        assert sorted(few.ids) == sorted(IDS[number] for number in (3, 13, 23))
        assert len(filled.search(query, 100)) == 30
        none = filled.search(query, filter=engine.year_is(1))
        assert len(none) == 0
        assert none.scores.dtype == np.float32


def test_looks_without_the_index_only_where_too_few_come(filled, monkeypatch):
    """A second look compares all that match: it is for queries that found fewer than k, or where the engine's page says so."""
    stages = getattr(filled, "_points", filled)
    name = "_asked" if hasattr(stages, "_asked") else "_candidates"
    plain, calls = getattr(stages, name), []

    def counted(*arguments, **named):
        calls.append(arguments)
        return plain(*arguments, **named)

    monkeypatch.setattr(stages, name, counted)
    filled.search(TOKENS[0], 10, num_candidates=25)
    assert len(calls) == 1
    filled.search(TOKENS[0], 10, num_candidates=200)  # of 30 documents
    assert len(calls) == 2 + stages.wants_all


def test_what_search_refuses(filled):
    for arguments, kind, message in (
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": "ten"}, TypeError, "k must be an integer, got str"),
        ({"num_candidates": 0}, ValueError, "num_candidates must be at least 1, got 0"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
    ):
        with pytest.raises(kind, match=message):
            filled.search(TOKENS[0], **arguments)
    with pytest.raises(ValueError, match="has dim 7, index has dim 8"):
        filled.search(np.ones((3, 7), np.float32))


def test_documents_come_and_go(empty, engine):
    tokens = matrices(3, 12)
    assert len(empty) == len(empty.search(tokens[0])) == 0
    empty.add(table(IDS[:10], tokens[:10], year=YEARS[:10]))
    assert len(empty) == 10
    assert empty.search(tokens[4], k=1).ids.tolist() == [IDS[4]]
    empty.upsert(table([IDS[4], "new"], tokens[10:], year=[1999, 1999]))
    assert len(empty) == 11
    hits = empty.search(tokens[10], k=1)
    assert hits.ids.tolist() == [IDS[4]]
    assert hits.scores[0] == pytest.approx(float((tokens[10] @ tokens[10].T).max(1).sum()), rel=2e-3)
    assert sorted(empty.search(tokens[0], filter=engine.year_is(1999)).ids) == sorted([IDS[4], "new"])
    empty.add(tokens[:1], ids=["without a year"])
    assert "without a year" in empty.search(tokens[0], k=2).ids
    assert len(empty.search(tokens[0], k=50)) == 12


def test_delete_says_how_many_went(empty, engine):
    empty.add(table(IDS, TOKENS, year=YEARS))
    assert empty.delete([IDS[5], "nobody", IDS[5]]) == 1
    assert empty.delete(IDS[6]) == 1
    assert empty.delete([]) == 0
    assert empty.delete("nobody") == 0
    assert len(empty) == 28
    assert not {IDS[5], IDS[6]} & set(empty.search(TOKENS[5], k=50).ids)
    assert empty.delete(filter=engine.year_is(2001)) == 3
    assert empty.delete(filter=engine.year_is(2001)) == 0
    assert len(empty) == 25
    assert empty.delete(IDS) == 25
    assert len(empty) == len(empty.search(TOKENS[0])) == 0
    for wrong in ({}, {"ids": [IDS[0]], "filter": engine.year_is(2001)}):
        with pytest.raises(TypeError, match="delete takes either ids or filter=, one of them"):
            empty.delete(**wrong)


def test_an_id_that_is_there_is_not_added(empty):
    empty.add(TOKENS[:3], ids=IDS[:3])
    with pytest.raises(ValueError, match='id "it\'s 2" is there already; upsert replaces'):
        empty.add(TOKENS[3:6], ids=["new", IDS[2], "newer"])
    assert len(empty) == 3
    assert sorted(empty.search(TOKENS[0], k=10).ids) == IDS[:3]
    empty.upsert(TOKENS[3:6], ids=["new", IDS[2], "newer"])
    assert len(empty) == 5


def test_bad_documents_change_nothing(empty, engine):
    empty.add(TOKENS[:1], ids=["there"])
    bad = TOKENS[2].copy()
    bad[0, 0] = np.nan
    late = table(["a", "b", "c"], [TOKENS[0], TOKENS[1], bad])
    cases = [
        (lambda: [TOKENS[0], np.ones((3, 7), np.float32)], ["a", "b"], ValueError, "dim 7"),
        (lambda: [np.ones((3, 7), np.float32)], ["a"], ValueError, "has dim 7, index has dim 8"),
        (lambda: [TOKENS[0], bad], ["a", "b"], ValueError, "'b'.*NaN"),
        (lambda: late.to_reader(max_chunksize=1), None, ValueError, "'c'"),
        (
            lambda: table(["a", "b", "a"], TOKENS[:3]).to_reader(max_chunksize=1),
            None,
            ValueError,
            "id 'a' is repeated, expected",
        ),
        (lambda: TOKENS[:2], ["a", "a"], ValueError, "id 'a' is repeated, expected each id once"),
        (lambda: TOKENS[:2], None, ValueError, "documents have no ids: pass ids=, or a column 'id' in Arrow data"),
    ]
    if engine.is_float16:
        message = "tokens are stored as float16, and a value is beyond its range, 65504"
        cases.append((lambda: [TOKENS[0], np.full((1, 8), 1e6, np.float32)], ["a", "b"], ValueError, message))
    if not engine.takes_integers:
        cases.append((lambda: TOKENS[:2], [1, 2], TypeError, "ids must be strings, got int64"))
    for documents, ids, kind, message in cases:
        for write in (empty.add, empty.upsert):
            with pytest.raises(kind, match=message):
                write(documents(), ids=ids)
    if not engine.takes_integers:
        with pytest.raises(TypeError, match="ids must be strings, got int64"):
            empty.delete([1])
    assert len(empty) == 1
    assert empty.search(TOKENS[0], k=5).ids.tolist() == ["there"]


def test_large_writes_are_split(empty, monkeypatch):
    monkeypatch.setattr(type(empty), "bytes_per_request", 400)
    made = []
    parts = type(empty)._parts

    def watched(self, batches):
        for part in parts(self, batches):
            made.append(len(part.ids))
            yield part

    monkeypatch.setattr(type(empty), "_parts", watched)
    empty.add(TOKENS, ids=IDS)
    assert sum(made) == len(empty) == 30
    assert len(made) > 8
    assert [hits.ids[0] for hits in empty.search(TOKENS, k=1)] == [hits.ids[0] for hits in exact_of(TOKENS)]


def exact_of(tokens: list[np.ndarray]) -> list:
    return LemurIndex().add(TOKENS, ids=IDS).search(tokens, k=1)


def test_another_map_is_refused(engine, maps):
    name = next(NAMES)
    made = engine.create(name, maps[0])
    made.add(TOKENS, ids=IDS)
    expected = made.search(TOKENS[0], k=5)
    again = engine.open(name, maps[0])
    assert len(again) == 30
    found = again.search(TOKENS[0], k=5)
    assert found.ids.tolist() == expected.ids.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    with pytest.raises(ValueError, match="made by another encoder"):
        engine.open(name, maps[1])
    with pytest.raises(TypeError, match="encoder must be a LemurEncoder, got str"):
        engine.open(name, "map.safetensors")


WEIRD = ["a/b", "..", "'", "it's", 'say "x"', "\\", "new\nline", "cr\rx", "tab\t", "bell\x07", "\u00fc\u221e\u6f22\U0001f642"]
WEIRD += ["e\u0301", "\u00e9", "\u2028", "%s", "100%", "{x}", "$1", "a'; DROP TABLE documents; --", "' OR '1'='1"]
WEIRD += ['" or id != "', " ", "None", "1", "id"]


@pytest.mark.parametrize("kind", ["short", "long", "nul"])
def test_ids_of_any_characters(empty, engine, kind):
    """Whatever is written as an id comes back as it was, and means no other document."""
    ids = {"short": WEIRD, "long": ["x" * 2000, "x" * 1999 + "y", "'\"\\" * 600], "nul": ["nul\0x", "nul", "nul\0y"]}[kind]
    if kind == "nul" and not engine.takes_nul:
        with pytest.raises(Exception, match="NUL"):
            empty.add(TOKENS[:3], ids=ids)
        assert len(empty) == 0
        return
    tokens = matrices(31, len(ids))
    empty.add(tokens, ids=ids)
    assert [hits.ids[0] for hits in empty.search(tokens, k=1)] == ids
    with pytest.raises(ValueError, match="is there already; upsert replaces"):
        empty.add(tokens[:1], ids=ids[-1:])
    empty.upsert(tokens, ids=ids)
    assert len(empty) == len(ids)
    for number, doc_id in enumerate(ids):
        assert empty.delete(doc_id) == 1
        assert len(empty) == len(ids) - 1 - number
        assert empty.delete([doc_id]) == 0


def test_what_is_no_filter_is_told(filled, engine):
    for wrong in (5, True, ["it's 1"], {"it's 1"}, 2.5, np.array([True] * 30), {"year": {"no such": 1}, "operator": "=="}):
        for ask in (filled.delete, lambda filter: filled.search(TOKENS[0], filter=filter)):
            with pytest.raises((TypeError, ValueError), match="filter must be|Expected where"):
                ask(filter=wrong)
    for nothing in engine.empty_filters:
        with pytest.raises(ValueError, match="filter must not be empty|filter has no conditions|Expected where"):
            filled.delete(filter=nothing)
    assert len(filled) == 30


def test_what_is_no_id_is_told(empty):
    empty.add(TOKENS[:3], ids=["a", "b", "c"])
    for wrong in ([None], [True], True, 1.5, [1.5], b"a", [b"a"], [["a"]]):
        with pytest.raises((TypeError, ValueError)):
            empty.delete(wrong)
        with pytest.raises((TypeError, ValueError)):
            empty.add(TOKENS[3:4], ids=wrong)
    for wrong in (["d"], ["d", "e", "f"], ["d", None], [], ["d", 1]):
        with pytest.raises((TypeError, ValueError)):
            empty.add(TOKENS[3:5], ids=wrong)
    assert len(empty) == 3
    assert empty.delete(np.array(["a"])) == empty.delete(np.str_("b")) == empty.delete(pa.array(["c"])) == 1


def test_numbers_of_numpy_are_numbers(filled):
    assert len(filled.search(TOKENS[0], np.int64(3), num_candidates=np.int32(30))) == 3
    for wrong in (None, True, 2.0, np.float32(2), "2"):
        with pytest.raises(TypeError, match="k must be an integer"):
            filled.search(TOKENS[0], wrong)
    with pytest.raises(ValueError, match="k must be at least 1"):
        filled.search(TOKENS[0], -1)


def test_an_addition_that_breaks_off_leaves_nothing(empty, monkeypatch):
    """As where the disk is full, or the server goes away, after some of the documents are written."""
    empty.add(TOKENS[:2], ids=["there", "too"])
    monkeypatch.setattr(type(empty), "bytes_per_request", 400)
    encoded, calls = type(empty)._encoded, []

    def breaks(self, tokens, offsets):
        calls.append(len(offsets))
        if len(calls) == 4:
            raise OSError("no space left on device")
        return encoded(self, tokens, offsets)

    monkeypatch.setattr(type(empty), "_encoded", breaks)
    with pytest.raises(OSError, match="no space left"):
        empty.add(table(IDS, TOKENS, year=YEARS))
    monkeypatch.setattr(type(empty), "_encoded", encoded)
    assert len(empty) == 2
    assert sorted(empty.search(TOKENS[0], k=50).ids) == ["there", "too"]
    empty.add(table(IDS, TOKENS, year=YEARS))
    assert len(empty) == 32


def test_what_has_the_name_stays(engine, maps):
    name = next(NAMES)
    engine.create(name, maps[0]).add(TOKENS, ids=IDS)
    with pytest.raises(Exception, match="already|not empty|must be an empty index"):
        engine.create(name, maps[0])
    assert len(engine.open(name, maps[0])) == 30


def test_two_adapters_of_one_collection(engine, maps):
    name = next(NAMES)
    first = engine.create(name, maps[0])
    second = engine.open(name, maps[0])
    first.add(TOKENS[:10], ids=IDS[:10])
    second.upsert(TOKENS[5:15], ids=IDS[5:15])
    first.delete(IDS[:5])
    second.add(TOKENS[:1], ids=IDS[:1])
    with pytest.raises(ValueError, match="is there already"):
        first.add(TOKENS[:1], ids=IDS[:1])
    assert len(first) == len(second) == 11
    assert set(first.search(TOKENS[0], k=50).ids) == set(second.search(TOKENS[0], k=50).ids) == {IDS[0], *IDS[5:15]}
