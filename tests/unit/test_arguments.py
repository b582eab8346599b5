"""What people pass by habit from pandas, NumPy, torch and other indexes: taken rightly, or refused with the form to write."""

from __future__ import annotations

import collections
import enum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from lemur_ann import LemurEncoder, LemurIndex, TextIndex, maxsim
from lemur_ann.documents.inputs import ids_for, ids_of, read_documents

RANDOM = np.random.default_rng(7)
TOKENS = [RANDOM.normal(size=(4, 8)).astype(np.float32) for _ in range(3)]
QUERY = TOKENS[1]


def index_of(ids=("a", "b", "c")):
    """Three documents that find themselves, with a column ``year``: 1, 2, 3."""
    plain = LemurIndex().add(TOKENS, ids=list(ids))
    return LemurIndex().add(plain.get(plain.ids()).append_column("year", pa.array([1, 2, 3])))


@pytest.fixture(scope="module")
def fitted():
    documents = [RANDOM.normal(size=(4, 8)).astype(np.float32) for _ in range(60)]
    return LemurIndex(num_features=32, epochs=0, rank=7).fit(documents, [d[:2] for d in documents], progress=False)


def lazily(library, form):
    """A value that needs a library, which may not be there."""
    return lambda: form(pytest.importorskip(library))


def value_of(form):
    return form() if callable(form) and form.__name__ == "<lambda>" else form


def objects(items):
    array = np.empty(len(items), object)
    array[:] = items
    return array


class Number(enum.IntEnum):
    TEN = 10


# Ids of documents, in their order

IN_ORDER = {
    "list": list("abc"),
    "tuple": tuple("abc"),
    "keys of a dict": dict.fromkeys("abc").keys(),
    "values of a dict": dict(enumerate("abc")).values(),
    "deque": collections.deque("abc"),
    "generator": lambda: (letter for letter in "abc"),
    "NumPy strings": np.array(list("abc")),
    "a list of them": [np.str_(letter) for letter in "abc"],
    "objects": np.array(list("abc"), object),
    "Arrow": pa.array(list("abc")),
    "chunks": pa.chunked_array([["a"], ["b", "c"]]),
    "dictionary": pa.array(list("abc")).dictionary_encode(),
    "Arrow's scalars": [*pa.array(list("abc"))],
    "pandas": lazily("pandas", lambda pd: pd.Series(list("abc"), index=[9, 8, 7])),
    "pandas index": lazily("pandas", lambda pd: pd.Index(list("abc"))),
    "pandas categories": lazily("pandas", lambda pd: pd.Series(list("abc"), dtype="category")),
    "Polars": lazily("polars", lambda pl: pl.Series(list("abc"))),
}


@pytest.mark.parametrize("form", IN_ORDER)
def test_ids_in_order(form):
    assert LemurIndex().add(TOKENS, ids=value_of(IN_ORDER[form])).ids().to_pylist() == ["a", "b", "c"]
    assert index_of().get(value_of(IN_ORDER[form])).column("id").to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    "ids",
    [
        range(3),
        np.arange(3, dtype=np.int8),
        torch.arange(3),
        [Number.TEN - 10, np.int64(1), 2],
        pa.array([0, 1, 2], pa.uint8()),
    ],
)
def test_integer_ids(ids):
    assert LemurIndex().add(TOKENS, ids=ids).ids().to_pylist() == [0, 1, 2]


# (value, part of the message of `ids=`, part of that of a call that names documents; None where it is taken there)
NO_IDS = {
    "set": ({"a", "b", "c"}, "ids must be in the order of their documents, and a set has none; pass a list", None),
    "frozenset": (frozenset("abc"), "and a frozenset has none", None),
    "string": (
        "abc",
        r"one for each document, as ids=\[...\], got the one id 'abc'",
        "KeyError: .*no document has the id 'abc'",
    ),
    "np.str_": (np.str_("abc"), "got the one id .*'abc'", "KeyError"),
    "integer": (5, "got the one id 5", "KeyError: no document has the id 5; the ids of the index are strings"),
    "NumPy integer": (np.int64(5), "got the one id", "KeyError"),
    "no dimensions": (np.array("z"), "got the one id", "KeyError"),
    "scalar": (pa.scalar("z"), "got the one id", "KeyError"),
    "bytes": (b"abc", "got the one id b'abc'", "as a list or one column, got bytes"),
    "dict": (dict.fromkeys("abc"), "got dict", "got dict; what documents must be is said by filter="),
    "counter": (collections.Counter("abc"), "got Counter", "got Counter"),
    "items": ({"a": 1}.items(), "got tuple in row 0", "got tuple in row 0"),
    "float": (1.0, "got float", "as a list or one column, got float"),
    "floats": ([1.0, 2.0, 3.0], "strings or integers, got float in row 0", "got float in row 0"),
    "NaN": ([1, 2, float("nan")], "got float in row 2", "got float in row 2"),
    "booleans": ([True, False, True], "got bool in row 0", "got bool in row 0; what documents must be is said by filter="),
    "a boolean": ([1, 0, True], "got bool in row 2", "got bool in row 2"),
    "a mask": (np.array([True, False, True]), "got bool in row 0", "said by filter="),
    "None": (["a", None, "c"], "ValueError: id is null in row 1", "ValueError: id is null in row 1"),
    "both kinds": (["a", 1, "c"], "all strings or all integers, got both", "got both"),
    "too large": ([1, 2, 2**63], "ValueError: integer ids must fit in int64", "ValueError: must fit in int64"),
    "uint64": (
        np.array([1, 2, 2**63], np.uint64),
        "ValueError: integer ids must fit in int64",
        "ValueError: must fit in int64",
    ),
    "NumPy bytes": (np.array([b"a", b"b", b"c"]), "got bytes in row 0", "got bytes in row 0"),
    "a matrix": (np.array([["a"], ["b"], ["c"]]), "got ndarray; pass the column", "got ndarray; pass the column"),
    "a table": (pa.table({"id": list("abc")}), "got Table; pass the column", "got Table; pass the column"),
    "a frame": (lazily("pandas", lambda pd: pd.DataFrame({"a": list("abc")})), "got DataFrame; pass", "got DataFrame; pass"),
    "Polars' frame": (lazily("polars", lambda pl: pl.DataFrame({"a": list("abc")})), "got DataFrame", "got DataFrame; pass"),
    "missing": (lazily("pandas", lambda pd: pd.Series([1, None, 3], dtype="Int64")), "got NAType in row 1", "NAType in row 1"),
    "expression": (pc.field("year") == 1, "got Expression", "got Expression; what documents must be is said by filter="),
    "hits": (lambda: index_of().search(QUERY), "of hits they are hits.ids", "got tuple in row 0; of hits they are hits.ids"),
    "twice": (["a", "a", "b"], "ValueError: id 'a' is repeated in row 1", None),
    "too few": (["a"], "ValueError: expected one id for each of 3 documents, got 1 ids", None),
}


def refused(call, message):
    """The message may begin with the kind of error; it is a TypeError else."""
    name = message.partition(":")[0] if message.startswith(("ValueError", "KeyError")) else "TypeError"
    with pytest.raises({"ValueError": ValueError, "KeyError": KeyError, "TypeError": TypeError}[name]) as caught:
        call()
    assert type(caught.value).__name__ == name
    caught.match(message.partition(": ")[2] if message.startswith(name) else message)


@pytest.mark.parametrize("form", NO_IDS)
def test_what_is_no_ids(form):
    value, of_addition, of_naming = NO_IDS[form]
    empty, index = LemurIndex(), index_of()
    texts = TextIndex((lambda texts: TOKENS[: len(texts)],) * 2)
    refused(lambda: empty.add(TOKENS, ids=value_of(value)), of_addition)
    refused(lambda: empty.fit(TOKENS, TOKENS, ids=value_of(value)), of_addition)
    refused(lambda: index.upsert(TOKENS, ids=value_of(value)), of_addition)
    refused(lambda: texts.add(["one", "two", "three"], ids=value_of(value)), of_addition)
    assert (len(empty), len(index), len(texts)) == (0, 3, 0)
    for call in (index.get, index.metadata, index.delete):
        if of_naming is not None:
            refused(lambda call=call: call(value_of(value)), of_naming)
    assert len(index) == 3


def test_a_stream_is_held_to_the_same():
    keys = dict.fromkeys("abc").keys()
    assert LemurIndex().add(iter(TOKENS), ids=keys).ids().to_pylist() == ["a", "b", "c"]
    refused(lambda: LemurIndex().add(iter(TOKENS), ids={"a", "b", "c"}), "a set has none")
    refused(lambda: LemurIndex().add(iter(TOKENS), ids="abc"), "got the one id")


def test_doors_for_adapters():
    assert ids_of("abc").to_pylist() == ["abc"]
    assert ids_of({"a"}).to_pylist() == ["a"]
    assert ids_for(["a"], 1).to_pylist() == ["a"]
    refused(lambda: ids_for("a", 1), "got the one id")


@pytest.mark.parametrize(
    ("doc_id", "expected"),
    [
        (10, True),
        (np.int64(10), True),
        (np.uint8(10), True),
        (pa.scalar(10), True),
        (Number.TEN, True),
        (11, False),
        (10.0, False),
        (np.float64(10), False),
        (True, False),
        ("10", False),
        (None, False),
        ((10,), False),
        (2**70, False),
    ],
)
def test_in(doc_id, expected):
    index = index_of([10, 20, 30])
    texts = TextIndex((lambda texts: TOKENS,) * 2, index)
    assert (doc_id in index, doc_id in texts) == (expected, expected)


def test_in_of_what_is_taken_for_one():
    index = index_of([0, 1, 2])
    assert 1 in index
    assert True not in index
    assert np.True_ not in index
    assert np.str_("a") in index_of()
    assert all(doc_id in index for doc_id in index.search(QUERY).ids)
    assert all(doc_id in index for doc_id in index.ids())
    for several in ([1], np.array([1]), {1}):
        with pytest.raises(TypeError, match="unhashable"):
            _ = several in index


@pytest.mark.parametrize("kind", [lambda n: np.array(n), torch.tensor])
def test_one_id_as_an_array_without_dimensions(kind):
    index = index_of([0, 1, 2])
    assert kind(1) in index
    assert kind(3) not in index
    assert kind(1.0) not in index
    assert kind(True) not in index
    assert index.get(kind(1)).column("id").to_pylist() == [1]
    assert index.get([kind(2), kind(0)]).column("id").to_pylist() == [2, 0]
    assert LemurIndex().add(TOKENS, ids=[kind(5), kind(6), kind(7)]).ids().to_pylist() == [5, 6, 7]
    for wrong in (kind(True), [kind(1.5)], [kind([1])]):
        with pytest.raises(TypeError, match="ids must be strings or integers"):
            index.get(wrong)
    with pytest.raises(TypeError):
        _ = kind([1]) in index
    assert index.delete(kind(1)) == 1


# Filters

PASSES = {  # b and c of a, b, c
    "expression": pc.field("year") > 1,
    "ids": ["b", "c"],
    "set": {"b", "c", "nobody"},
    "keys": {"b": 1, "c": 2}.keys(),
    "generator": lambda: (letter for letter in "bc"),
    "scalars": [pa.scalar("b"), pa.scalar("c")],
    "booleans": [False, True, True],
    "tuple of booleans": (False, True, True),
    "NumPy's in a list": [np.False_, np.True_, np.True_],
    "generator of booleans": lambda: iter([False, True, True]),
    "objects": np.array([False, True, True], object),
    "torch": torch.tensor([False, True, True]),
    "chunks": pa.chunked_array([[None], [True, True]], pa.bool_()),
    "masked": np.ma.masked_array([True, True, True], [True, False, False]),
    "comparison": lambda: pc.greater(index_of().metadata(list("abc")).column("year"), 1),
    "pandas": lazily("pandas", lambda pd: pd.Series([1, 2, 3]) > 1),
    "pandas with None": lazily("pandas", lambda pd: pd.Series([None, True, True])),
    "pandas boolean": lazily("pandas", lambda pd: pd.Series([None, True, True], dtype="boolean")),
    "pandas of Arrow": lazily("pandas", lambda pd: pd.Series([None, True, True], dtype="bool[pyarrow]")),
    "ids of pandas": lazily("pandas", lambda pd: pd.Series(["b", "c"], index=[7, 8])),
    "Polars": lazily("polars", lambda pl: pl.Series([None, True, True])),
    "ids of Polars": lazily("polars", lambda pl: pl.Series(["b", "c"])),
}


@pytest.mark.parametrize("form", PASSES)
def test_what_is_a_filter(form):
    index = index_of()
    assert sorted(index.search(QUERY, filter=value_of(PASSES[form])).ids) == ["b", "c"]
    assert index.delete(filter=value_of(PASSES[form])) == 2
    assert index.ids().to_pylist() == ["a"]


FORMS = "a pyarrow compute expression over the metadata columns, a collection of ids, or one boolean for each document, got "
NO_FILTER = {
    "dict": ({"year": 2}, FORMS + r"dict; with pyarrow.compute as pc, write filter=\(pc.field\('year'\) == 2\)"),
    "dict of lists": ({"id": ["a"], "year": 2}, r"pc.field\('id'\).isin\(\['a'\]\) & \(pc.field\('year'\) == 2\)"),
    "operators of others": ({"year": {"$gt": 1}}, FORMS + "dict$"),
    "nothing": ({}, FORMS + "dict$"),
    "string": ("a", FORMS + r"str; one id is filter=\['a'\]"),
    "integer": (1, FORMS + r"int; one id is filter=\[1\]"),
    "boolean": (True, FORMS + "bool$"),
    "bytes": (b"a", FORMS + "bytes"),
    "function": (lambda: lambda row: True, FORMS + "function"),
    "Polars' expression": (lazily("polars", lambda pl: pl.col("year") > 1), FORMS + "Expr"),
    "table": (pa.table({"a": [1]}), FORMS + "Table|got Table"),
    "frame": (lazily("pandas", lambda pd: pd.DataFrame({"a": [True, False, True]})), "got DataFrame; pass the column"),
    "zeros and ones": ([0, 1, 1], "3 numbers that are all 0 or 1, which might be ids or booleans"),
    "ones": (np.ones(3, np.uint8), "3 numbers that are all 0 or 1"),
    "zeros and ones of torch": (torch.tensor([0, 1, 1]), "pass booleans, as in np.asarray"),
    "zeros and ones of Arrow": (pa.array([0, 1, 1], pa.int8()), "or each id once"),
    "floats": ([0.0, 1.0, 1.0], "got float in row 0"),
    "both": ([True, 1, 0], "got bool in row 0"),
    "labels": (lazily("pandas", lambda pd: pd.Series([True, False, True], index=[2, 1, 0])), "labels are not 0, 1, 2"),
    "hits": (lambda: index_of().search(QUERY), "of hits they are hits.ids"),
    "too few": ([True], "ValueError: filter has 1 booleans, expected one for each of 3 documents"),
    "None": (["a", None], "ValueError: id is null in row 1"),
    "matrix": (np.ones((3, 1), bool), "got ndarray"),
    "other ids": ([5, 6], "ids are integers, index has ids that are strings"),
}


@pytest.mark.parametrize("form", NO_FILTER)
def test_what_is_no_filter(form):
    value, message = NO_FILTER[form]
    index = index_of()
    for call in (lambda: index.search(QUERY, filter=value_of(value)), lambda: index.delete(filter=value_of(value))):
        refused(call, message)
    refused(lambda: index.evaluate([QUERY], filter=value_of(value)), message)
    refused(lambda: index.explain_miss(QUERY, "a", filter=value_of(value)), message)
    assert len(index) == 3


def test_zeros_and_ones_are_ids_where_each_is_named_once():
    index = LemurIndex().add(TOKENS)
    assert sorted(index.search(QUERY, filter=[0, 1]).ids) == [0, 1]
    assert sorted(index.search(QUERY, filter=[2, 1, 2]).ids) == [1, 2]
    for mask in ([0, 1, 1], [1, 1, 1], [0, 0]):
        refused(lambda mask=mask: index.delete(filter=mask), "might be ids or booleans")
    assert index.get([0, 1, 1]).column("id").to_pylist() == [0, 1, 1]


# Queries

ONE = {
    "matrix": QUERY,
    "lists": QUERY.tolist(),
    "tuples": tuple(map(tuple, QUERY.tolist())),
    "a list of vectors": list(QUERY),
    "a list of tensors": list(torch.tensor(QUERY, requires_grad=True)),
    "objects": objects([*QUERY]),
    "numbers as objects": QUERY.astype(object),
    "float64": QUERY.astype(float),
    "float16": QUERY.astype(np.float16),
    "longdouble": QUERY.astype(np.longdouble),
    "other byte order": QUERY.astype(">f4"),
    "with a gradient": torch.tensor(QUERY, requires_grad=True),
    "bfloat16": torch.tensor(QUERY).bfloat16(),
    "masked nowhere": np.ma.masked_array(QUERY),
    "scalar": pa.scalar(QUERY.tolist()),
}


@pytest.mark.parametrize("form", ONE)
def test_one_query(form, fitted):
    index = index_of()
    hits = index.search(ONE[form], k=1)
    assert hits.ids.tolist() == ["b"]
    assert index.explain(ONE[form], "b").doc_id == "b"
    assert fitted.encoder.encode_queries(ONE[form]).shape == (8,)


NESTED = objects([objects([*matrix]) for matrix in TOKENS])  # what pandas reads from Parquet
BATCH = {
    "list": TOKENS,
    "array": np.stack(TOKENS),
    "lists": np.stack(TOKENS).tolist(),
    "tensors": [torch.tensor(matrix) for matrix in TOKENS],
    "objects": objects(TOKENS),
    "objects of objects": NESTED,
    "a cube of objects": np.stack(TOKENS).astype(object),
    "generator": lambda: (matrix for matrix in TOKENS),
    "deque": collections.deque(TOKENS),
    "values": dict(zip("abc", TOKENS, strict=True)).values(),
    "column": lambda: index_of().get(list("abc")).column("tokens"),
    "scalars": lambda: [*index_of().get(list("abc")).column("tokens")],
    "pandas": lazily("pandas", lambda pd: pd.Series(TOKENS, index=[5, 6, 7])),
    "pandas of objects": lazily("pandas", lambda pd: pd.Series([*NESTED])),
    "Polars": lazily("polars", lambda pl: pl.Series([matrix.tolist() for matrix in TOKENS])),
}


@pytest.mark.parametrize("form", BATCH)
def test_many(form, fitted):
    """The same forms for queries and for documents."""
    index = index_of()
    assert [hits.ids.tolist() for hits in index.search(value_of(BATCH[form]), k=1)] == [["a"], ["b"], ["c"]]
    assert index.evaluate(value_of(BATCH[form])).num_queries == 3
    added = LemurIndex().add(value_of(BATCH[form]), ids=list("abc"))
    for matrix, row in zip(TOKENS, added.get(list("abc")).column("tokens").to_pylist(), strict=True):
        np.testing.assert_allclose(np.array(row), matrix, atol=1e-6)
    assert fitted.encoder.encode_documents(value_of(BATCH[form])).shape == (3, 8)
    assert LemurIndex(num_features=32, epochs=0, rank=7).fit(TOKENS, value_of(BATCH[form]), progress=False).is_fitted


def test_what_pandas_reads_from_parquet(tmp_path):
    pd = pytest.importorskip("pandas")
    pq.write_table(index_of().get(list("abc")), tmp_path / "documents.parquet")
    for frame in (pd.read_parquet(tmp_path / "documents.parquet"), pd.DataFrame({"id": list("abc"), "tokens": TOKENS})):
        for tokens in (frame["tokens"], frame["tokens"].to_numpy(), frame["tokens"].tolist(), [*frame["tokens"]]):
            index = LemurIndex().add(tokens, ids=frame["id"])
            assert index.search(frame["tokens"].iloc[1], k=1).ids.tolist() == ["b"]
            assert [hits.ids[0] for hits in index.search(tokens, k=1)] == ["a", "b", "c"]


sparse = pytest.importorskip("scipy.sparse")
NO_TOKENS = {
    "vector": (QUERY[0], r"ValueError: got shape \(8,\); .*a single token is tokens\[None, :\]"),
    "integers": (QUERY.astype(int), "must be float32 or float16, got int64"),
    "booleans": (QUERY > 0, "must be float32 or float16, got bool"),
    "complex": (QUERY.astype(complex), "got complex128"),
    "strings of numbers": (QUERY.astype(str), "must be float32 or float16, got <U"),
    "masked": (np.ma.masked_array(QUERY, QUERY > 0), "has masked values; pass what is behind them, array.data"),
    "sparse": (sparse.csr_matrix(QUERY), "must be a dense array, got csr_matrix; pass matrix.toarray()"),
    "sparse tensor": (torch.tensor(QUERY).to_sparse(), r"must be a dense array, got a sparse tensor; pass tensor.to_dense\(\)"),
    "no tokens": (np.empty((0, 8), np.float32), "ValueError: has no tokens, expected at least one"),
    "other dim": (np.ones((2, 9), np.float32), "ValueError: has dim 9, index has dim 8"),
    "NaN": (np.full((2, 8), np.nan), "ValueError: has a NaN"),
}


@pytest.mark.parametrize("form", NO_TOKENS)
def test_what_is_no_matrix(form):
    value, message = NO_TOKENS[form]
    index = index_of()
    refused(lambda: index.search(value), message)
    refused(lambda: index.search([value]) if form != "vector" else index.search(value), message)
    refused(lambda: index.add([value], ids=["new"]), message)
    assert len(index) == 3


NO_DOCUMENTS = {
    "dict of columns": ({"tokens": TOKENS}, r"got dict; pandas.DataFrame\(documents\) goes in where it has a column 'tokens'"),
    "by id": (
        dict(zip("abc", TOKENS, strict=True)),
        r"matrices by id as list\(matrices.values\(\)\) with ids=list\(matrices\)",
    ),
    "rows": ([{"id": "a", "tokens": QUERY}], r"got a list of dicts; pandas.DataFrame\(documents\) goes in"),
    "pairs": ([("a", QUERY)], r"documents\[0\] must be a numeric array, got tuple of mixed or ragged items"),
    "set": ({torch.tensor(matrix) for matrix in TOKENS}, "must come in an order, and a set has none; pass a list"),
    "texts": (["a text"], "must be token embeddings, got a list of str; TextIndex takes texts"),
    "bytes": (b"x", "must be token embeddings, got bytes; TextIndex takes texts"),
    "one matrix": (QUERY, "ValueError: documents is one matrix of shape .*; pass offsets= with it, or a list"),
    "one matrix of lists": (
        QUERY.tolist(),
        r"ValueError: got shape \(8,\); a list of vectors that is one matrix is \[np.array",
    ),
    "None": (None, "must be Arrow data or a sequence of matrices, got NoneType"),
    "None among them": ([QUERY, None], r"documents\[1\] must be a numeric array, got NoneType"),
    "differing dims": ([QUERY, QUERY[:, :4]], r"ValueError: documents\[1\] has dim 4, those before have dim 8"),
    "numbers": ([1.0, 2.0], r"ValueError: documents\[0\] must be a matrix .* got shape \(\)"),
    "more dimensions": (np.ones((1, 2, 3, 4), np.float32), r"ValueError: got shape \(1, 2, 3, 4\)"),
    "ragged": ([[[1.0, 2.0], [1.0]]], "of mixed or ragged items"),
    "a column of numbers": (lazily("pandas", lambda pd: pd.Series([1.0, 2.0])), "must be list<.* got double"),
}


@pytest.mark.parametrize("form", NO_DOCUMENTS)
def test_what_is_no_documents(form):
    value, message = NO_DOCUMENTS[form]
    index, empty = index_of(), LemurIndex()
    refused(lambda: index.add(value_of(value)), message)
    if form != "None":  # which fit takes for those there are
        refused(lambda: empty.fit(value_of(value), TOKENS), message)
    assert (len(index), len(empty)) == (3, 0)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([4, 4, 4], r"ValueError: must start at 0, got 4; of lengths they are np.cumsum\(\[0, \*lengths\]\)"),
        ([0, 8, 4, 12], "ValueError: must not run backwards, got 8 then 4 at position 1"),
        ([0, 4, 13], "ValueError: must end at the number of tokens 12, got 13"),
        ([0.0, 12.0], "must be integers, got float64"),
        ([False, True], "must be integers, got bool"),
        ([0, None, 12], "must be a numeric array"),
        (np.array([0, 2**64 - 8, 12], np.uint64), "ValueError: must not run backwards"),
        ([[0, 12]], "ValueError: must have shape"),
    ],
)
def test_bad_offsets(offsets, message):
    flat = np.concatenate(TOKENS)
    refused(lambda: LemurIndex().add(flat, offsets=offsets), message)
    refused(lambda: LemurIndex().fit(TOKENS, flat, query_offsets=offsets), message)


@pytest.mark.parametrize("kind", [np.int32, np.uint64, pa.array, torch.tensor, tuple, list])
def test_forms_of_offsets(kind):
    offsets = np.array([0, 4, 8, 12], kind) if isinstance(kind, type) and issubclass(kind, np.generic) else kind([0, 4, 8, 12])
    assert len(read_documents(np.concatenate(TOKENS), offsets=offsets)[0]) == 3


# Numbers, and what is true or false

NO_NUMBERS = [5.0, True, "5", [5], None, 0, -1, 2**63, float("nan"), torch.tensor(5)]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number(value, fitted):
    kind = ValueError if type(value) is int else TypeError
    calls = [
        lambda: fitted.search(QUERY, k=value),
        lambda: fitted.evaluate(TOKENS, k=value),
        lambda: fitted.tune(TOKENS, k=value),
        lambda: fitted.health(TOKENS, k=value),
        lambda: fitted.health(TOKENS, num_documents=value),
        lambda: fitted.health(TOKENS, num_queries=value),
        lambda: fitted.explain(QUERY, 1, k=value),
        lambda: fitted.explain_miss(QUERY, 1, value),
        lambda: LemurIndex(num_training_tokens=value),
        lambda: LemurIndex(M=value),
        lambda: TextIndex((len, len), batch_size=value),
    ]
    if value is not None:
        calls += [
            lambda name=name: fitted.search(QUERY, **{name: value}) for name in ("num_candidates", "ef_search", "num_threads")
        ]
        calls += [
            lambda: fitted.compact(num_threads=value),
            lambda: LemurIndex(rank=value),
            lambda: TextIndex((len, len), fit_at=value),
            lambda: maxsim.scores(QUERY, QUERY, [0, 4], num_threads=value),
            lambda: maxsim.rerank(QUERY, QUERY, [0, 4], [0], value),
        ]
    if value not in (0, None):
        calls += [lambda: fitted.tune(TOKENS, seed=value), lambda: LemurIndex(seed=value)]
    for call in calls:
        with pytest.raises(kind):
            call()


def test_numbers_of_numpy_and_huge_ones(fitted):
    for five in (np.int64(5), np.uint8(5), 5):
        assert len(fitted.search(QUERY, five, num_candidates=np.int32(20), ef_search=five, num_threads=np.int16(1))) == 5
    huge = 2**62
    assert len(fitted.search(QUERY, huge)) == len(fitted.search(QUERY, huge, exact=True)) == 60
    assert len(fitted.search(QUERY, 5, num_candidates=huge, ef_search=huge, filter=[1, 2])) == 2
    assert fitted.evaluate(TOKENS, huge).recall == 1
    assert fitted.health(TOKENS, k=huge, num_documents=huge, num_queries=huge).num_queries == 3
    assert fitted.explain(QUERY, 3, k=huge).k == huge


TRUTH = {
    "exact": lambda index, value: index.search(QUERY, exact=value),
    "resume": lambda index, value: index.refit(resume=value),
    "tokens": lambda index, value: index.to_arrow(tokens=value),
    "vectors": lambda index, value: index.to_arrow(vectors=value),
    "read_only": lambda index, value: LemurIndex.open("nowhere", read_only=value),
    "verify": lambda index, value: LemurIndex.load("nowhere", verify=value),
    "trusted": lambda index, value: LemurIndex.load("nowhere", trusted=value),
}


@pytest.mark.parametrize("name", TRUTH)
def test_a_string_is_neither_true_nor_false(name, fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in ("false", "no", 0, 1, None):
        refused(lambda value=value: TRUTH[name](fitted, value), f"{name} must be True or False, got")
    assert not list(tmp_path.iterdir())
    refused(lambda: LemurIndex.open("nowhere", verify="no"), "verify must be True or False, got str 'no'")
    assert len(fitted.search(QUERY, exact=np.True_)) == 10


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3e9, "memory_limit must be bytes, an integer, or a string such as '3GB', got float 3000000000.0"),
        (True, "got bool True"),
        (b"3GB", "got bytes"),
        (0, "ValueError: memory_limit must be above 0, got 0"),
        (-1, "ValueError: memory_limit must be above 0, got -1"),
        ("-3GB", "ValueError: got '-3GB'"),
        ("3G", "ValueError: bytes or a string such as '3GB' or '512MiB', got '3G'"),
        ("", "ValueError: got ''"),
        ("inf", "ValueError: got 'inf'"),
    ],
)
def test_memory_limits(value, message, fitted):
    for call in (LemurIndex().fit, LemurEncoder.fit):
        refused(lambda call=call: call(TOKENS, TOKENS, memory_limit=value), message)
    refused(lambda: fitted.refit(memory_limit=value), message)


@pytest.mark.parametrize("value", [np.int64(3 * 10**9), "3 GB", " 3gb ", "9" * 400 + "GB"])
def test_memory_limits_that_are_taken(value):
    index = LemurIndex(num_features=32, epochs=0, rank=7)
    assert index.fit(TOKENS, TOKENS, memory_limit=value, progress=False).is_fitted


# Paths, functions and names

PLACES = {
    "save": lambda path: index_of().save(path),
    "load": LemurIndex.load,
    "open": LemurIndex.open,
    "encoder": LemurEncoder.load,
    "directory": lambda path: index_of().add(iter(TOKENS), ids=list("xyz"), directory=path),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_path(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value, message in {
        b"index": "must be a path, got bytes",
        5: "must be a path, got int 5",
        "": "ValueError: is empty; '.' names the current folder",
        "s3://bucket/index": "ValueError: on this machine, got the URL 's3://bucket/index'",
        "file:///tmp/index": "ValueError: got the URL",
    }.items():
        refused(lambda value=value: PLACES[place](value), message)
    assert not list(tmp_path.iterdir())


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    index_of().save("~/saved")
    with LemurIndex.open("~/opened") as index:
        index.add(TOKENS)
    assert len(LemurIndex.load("~/saved")) == len(LemurIndex.load("~/opened")) == 3
    (tmp_path / "documents").mkdir()
    pq.write_table(index_of().get(list("abc")), tmp_path / "documents" / "documents.parquet")
    assert len(LemurIndex().add("~/documents")) == 3
    assert len(LemurIndex().add(iter(TOKENS), directory="~")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents", "elsewhere", "opened", "saved"]
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: LemurIndex().fit(TOKENS, encode_query="model"), "encode_query must be a function, got str 'model'"),
        (lambda index: LemurEncoder.fit(TOKENS, encode_query="model"), "encode_query must be a function"),
        (lambda index: LemurIndex().fit(TOKENS, encoder="model"), "encoder must be a LemurEncoder, got str"),
        (lambda index: LemurIndex().fit(TOKENS, TOKENS, progress="no"), "progress must be a bool, None or a function, got str"),
        (lambda index: index.compact(progress=1), "progress must be a bool, None or a function, got int"),
        (lambda index: LemurEncoder.fit(TOKENS, num_feature=3), "'num_feature'; did you mean 'num_features'?"),
        (lambda index: LemurEncoder.fit(TOKENS, xyz=3), "'xyz'; expected any of M, "),
        (lambda index: index.refit(num_feature=3), "num_feature; expected any of num_features"),
        (lambda index: LemurIndex(num_feature=3), "unexpected keyword argument 'num_feature'"),
        (lambda index: LemurIndex.open("nowhere", num_feature=3), "unexpected keyword argument 'num_feature'"),
        (lambda index: LemurEncoder.from_bytes(10**15), "a bytes-like object is required, not 'int'"),
        (lambda index: LemurEncoder.from_bytes("map"), "a bytes-like object is required, not 'str'"),
        (lambda index: index.to_table(index.search(QUERY), columns="year"), r"columns must be .* one is columns=\['year'\]"),
        (lambda index: index.to_table([("a", 1.0)]), "hits must be Hits or a sequence of them, got list"),
        (lambda index: index.explain(QUERY, 1, query_words=set("abcd")), "query_words must be a list of strings"),
        (lambda index: index.explain(QUERY, 1, query_words=[None] * 4), "query_words must be a list of strings"),
        (lambda index: index.explain(QUERY, [1]), "got list in row 0"),
        (lambda index: index.explain(QUERY, True), "got bool in row 0"),
        (lambda index: index.explain([QUERY], 1), "must be one query, a matrix"),
        (lambda index: TextIndex((len, len), "path"), "index must be a LemurIndex or a RemoteIndex, got str"),
        (lambda index: TextIndex("model"), "encoder must be a late-interaction model"),
        (lambda index: maxsim.rerank(QUERY, QUERY, [0, 4], [True]), "candidates must be integers, got bool"),
        (lambda index: maxsim.rerank(QUERY, QUERY, [0, 4], {0}), "candidates must be a numeric array, got set"),
    ],
)
def test_other_arguments(call, message, fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: call(fitted), message)
    assert not list(tmp_path.iterdir())


def test_ids_and_words_of_other_libraries_in_explanations(fitted):
    for doc_id in (3, np.int64(3), pa.scalar(3)):
        assert fitted.explain(QUERY, doc_id).doc_id == 3
    words = fitted.explain(QUERY, 3, query_words=np.array(list("abcd"))).query_words
    assert [type(word) for word in words] == [str] * 4
