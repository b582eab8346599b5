"""An encoder from an ONNX file. The model of these tests is written by hand: it looks up a vector for each token."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from lemur_ann import LemurIndex, TextIndex
from lemur_ann.service.encoders import load

pytest.importorskip("onnxruntime")
tokenizers = pytest.importorskip("tokenizers")
from lemur_ann.service.onnx import OnnxEncoder  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[Q] ", "[D] ", "a", "red", "blue", "fox", "whale", "."]
VECTORS = np.random.default_rng(3).normal(size=(len(WORDS), 8)).astype(np.float32)
FLOAT, INT64 = 1, 7


def field(number, value):
    """A field of a protocol buffer: a number, text or bytes, or a message as bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def value_info(name, kind, names):
    shape = b"".join(field(1, field(2, one) if isinstance(one, str) else field(1, one)) for one in names)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, shape)))


def model_of(vectors, inputs=("input_ids", "attention_mask", "token_type_ids")):
    """Gather(vectors, input_ids), as an ONNX file has it."""
    tensor = field(1, vectors.shape[0]) + field(1, vectors.shape[1]) + field(2, FLOAT) + field(8, "vectors")
    tensor += field(9, vectors.astype("<f4").tobytes())
    node = field(1, "vectors") + field(1, inputs[0]) + field(2, "output") + field(4, "Gather")
    graph = field(1, node) + field(2, "look up") + field(5, tensor)
    graph += b"".join(field(11, value_info(name, INT64, ("batch", "tokens"))) for name in inputs)
    graph += field(12, value_info("output", FLOAT, ("batch", "tokens", vectors.shape[1])))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 14))


@pytest.fixture
def folder(tmp_path):
    """The folder of a model, with these settings."""

    def make(model=None, **settings):
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "model.onnx").write_bytes(model_of(VECTORS) if model is None else model)
        if settings:
            (tmp_path / "onnx_config.json").write_text(json.dumps(settings))
        return tmp_path

    return make


def rows_of(words):
    vectors = VECTORS[[WORDS.index(word) for word in words]]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def assert_is(matrix, words):
    assert matrix.dtype == np.float16
    np.testing.assert_allclose(matrix, rows_of(words), atol=1e-3)


def test_documents_and_queries(folder):
    encoder = OnnxEncoder(folder(query_length=8, skiplist_words=["."]), batch_size=2)
    texts = ["a red fox .", "whale", "a blue whale . a whale"]
    words = [
        ["[CLS]", "[D] ", "a", "red", "fox", "[SEP]"],
        ["[CLS]", "[D] ", "whale", "[SEP]"],
        ["[CLS]", "[D] ", "a", "blue", "whale", "a", "whale", "[SEP]"],
    ]
    for matrix, expected in zip(encoder.encode_document(texts), words, strict=True):
        assert_is(matrix, expected)
    assert encoder.document_words(texts) == words
    (query,) = encoder.encode_query(["a fox"])
    expected = ["[CLS]", "[Q] ", "a", "fox", "[SEP]", "[MASK]", "[MASK]", "[MASK]"]
    assert_is(query, expected)
    assert encoder.query_words(["a fox"]) == [expected]
    assert encoder.encode_query([]) == []


def test_long_texts_keep_their_last_token(folder):
    encoder = OnnxEncoder(folder(query_length=5, document_length=6, do_query_expansion=False))
    assert encoder.query_words(["a red fox a blue whale"]) == [["[CLS]", "[Q] ", "a", "red", "[SEP]"]]
    assert encoder.document_words(["a red fox a blue whale"]) == [["[CLS]", "[D] ", "a", "red", "fox", "[SEP]"]]
    assert encoder.query_words([""]) == [["[CLS]", "[Q] ", "[SEP]"]]


def test_settings(folder):
    made = folder(query_prefix="", document_prefix_id=8, do_query_expansion=False, do_lower_case=True, model_type="ColBERT")
    encoder = OnnxEncoder(made)
    assert encoder.query_words(["A Fox"]) == [["[CLS]", "a", "fox", "[SEP]"]]
    assert encoder.document_words(["FOX"]) == [["[CLS]", "red", "fox", "[SEP]"]]
    (made / "model.onnx").write_bytes(model_of(VECTORS, ("input_ids", "attention_mask")))
    assert_is(OnnxEncoder(made).encode_query(["fox"])[0], ["[CLS]", "fox", "[SEP]"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query_length": "32"}, "query_length '32', expected int"),
        ({"document_length": 2}, "document_length 2, expected 4 at least"),
        ({"do_query_expansion": 1}, "do_query_expansion 1, expected bool"),
        ({"query_prefix": "[Other]"}, r"query_prefix '\[Other\]' is no token of the tokenizer"),
    ],
)
def test_bad_settings(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        OnnxEncoder(folder(**settings))


def test_bad_folders(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model\.onnx; an encoder of ONNX is a folder"):
        OnnxEncoder(tmp_path)
    made = folder(embedding_dim=96)
    with pytest.raises(ValueError, match=r"has shape \(1, 4, 8\), expected \(1, 4, 96\)"):
        OnnxEncoder(made).encode_document(["fox"])
    (made / "model.onnx").write_bytes(model_of(VECTORS, ("words",)))
    with pytest.raises(ValueError, match="takes words; expected input_ids"):
        OnnxEncoder(made)
    (made / "onnx_config.json").write_text("[")
    with pytest.raises(ValueError, match="is no JSON object of settings"):
        OnnxEncoder(made)


def test_pickles_and_serves_a_text_index(folder):
    made = folder(query_length=8)
    encoder = pickle.loads(pickle.dumps(OnnxEncoder(made, num_threads=1)))
    assert_is(encoder.encode_document(["fox"])[0], ["[CLS]", "[D] ", "fox", "[SEP]"])
    texts = TextIndex(load(f"onnx:{made}"), LemurIndex())
    texts.add(["a red fox", "a blue whale"], ids=["fox", "whale"])
    assert texts.search("blue whale", k=1).ids.tolist() == ["whale"]
    assert list(texts.explain("blue whale", "whale").document_words) == ["[CLS]", "[D] ", "a", "blue", "whale", "[SEP]"]


@pytest.mark.skipif("LEMUR_ANN_ONNX" not in os.environ, reason="LEMUR_ANN_ONNX names the folder of a real model")
def test_a_real_model():
    encoder = OnnxEncoder(Path(os.environ["LEMUR_ANN_ONNX"]))
    texts = ["The fox is red and lives in the wood.", "Whales are mammals of the sea."]
    index = TextIndex((encoder.encode_query, encoder.encode_document), LemurIndex())
    index.add(texts, ids=["fox", "whale"])
    assert index.search("an animal of the ocean", k=1).ids.tolist() == ["whale"]
