"""The first days with an index: it is emptied and filled with something else, or given tables that differ a little."""

from __future__ import annotations

import datetime
import pickle
import sys
import threading
import types

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lemur_ann import LemurIndex, TextIndex
from lemur_ann.candidates.kinds import KINDS
from lemur_ann.changes import Changes
from lemur_ann.encoders import Encoder, as_encoder
from lemur_ann.searching.snapshot import Snapshot

FIT = {"num_features": 64, "epochs": 0, "rank": 15}


def candidates_here():
    for kind in KINDS:
        try:
            LemurIndex(candidates=kind)
        except ImportError:
            continue
        yield kind


# An emptied index


@pytest.fixture(params=["memory", "folder"])
def new_index(request, tmp_path):
    """Makes an index, in memory or on a folder; all are closed at the end."""
    opened = []

    def make(**options):
        if request.param == "memory":
            return LemurIndex(**options)
        opened.append(LemurIndex.open(tmp_path / f"index {len(opened)}", **options))
        return opened[-1]

    yield make
    for index in opened:
        index.close()


def table_of(matrices, ids, **columns):
    plain = LemurIndex().add(matrices, ids=ids)
    table = plain.get(plain.ids())
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table


@pytest.mark.parametrize("how", ["ids", "filter", "compact", "upsert"])
def test_an_emptied_index_takes_anything(how, new_index, make_matrices, tmp_path):
    index = new_index()
    index.add(table_of(make_matrices(20), list(range(20)), year=pa.array(["2001"] * 20)))
    if how == "filter":
        assert index.delete(filter=pc.field("id") >= 0) == 20
    else:
        assert index.delete(range(20)) == 20
    if how == "compact":
        index.compact()
    assert (len(index), index.dim, index.num_tokens, index.ids().to_pylist()) == (0, None, 0, [])
    assert len(index.search(np.ones((2, 5), np.float32))) == 0
    other = make_matrices(7, dim=24, dtype=np.float16)
    add = index.upsert if how == "upsert" else index.add
    add(table_of(other, [f"d{i}" for i in range(7)], year=pa.array([1] * 7)))
    assert index.search(other[3], k=1).ids.tolist() == ["d3"]
    assert index.metadata("d3").to_pylist() == [{"id": "d3", "year": 1}]
    index.check()
    index.save(tmp_path / "copy")
    loaded = LemurIndex.load(tmp_path / "copy")
    assert (loaded.dim, loaded.ids().to_pylist()) == (24, index.ids().to_pylist())
    index.delete([*index])
    index.add(make_matrices(3, dim=4))
    assert index.ids().to_pylist() == [0, 1, 2]


def test_the_folder_of_an_emptied_index(make_matrices, tmp_path):
    with LemurIndex.open(tmp_path / "index") as index:
        index.add(make_matrices(20))
        reader = LemurIndex.open(tmp_path / "index", read_only=True)
        index.delete([*index])
        assert {path.name for path in (tmp_path / "index").iterdir()} == {"manifest.json", "writer.lock"}
        assert len(reader) == len(reader.search(make_matrices(1)[0], k=20)) == 20  # of the version that it opened
        assert reader.refresh()
        assert len(reader) == 0
        index.add(make_matrices(5, dim=9), ids=list("abcde"))
        assert reader.refresh()
        assert reader.ids().to_pylist() == list("abcde")
    with LemurIndex.open(tmp_path / "index") as index:
        index.check()
        assert index.dim == 9


@pytest.mark.parametrize("candidates", [*candidates_here()])
def test_a_learned_map_stays(candidates, new_index, make_matrices):
    index = new_index(**FIT, candidates=candidates)
    documents = make_matrices(300)
    index.fit(documents, [d[:3] for d in documents], progress=False)
    fingerprint = index.encoder.fingerprint
    index.delete([*index])
    assert (len(index), index.dim, index.encoder.fingerprint) == (0, 16, fingerprint)
    for call in (index.search, lambda query: index.add([query])):
        with pytest.raises(ValueError, match="has dim 8, index has dim 16"):
            call(np.ones((2, 8), np.float32))
    assert len(index.search(documents[0])) == 0
    index.add(documents, ids=[f"d{i}" for i in range(300)])
    found = index.search(documents[:50], k=1, num_candidates=50)
    assert sum(hits.ids[0] == f"d{i}" for i, hits in enumerate(found)) > 45
    assert index.health(documents[:5], progress=False).recent.num_documents == 300
    index.check()
    index.compact()
    index.refit(progress=False)
    assert index.is_fitted


def test_fit_on_an_emptied_index(new_index, make_matrices):
    index = new_index(**FIT)
    index.add(make_matrices(20))
    index.delete([*index])
    others = make_matrices(30, dim=8)
    index.fit(others, [d[:2] for d in others], ids=[f"d{i}" for i in range(30)], progress=False)
    assert index.search(others[4], k=1, exact=True).ids.tolist() == ["d4"]


def test_an_index_that_an_older_version_emptied(make_matrices):
    """It kept the rows of what was deleted."""
    index = LemurIndex().add(make_matrices(20))
    now = index.snapshot
    deleted = now.deleted.with_rows(np.arange(20))
    index._changes.snapshot = Snapshot(now.store, now.ids.changed(np.arange(20), None, deleted), now.metadata, deleted)
    assert (len(index), index.num_tokens > 0) == (0, True)
    with pytest.raises(ValueError, match="has no tokens"):
        index.add([np.empty((0, 9), np.float32)])
    index.add(make_matrices(3, dim=9), ids=list("abc"))
    assert (index.dim, index.ids().to_pylist(), index._changes.beginnings) == (9, list("abc"), 1)
    index.check()


def during(monkeypatch, name, meanwhile):
    """``meanwhile`` happens in another thread within the first call of a function."""
    import lemur_ann.changes as module

    before, calls = getattr(module, name), []

    def patched(*args, **kwargs):
        result = before(*args, **kwargs)
        if not calls:
            calls.append(True)
            thread = threading.Thread(target=meanwhile)
            thread.start()
            thread.join()
        return result

    monkeypatch.setattr(module, name, patched)


def test_emptied_while_it_learns(new_index, make_matrices, monkeypatch):
    index = new_index(**FIT)
    index.add(make_matrices(100))
    others = make_matrices(40)

    def meanwhile():
        index.delete([*index])
        index.add(others, ids=[f"d{i}" for i in range(40)])

    during(monkeypatch, "learned", meanwhile)
    index.fit(queries=make_matrices(30), progress=False)
    assert index.is_fitted
    assert [hits.ids[0] for hits in index.search(others, k=1)] == [f"d{i}" for i in range(40)]
    assert index.health(make_matrices(5), progress=False).recent.num_documents == 40
    index.check()


def test_emptied_and_filled_with_another_dim_while_it_learns(new_index, make_matrices, monkeypatch):
    index = new_index(**FIT)
    index.add(make_matrices(100))
    others = make_matrices(40, dim=8)
    during(monkeypatch, "learned", lambda: (index.delete([*index]), index.add(others)))
    with pytest.raises(ValueError, match="encoder takes tokens of dim 16, documents have dim 8"):
        index.fit(queries=make_matrices(30), progress=False)
    assert not index.is_fitted
    assert index.search(others[7], k=1).ids.tolist() == [7]
    index.check()


@pytest.mark.parametrize("refilled", [False, True])
def test_emptied_while_it_compacts(refilled, new_index, make_matrices, monkeypatch):
    index = new_index(**FIT)
    documents, others = make_matrices(60), make_matrices(9)
    index.fit(documents, documents, progress=False)
    index.delete(range(10))
    compacted = Snapshot.compacted

    def meanwhile():
        index.delete([*index])
        if refilled:
            index.add(others, ids=range(9))

    def slowly(self, *args):
        made = compacted(self, *args)
        thread = threading.Thread(
            target=lambda: (index.delete([*index]), index.add(others, ids=range(9)) if refilled else None)
        )
        thread.start()
        thread.join()
        return made

    monkeypatch.setattr(Snapshot, "compacted", slowly)
    index.compact()
    assert index.ids().to_pylist() == [*range(9 * refilled)]
    assert all(hits.ids[0] == i for i, hits in enumerate(index.search(others, k=1)) if refilled)
    index.check()


def test_a_change_that_fails_empties_nothing(make_matrices, tmp_path, monkeypatch):
    with LemurIndex.open(tmp_path / "index") as index:
        documents = make_matrices(20)
        index.add(documents)
        monkeypatch.setattr(Changes, "publish", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        with pytest.raises(OSError, match="no room"):
            index.delete([*index])
        monkeypatch.undo()
        assert index.search(documents[3], k=1).ids.tolist() == [3]
        index.delete([3])
        index.compact()
        index.check()


# Metadata that differ

DAY, LATE = datetime.datetime(2020, 1, 1), datetime.datetime(3020, 1, 1)
# of the first addition, of the second, and what the index has then
WIDENED = {
    "integers": (pa.array([1, None], pa.int32()), pa.array([2**40, 3]), pa.int64()),
    "signs": (pa.array([1, 2], pa.uint8()), pa.array([-1, 3], pa.int8()), None),
    "floats": (pa.array([1.5, 2], pa.float32()), pa.array([0.1, 2]), pa.float64()),
    "integers that became floats, as of pandas with NaN": (pa.array([2019, 2020]), pa.array([2021.0, None]), pa.float64()),
    "timestamps": (pa.array([DAY] * 2, pa.timestamp("us")), pa.array([DAY] * 2, pa.timestamp("ns")), pa.timestamp("ns")),
    "dates": (pa.array([DAY.date()] * 2), pa.array([DAY.date()] * 2, pa.date64()), pa.date64()),
    "nulls": (pa.nulls(2), pa.array(["a", "b"]), pa.large_string()),
    "nulls and list views": (pa.nulls(2), pa.array([[1], [2]], pa.list_view(pa.int64())), pa.list_view(pa.int64())),
    "lists of nulls": (pa.array([[], [None]]), pa.array([["a"], None]), pa.large_list(pa.large_string())),
    "lists": (pa.array([[1], []], pa.list_(pa.int32())), pa.array([[2**40], [3]]), pa.large_list(pa.int64())),
    "lists of a size": (
        pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1)),
        pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float32(), 2)),
        pa.large_list(pa.float32()),
    ),
    "strings": (pa.array(["a", "b"]), pa.array(["c", None], pa.large_string()), pa.large_string()),
    "string views": (pa.array(["a", "b"], pa.string_view()), pa.array(["c", None]), pa.large_string()),
    "dictionaries": (pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "d"]), pa.large_string()),
    "structs": (
        pa.array([{"a": 1, "b": None}, None], pa.struct([("a", pa.int32()), ("b", pa.null())])),
        pa.array([{"a": 2**40, "b": "x"}] * 2),
        pa.struct([("a", pa.int64()), ("b", pa.large_string())]),
    ),
    "decimals": (pa.array([1, 2]).cast(pa.decimal128(21, 2)), pa.array([3, 4]).cast(pa.decimal128(24, 4)), None),
    "maps": (
        pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int32())),
        pa.array([[("b", 2)]] * 2, pa.map_(pa.string(), pa.int64())),
        None,
    ),
}


@pytest.mark.parametrize("form", ["table", "stream"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("case", WIDENED)
def test_metadata_are_widened(case, order, form, make_matrices, tmp_path):
    first, second = WIDENED[case][:2][::order]
    kind = WIDENED[case][2]
    one, two = (table_of(make_matrices(2), ids, x=values) for ids, values in ((["a", "b"], first), (["c", "d"], second)))
    expected = first.to_pylist() + second.to_pylist()
    with LemurIndex.open(tmp_path / "index") as index:
        for table in (one, two):
            index.add(table if form == "table" else table.to_reader())
        index.save(tmp_path / "copy")
        reader = LemurIndex.open(tmp_path / "index", read_only=True)
    for made in (index, reader, LemurIndex.load(tmp_path / "copy"), LemurIndex.load(tmp_path / "index")):
        column = made.metadata(list("abcd")).column("x")
        assert column.to_pylist() == expected
        assert kind is None or column.type == kind
        made.check()
    if case not in ("string views", "dictionaries"):  # which Arrow does not widen
        together = LemurIndex().add(pa.concat_tables([one, two], promote_options="permissive"))
        assert together.metadata(list("abcd")).column("x").to_pylist() == expected


REFUSED = {
    "text and numbers": (pa.array([1, 2]), pa.array(["1", "2"]), r"is large_string, .* as int64; .*\['x'\].cast\('int64'\)"),
    "numbers and text": (pa.array(["1", "2"]), pa.array([1, 2]), r"what you add, as table\['x'\].cast\('large_string'\)"),
    "floats and text": (pa.array([1.0, 2]), pa.array(["1", "2"]), r"\['x'\].cast\('double'\)"),
    "text and bytes": (pa.array(["a", "b"]), pa.array([b"a", b"b"]), "is large_binary, index has it as large_string"),
    "lists of both": (pa.array([["a"], ["b"]]), pa.array([[b"a"], [b"b"]]), r"index.metadata\(\[\]\).schema.field\('x'\).type"),
    "decimals and floats": (
        pa.array([1, 2]).cast(pa.decimal128(21, 2)),
        pa.array([1.0, 2]),
        r"\.cast\(pa.decimal128\(21, 2\)\)",
    ),
    "truth and numbers": (pa.array([True, False]), pa.array([1, 2]), r"cast\('bool'\)"),
    "days and text": (pa.array([DAY.date()] * 2), pa.array(["2020-01-01"] * 2), r"cast\('date32\[day\]'\)"),
    "with and without zone": (
        pa.array([DAY] * 2, pa.timestamp("us", "UTC")),
        pa.array([DAY] * 2, pa.timestamp("us")),
        r"\.cast\(pa.timestamp\('us', 'UTC'\)\)",
    ),
    "integers that no float holds": (pa.array([2**60 + 1, 2]), pa.array([1.0, 2]), "ValueError: other documents need double"),
    "times beyond": (
        pa.array([LATE] * 2, pa.timestamp("us")),
        pa.array([DAY] * 2, pa.timestamp("ns")),
        r"ValueError: is timestamp\[us\], other documents need timestamp\[ns\], and not all values fit",
    ),
}


@pytest.mark.parametrize("form", ["table", "stream"])
@pytest.mark.parametrize("case", REFUSED)
def test_metadata_that_do_not_fit_are_named(case, form, make_matrices):
    first, second, message = REFUSED[case]
    index = LemurIndex().add(table_of(make_matrices(2), ["a", "b"], x=first))
    table = table_of(make_matrices(2), ["c", "d"], x=second)
    before = index.metadata(["a", "b"])
    with pytest.raises(ValueError if message.startswith("ValueError") else TypeError, match="metadata column 'x' ") as caught:
        index.add(table if form == "table" else table.to_reader())
    caught.match(message.removeprefix("ValueError: "))
    assert index.metadata([*index]).equals(before)


def test_the_cast_that_a_message_names_is_the_one_to_write(make_matrices):
    index = LemurIndex().add(table_of(make_matrices(2), ["a", "b"], x=pa.array([1, 2])))
    table = table_of(make_matrices(2), ["c", "d"], x=pa.array(["3", "4"]))
    with pytest.raises(TypeError) as caught:
        index.add(table)
    cast = str(caught.value).partition("cast what you add, as ")[2].partition(", or ")[0]
    index.add(table.set_column(2, "x", eval(cast, {"table": table, "pa": pa})))
    assert index.metadata([*index]).column("x").to_pylist() == [1, 2, 3, 4]


def test_a_widened_column_is_filtered_and_compacted(new_index, make_matrices):
    index = new_index()
    index.add(table_of(make_matrices(20), list(range(20)), year=pa.array([2000 + i for i in range(20)], pa.int16())))
    index.add(table_of(make_matrices(20), list(range(20, 40)), year=pa.array([10**6 + i for i in range(20)])))
    index.add(table_of(make_matrices(20), list(range(40, 60)), year=pa.array([0.5] * 20)))
    assert len(index.search(make_matrices(1)[0], k=60, filter=pc.field("year") > 2009.5)) == 30
    assert index.delete(filter=pc.field("year") < 1) == 20
    index.compact()
    index.check()
    assert index.metadata([3, 23]).column("year").to_pylist() == [2003, 10**6 + 3]


# Pickles


def encode(texts):
    return [np.stack([np.random.default_rng(list(word.encode())).normal(size=16) for word in text.split()]) for text in texts]


def words(texts):
    return [text.split() for text in texts]


class Model:
    def encode_query(self, texts):
        return encode(texts)

    encode_document = encode_query


@pytest.mark.parametrize(
    "encoder", [(encode, encode), Encoder(encode, encode, words, words), Model()], ids=["pair", "all", "model"]
)
def test_a_text_index_is_pickled(encoder, tmp_path):
    with LemurIndex.open(tmp_path / "index") as index:
        texts = TextIndex(encoder, index, batch_size=7, fit_at=None).add(["a red fox", "a blue whale"], ids=["fox", "whale"])
        copy = pickle.loads(pickle.dumps(texts))
    assert copy.search("whale", k=1) == texts.search("whale", k=1)
    assert (copy.batch_size, copy.fit_at, len(copy)) == (7, None, 2)
    with pytest.raises(TypeError, match="save it first, or open it on a directory"):
        pickle.dumps(TextIndex(encoder).add(["a red fox"]))


class Stand:
    """The methods of the models below."""

    def encode(self, texts, **_):
        return encode(texts)

    encode_query = encode_document = query_embed = embed = encode


@pytest.mark.parametrize("package", ["pylate", "sentence_transformers", "fastembed"])
def test_encoders_of_other_libraries_are_pickled(package, monkeypatch):
    """Of a stand-in from a module of that name."""
    module = types.ModuleType(f"{package}.models")
    module.Model = type("Model", (Stand,), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    made = pickle.loads(pickle.dumps(as_encoder(module.Model())))
    for side in (made.queries, made.documents):
        np.testing.assert_array_equal(side(["a red fox"])[0], encode(["a red fox"])[0])


# Texts with something else among them


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["one", None], "NoneType in row 1"),
        ([None], "NoneType in row 0"),
        (["one", "two", float("nan")], "float nan in row 2"),
        (["one", 2], "int 2 in row 1"),
        (["one", b"two"], "bytes b'two' in row 1"),
        (pa.array(["one", None]), "NoneType in row 1"),
        (np.array(["one", None], object), "NoneType in row 1"),
    ],
)
def test_what_is_no_text_is_named_by_its_row(given, shown):
    texts = TextIndex((encode, encode)).add(["one", "two"])
    for name, call in (("documents", texts.add), ("documents", texts.upsert), ("queries", texts.search)):
        with pytest.raises(TypeError, match=f"^{name} must be strings, got {shown}"):
            call(given)
    with pytest.raises(TypeError, match=f"^queries must be strings, got {shown}"):
        texts.fit(queries=given)
    assert len(texts) == 2


def test_a_bad_answer_of_an_encoder_is_named_by_its_rows():
    def broken(given):
        return [None if text == "bad" else encode([text])[0] for text in given]

    texts = TextIndex((broken, broken), batch_size=2)
    with pytest.raises(TypeError, match=r"document encoder, for the texts from row 2 on: documents\[1\] must be a num"):
        texts.add(["one", "two", "three", "bad"])
    texts.add(["one"])
    with pytest.raises(TypeError, match=r"query encoder: queries\[0\] must be a numeric array, got NoneType"):
        texts.search("bad")
    assert len(texts) == 1


def test_names_of_arguments_are_checked_before_the_work():
    texts = TextIndex((encode, encode))
    with pytest.raises(TypeError, match=r"TextIndex.fit\(\) got an unexpected .* 'num_thread'; did you mean 'num_threads'\?"):
        texts.fit(["one"], ["one"], num_thread=2)
    assert len(texts) == 0
