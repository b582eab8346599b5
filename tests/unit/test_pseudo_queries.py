"""Learning without a query log: sentences of the documents through the user's query encoder."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow as pa
import pytest

from lemur_ann import LemurIndex
from lemur_ann.learning.pseudo_queries import MAX_WORDS, plain_queries, sentences

WORDS = [f"word{i}" for i in range(200)]
OPTIONS = {"num_features": 64, "epochs": 1, "rank": 15, "num_candidates": 20, "ef_search": 40}


@pytest.fixture(scope="module")
def vectors():
    random = np.random.default_rng(3)
    return dict(zip(WORDS, random.normal(size=(len(WORDS), 16)).astype(np.float32), strict=True))


@pytest.fixture(scope="module")
def documents(vectors):
    random = np.random.default_rng(4)
    texts = [". ".join(" ".join(random.choice(WORDS, 6)) for _ in range(4)) for _ in range(150)]
    tokens = [[vectors[w.strip(".")] for w in text.split()] for text in texts]
    kind = pa.list_(pa.list_(pa.float32(), 16))
    return pa.table({"id": [f"d{i}" for i in range(150)], "text": texts, "tokens": pa.array(tokens, kind)})


def encoder(vectors, calls):
    def encode_query(texts):
        calls.append(texts)
        return [np.stack([vectors[w.strip(".")] for w in text.split()]) for text in texts]

    return encode_query


def test_learns_from_the_documents_own_sentences(documents, vectors):
    calls: list[list[str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # above all the one that says there are no queries
        index = LemurIndex(**OPTIONS).fit(documents, encode_query=encoder(vectors, calls))
    asked = [text for call in calls for text in call]
    first = asked[:150]  # one of each document, and then the others, as there are few
    assert len({text for text in documents.column("text").to_pylist() if any(one in text for one in first)}) == 150
    assert len(asked) == sum(len(sentences(text)) for text in documents.column("text").to_pylist()) == len(set(asked))
    assert all(any(text in whole for whole in documents.column("text").to_pylist()) for text in asked)
    assert index.encoder.training["learned_from"] == "sentences"
    query = np.stack([vectors[w] for w in documents.column("text")[7].as_py().split(".")[0].split()])
    assert index.search(query, k=1).ids[0] == index.search(query, k=1, exact=True).ids[0]


def test_other_text_column(documents, vectors):
    renamed = documents.rename_columns(["id", "body", "tokens"])
    index = LemurIndex(**OPTIONS).fit(renamed, encode_query=encoder(vectors, []), text_column="body")
    assert index.encoder.training["learned_from"] == "sentences"
    with pytest.raises(ValueError, match=r"needs the documents' texts in a column 'boddy'; they have the columns \['body'\]"):
        LemurIndex(**OPTIONS).fit(renamed, encode_query=encoder(vectors, []), text_column="boddy")


def of_any_word(texts):
    """An encoder of any texts."""
    return [np.stack([np.random.default_rng(list(w.encode())).normal(size=16) for w in text.split()]) for text in texts]


@pytest.mark.parametrize("text_column", ["text", None])
def test_plain_queries_where_there_are_no_texts(documents, text_column):
    calls: list[list[str]] = []

    def encode_query(texts):
        calls.append(texts)
        return of_any_word(texts)

    alone = documents.drop_columns(["text"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        index = LemurIndex(**OPTIONS).fit(alone, encode_query=encode_query, text_column=text_column)
    told = [str(warning.message) for warning in caught]
    assert len(told) == (text_column == "text")  # not where the caller says that there are none
    assert all("text_column= names another column" in message for message in told)
    assert index.encoder.training["learned_from"] == "plain queries"
    assert [text for call in calls for text in call] == plain_queries()
    query = documents.column("tokens")[7].as_py()[:5]
    assert index.search(np.array(query, np.float32), k=1).ids[0] == "d7"


def test_plain_queries():
    texts = plain_queries()
    assert len(texts) == len(set(texts)) > 2500
    assert all(text.isascii() and text == text.strip() and 1 < len(text.split()) <= 24 for text in texts)


@pytest.mark.parametrize(
    ("encode_query", "message"),
    [
        (lambda texts: [np.ones((2, 16), np.float32)], "was given 256 texts and returned 1 matrices"),
        (lambda texts: [np.ones((2, 8), np.float32)] * len(texts), "query encoder: .*dim 8"),
        (lambda texts: texts, "query encoder: "),
        (lambda texts: [np.full((2, 16), np.nan, np.float32)] * len(texts), "query encoder: .*"),
    ],
)
def test_an_encoder_that_gives_something_else(documents, encode_query, message):
    index = LemurIndex(**OPTIONS)
    with pytest.raises((TypeError, ValueError), match=message):
        index.fit(documents, encode_query=encode_query)
    assert len(index) == 0


def test_queries_and_an_encoder_are_one_too_many(documents, vectors):
    with pytest.raises(TypeError, match="takes the place of queries"):
        LemurIndex(**OPTIONS).fit(documents, [np.ones((2, 16))], encode_query=encoder(vectors, []))


def test_documents_without_sentences(documents, vectors):
    empty = documents.set_column(1, "text", pa.array([None] * 75 + ["two words"] * 75, pa.string()))
    with pytest.raises(ValueError, match="no text of 150 has a sentence of 3 words"):
        LemurIndex(**OPTIONS).fit(empty, encode_query=encoder(vectors, []))
    numbers = documents.set_column(1, "text", pa.array(range(150)))
    with pytest.raises(TypeError, match="must hold strings"):
        LemurIndex(**OPTIONS).fit(numbers, encode_query=encoder(vectors, []))


def test_sentences():
    assert sentences("One two three. Four five.  Six seven eight!\nNine ten eleven") == [
        "One two three.",
        "Six seven eight!",
        "Nine ten eleven",
    ]
    assert sentences("version 1.2 of it") == ["version 1.2 of it"]
    assert sentences("") == []
    (long,) = sentences("word " * 100)
    assert len(long.split()) == MAX_WORDS
