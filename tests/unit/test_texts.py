from __future__ import annotations

import logging
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import lemur_ann
from lemur_ann import LemurIndex, TextIndex
from lemur_ann.demo import demo_encoder
from lemur_ann.encoders import Encoder, as_encoder

FIT = {"num_features": 64, "epochs": 1, "rank": 15, "num_candidates": 40, "ef_search": None}


@pytest.fixture
def texts(word_encoder):
    return TextIndex(word_encoder, batch_size=2).add(["a red fox", "a blue whale", "the red sea"], ids=["fox", "whale", "sea"])


def test_search_by_text(texts):
    assert texts.search("blue whale", k=1).ids[0] == "whale"
    assert set(texts.search("red", k=2).ids) == {"fox", "sea"}
    one, two = texts.search(["blue", "fox"], k=1)
    assert (one.ids[0], two.ids[0]) == ("whale", "fox")
    assert texts.search([], k=1) == []
    assert texts.texts(["sea", "fox"]) == ["the red sea", "a red fox"]
    assert len(texts) == 3
    assert "fox" in texts


def test_scores_are_those_of_the_encoders_two_sides(texts, word_encoder):
    (query,), (document,) = word_encoder.queries(["red fox"]), word_encoder.documents(["a red fox"])
    assert texts.search("red fox", k=1).scores[0] == pytest.approx((query @ document.T).max(1).sum(), abs=1e-5)


def test_changes(texts):
    texts.upsert(["a green fox"], ids=["fox"])
    assert texts.texts("fox") == ["a green fox"]
    assert texts.delete(["whale"]) == 1
    assert texts.search("green", k=1).ids[0] == "fox"
    assert "whale" not in texts


def test_arrow_and_parquet(word_encoder, tmp_path):
    table = pa.table({"id": [1, 2], "text": ["a red fox", "a blue whale"], "year": [1999, 2020]})
    pq.write_table(table, tmp_path / "docs.parquet")
    for documents in (table, table.to_reader(), str(tmp_path / "docs.parquet"), tmp_path / "docs.parquet"):
        texts = TextIndex(word_encoder).add(documents)
        assert texts.search("a", k=2, filter=pc.field("year") > 2000).ids.tolist() == [2]
    assert texts.index.metadata([1]).to_pylist() == [{"id": 1, "text": "a red fox", "year": 1999}]


def test_many_texts_are_streamed(word_encoder, monkeypatch):
    monkeypatch.setattr("lemur_ann.texts.TEXTS_IN_MEMORY", 8)
    given = [f"common word{i}" for i in range(50)]
    texts = TextIndex(word_encoder, batch_size=4).add(given, ids=[f"{i}" for i in range(50)])
    assert len(texts) == 50
    assert texts.texts(["0", "49"]) == [given[0], given[49]]
    assert texts.search("word37", k=1).ids[0] == "37"


def test_batches_are_of_the_size_asked_for(word_encoder):
    sizes = []

    def documents(texts):
        sizes.append(len(texts))
        return word_encoder.documents(texts)

    TextIndex((word_encoder.queries, documents), batch_size=3).add([f"text {i}" for i in range(8)])
    assert sizes == [3, 3, 2]


def sentences(count):
    return [f"this is document{i} about topic{i % 7} and word{i % 31}" for i in range(count)]


@pytest.mark.parametrize("queries", ["strings", "embeddings", None])
def test_fit(word_encoder, queries):
    asked = [f"about topic{i % 7} word{i % 31}" for i in range(200)]
    given = {"strings": asked, "embeddings": word_encoder.queries(asked), None: None}[queries]
    texts = TextIndex(word_encoder, LemurIndex(**FIT)).fit(sentences(200), given, ids=[f"{i}" for i in range(200)])
    assert texts.index.is_fitted
    assert texts.search("document42", k=1, exact=True).ids[0] == "42"
    assert texts.search("about topic3 word3 document3", k=1).ids[0] == "3"


def test_it_learns_by_itself_once_there_are_many(word_encoder, caplog):
    texts = TextIndex(word_encoder, LemurIndex(**FIT), fit_at=150)
    texts.add(sentences(100), ids=[f"{i}" for i in range(100)])
    assert not texts.index.is_fitted
    with caplog.at_level(logging.INFO, "lemur_ann"):
        texts.add(sentences(100), ids=[f"{i}" for i in range(100, 200)])
    assert texts.index.is_fitted
    assert "fit is due" in caplog.text


def test_saved_and_opened(word_encoder, tmp_path):
    with LemurIndex.open(tmp_path / "index", **FIT) as index:
        TextIndex(word_encoder, index).add(["a red fox", "a blue whale"], ids=["fox", "whale"])
    texts = TextIndex(word_encoder, LemurIndex.open(tmp_path / "index", read_only=True))
    assert texts.search("whale", k=1).ids[0] == "whale"


@pytest.mark.parametrize(
    ("documents", "ids", "message"),
    [
        ("one text", None, "a sequence of strings, or the path of a Parquet file, got one string"),
        ([b"bytes"], None, "must be a sequence of strings, or Arrow data, got list"),
        (["one"], ["a", "b"], "expected one id for each of 1 documents, got 2 ids"),
        (pa.table({"id": [1]}), None, "must have a column 'text' of strings, got columns"),
        (pa.table({"text": [1]}), None, "column 'text' of documents must hold strings, got int64"),
        (pa.table({"text": ["a", None]}), None, "text is null in row 1"),
        (pa.table({"text": ["a"]}), [1], "ids= must be None"),
        (pa.table({"text": ["a"], "tokens": [1]}), None, "index.add takes them as they are"),
    ],
)
def test_bad_documents(texts, documents, ids, message):
    with pytest.raises((TypeError, ValueError), match=message):
        texts.add(documents, ids=ids)
    assert len(texts) == 3


def test_bad_queries_and_settings(texts, word_encoder):
    with pytest.raises(TypeError, match=r"got ndarray; index\.search takes token embeddings"):
        texts.search(np.ones((2, 64), np.float32))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        texts.search("fox", k=0)
    with pytest.raises(TypeError, match="index must be a LemurIndex or a RemoteIndex, got str"):
        TextIndex(word_encoder, "folder")
    with pytest.raises(ValueError, match="holds 3 documents already"):
        texts.fit(["more"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda texts: np.ones((len(texts), 64)), "document encoder: .*a matrix of token embeddings for each text"),
        (lambda texts: [np.ones((2, 64))], "document encoder was given 2 texts and returned 1 matrices"),
        (lambda texts: [np.ones((2, 8))] * len(texts), "document encoder: .*dim 8.*dim 64"),
        (lambda texts: [np.full((2, 64), np.nan)] * len(texts), "document encoder: .*NaN"),
    ],
)
def test_an_encoder_that_gives_something_else(word_encoder, given, message):
    texts = TextIndex(word_encoder).add(["there"], ids=["a"])
    texts.encoder = Encoder(word_encoder.queries, given)
    with pytest.raises((TypeError, ValueError), match=message):
        texts.add(["one", "two"], ids=["b", "c"])
    assert len(texts) == 1


class OneName:
    def encode_query(self, texts):
        return texts

    def encode_document(self, texts):
        return texts


class OtherName:
    def encode_queries(self, texts):
        return texts

    def encode_documents(self, texts):
        return texts


def test_as_encoder(word_encoder):
    assert as_encoder(word_encoder) is word_encoder
    assert as_encoder((len, len)) == Encoder(len, len)
    assert as_encoder(OneName()).queries(["a"]) == ["a"]
    assert as_encoder(OtherName()).documents(["a"]) == ["a"]
    with pytest.raises(TypeError, match="encoder must be a late-interaction model .* got int"):
        as_encoder(3)


def test_explain(texts, word_encoder):
    explanation = texts.explain("red fox", "fox")
    (query,), (document,) = word_encoder.queries(["red fox"]), word_encoder.documents(["a red fox"])
    assert explanation.score == pytest.approx((query @ document.T).max(1).sum(), abs=1e-5)
    assert (explanation.rank, explanation.found_at, explanation.query_words) == (1, 1, None)
    miss = texts.explain_miss("red fox", "whale", k=1)
    assert miss.stage == "score"
    assert "whale" in texts.search("red fox", **miss.settings).ids
    assert texts.explain_miss("red fox", "whale", 2, filter=["fox"]).stage == "filter"
    for explain in (texts.explain, texts.explain_miss):
        with pytest.raises(KeyError, match="no document has the id 'bird'"):
            explain("red fox", "bird")
        with pytest.raises(TypeError, match="query must be a string, got list"):
            explain(["red fox"], "fox")


def test_explain_with_the_words_of_an_encoder(word_encoder):
    def words(marker):
        return lambda texts: [[*text.lower().split(), marker] for text in texts]

    class Model(OneName):
        encode_query, encode_document = staticmethod(word_encoder.queries), staticmethod(word_encoder.documents)
        query_words, document_words = staticmethod(words("[Q]")), staticmethod(words("[D]"))

    sides = word_encoder.queries, word_encoder.documents
    for encoder in (Model(), Encoder(*sides, words("[Q]"), words("[D]"))):
        texts = TextIndex(encoder).add(["a Red fox", "a blue whale"], ids=["fox", "whale"])
        explanation = texts.explain("red fox", "fox")
        assert explanation.query_words == ("red", "fox", "[Q]")
        assert explanation.document_words == ("a", "red", "fox", "[D]")
        assert [explanation.document_words[token] for token in explanation.best_tokens[:2]] == ["red", "fox"]
        assert "a red «fox» [D]" in str(explanation)
    texts.encoder = Encoder(*sides, words("[Q]"), lambda texts: [None for _ in texts])
    assert texts.explain("red fox", "fox").document_words is None
    texts.encoder = Encoder(*sides, words("[Q]"), lambda texts: [["red"] for _ in texts])
    with pytest.raises(ValueError, match="document_words must have a string for each of 4 tokens, got 1"):
        texts.explain("red fox", "fox")
    texts.encoder = Encoder(*sides, lambda texts: [], None)
    with pytest.raises(ValueError, match="query_words of the encoder was given 1 text and returned 0 lists"):
        texts.explain("red fox", "fox")
    unnamed = TextIndex((word_encoder.queries, word_encoder.documents), LemurIndex().add(word_encoder.documents(["a fox"])))
    assert unnamed.explain("fox", 0).document_words is None  # there are no texts


def test_demo_encoder(demo_data):
    encoder = demo_encoder(demo_data)
    for table in (demo_data.queries, demo_data.training_queries):
        given = table.column("text").to_pylist()
        assert [len(words) for words in encoder.query_words(given)] == [len(tokens) for tokens in encoder.queries(given)]
    given = demo_data.documents.column("text").to_pylist()
    for text, words, tokens in zip(given, encoder.document_words(given), encoder.documents(given), strict=True):
        assert len(words) == len(tokens)
        plain = "".join(word.removeprefix("##") for word in words[2:-1])
        letters = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if not unicodedata.combining(c))
        assert len(words) == 64 or plain == "".join(letters.split())
    texts = TextIndex(encoder).add(demo_data.documents.drop_columns(["tokens"]))
    found = texts.search(demo_data.queries.column("text").to_pylist()[:20], k=5)
    assert found == LemurIndex().add(demo_data.documents).search(demo_data.queries.slice(0, 20), k=5)
    with pytest.raises(KeyError, match="knows the sample's queries only, got 'something else'"):
        texts.search("something else")


def test_it_is_in_the_package():
    assert lemur_ann.TextIndex is TextIndex


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_series_of_strings(word_encoder, library):
    series = pytest.importorskip(library, reason=f"pip install {library}").Series(["a red fox", "a blue whale"])
    assert TextIndex(word_encoder).add(series).search("blue", k=1).ids.tolist() == [1]


@pytest.mark.slow
def test_a_fit_that_fails_leaves_no_documents(word_encoder):
    texts = TextIndex(word_encoder)
    with pytest.raises(ValueError, match="at least one document"):
        texts.fit([])
    with pytest.raises(ValueError, match="queries have dim 3"):
        texts.fit(["one two", "three"], [np.ones((2, 3), np.float32)])
    assert len(texts) == 0
    texts.fit(["one two", "three"], ["one"])
    assert texts.search("three", k=1).ids.tolist() == [1]
