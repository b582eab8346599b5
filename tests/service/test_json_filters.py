"""Filters as JSON: what they let through is what Python says of the same rows."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemur_ann.service.json_filters import MAX_CONDITIONS, MAX_DEPTH, as_expression

ROWS = [
    {"id": i, "year": year, "lang": lang, "score": score, "open": is_open, "day": day}
    for i, (year, lang, score, is_open, day) in enumerate(
        [
            (1991, "en", 0.5, True, datetime.date(2024, 1, 1)),
            (2004, "de", None, False, datetime.date(2024, 6, 1)),
            (None, "en", -1.0, None, None),
            (2020, None, 2.5, True, datetime.date(2025, 1, 1)),
            (2020, "french", 0.0, False, datetime.date(1999, 12, 31)),
        ]
    )
]
TABLE = pa.Table.from_pylist(ROWS)


def passing(filter):
    return TABLE.filter(as_expression(filter, TABLE.schema)).column("id").to_pylist()


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"year": 2020}, [3, 4]),
        ({"year": None}, [2]),
        ({"year": {"$ne": None}}, [0, 1, 3, 4]),
        ({"year": {"$ne": 2020}}, [0, 1]),  # a document without a year has no other one
        ({"year": {"$gt": 1991, "$lte": 2020}}, [1, 3, 4]),
        ({"year": {"$gt": 2003.5}}, [1, 3, 4]),
        ({"year": {"$in": [1991, 2004, 2004.5]}}, [0, 1]),
        ({"year": {"$in": []}}, []),
        ({"year": {"$nin": [1991]}}, [1, 3, 4]),
        ({"lang": {"$exists": False}}, [3]),
        ({"lang": {"$startswith": "fr"}}, [4]),
        ({"lang": {"$contains": "e"}}, [0, 1, 2, 4]),
        ({"lang": {"$endswith": "n"}}, [0, 2]),
        ({"open": True}, [0, 3]),
        ({"day": {"$gte": "2024-06-01"}}, [1, 3]),
        ({"score": {"$lt": 1}}, [0, 2, 4]),
        ({"$or": [{"year": 1991}, {"lang": "de"}]}, [0, 1]),
        ({"$and": [{"lang": "en"}, {"score": 0.5}]}, [0]),
        ({"$not": {"lang": "en"}}, [1, 4]),
        ({"lang": "en", "$or": [{"year": 1991}, {"year": None}]}, [0, 2]),
        ({"id": {"$in": [1, 4, 77]}}, [1, 4]),
    ],
)
def test_lets_through(filter, expected):
    assert passing(filter) == expected


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ([], "a filter is an object"),
        ({}, "a filter is an object"),
        ("year > 3", "a filter is an object"),
        ({"yeer": 3}, "no column 'yeer'; there are id, year"),
        ({"year": {"$regex": "x"}}, "unknown operator '\\$regex'"),
        ({"$xor": []}, "unknown operator '\\$xor'"),
        ({"$or": []}, "takes a list of filters"),
        ({"$or": {"year": 3}}, "takes a list of filters"),
        ({"year": "MMXX"}, "cannot be compared with 'MMXX'"),
        ({"year": True}, "cannot be compared with True"),
        ({"lang": 3}, "compared with strings"),
        ({"year": [2020]}, "compared with one value"),
        ({"year": {"$in": 2020}}, "takes a list"),
        ({"year": {"$in": [[1]]}}, "compared with one value"),
        ({"year": {"$exists": 1}}, "true or false"),
        ({"year": {"$contains": "2"}}, "column of strings"),
        ({"year": {}}, "has no condition"),
        ({"day": "yesterday"}, "cannot be compared"),
    ],
)
def test_refuses(filter, message):
    with pytest.raises((ValueError, TypeError), match=message):
        as_expression(filter, TABLE.schema)


def test_bounds():
    deep = {"year": 1}
    for _ in range(MAX_DEPTH + 1):
        deep = {"$not": deep}
    with pytest.raises(ValueError, match="deep"):
        as_expression(deep, TABLE.schema)
    with pytest.raises(ValueError, match="conditions"):
        as_expression({"$or": [{"year": 1}] * (MAX_CONDITIONS + 1)}, TABLE.schema)


def test_a_name_is_a_name_and_no_code():
    table = pa.table({"__import__('os')": [1, 2], "$or": [1, 2]})
    assert len(table.filter(as_expression({"__import__('os')": 2}, table.schema))) == 1


compare = {
    "$eq": lambda a, b: a is not None and a == b,
    "$ne": lambda a, b: a is not None and a != b,
    "$gt": lambda a, b: a is not None and a > b,
    "$lte": lambda a, b: a is not None and a <= b,
}
leaf = st.tuples(
    st.sampled_from(["year", "score"]), st.sampled_from(sorted(compare)), st.integers(1990, 2021) | st.integers(-2, 3)
)
node = st.recursive(
    leaf, lambda inner: st.tuples(st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)), max_leaves=8
)


def as_json(one):
    if len(one) == 2:
        return {one[0]: [as_json(part) for part in one[1]]}
    column, name, value = one
    return {column: {name: value}}


def holds(one, row):
    if len(one) == 2:
        return (all if one[0] == "$and" else any)(holds(part, row) for part in one[1])
    column, name, value = one
    return compare[name](row[column], value)


@given(node)
@settings(max_examples=200, deadline=None)
def test_any_filter_says_what_python_says(one):
    assert passing(as_json(one)) == [row["id"] for row in ROWS if holds(one, row)]


def test_ids_of_strings():
    table = pa.table({"id": pa.array(["a", "b"], pa.large_string()), "x": np.arange(2)})
    assert table.filter(as_expression({"id": {"$in": ["b", "z"]}}, table.schema)).column("id").to_pylist() == ["b"]
