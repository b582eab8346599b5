"""A real model through TextIndex: real texts in, real questions asked."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("onnxruntime", reason="pip install onnxruntime tokenizers")
pytest.importorskip("tokenizers", reason="pip install onnxruntime tokenizers")

from lemur_ann import LemurIndex, TextIndex

HELPER = runpy.run_path(str(Path(__file__).with_name("onnx_encoder.py")))


@pytest.fixture(scope="module")
def encoder():
    try:
        folder = HELPER["model_folder"]()
    except RuntimeError as error:
        pytest.skip(str(error))
    return HELPER["OnnxEncoder"](folder)


@pytest.fixture(scope="module")
def texts(encoder, demo_data):
    """A quarter of the sample's documents, those of all its queries among them, from their texts alone."""
    return TextIndex(encoder).add(demo_data.documents.drop_columns(["tokens"]).slice(0, 150))


def share_found(texts, queries: pa.Table) -> float:
    """Of the queries, those whose top 10 have the document that each was written for."""
    found = texts.search(queries.column("text").to_pylist(), k=10)
    return np.mean([own in hits.ids for own, hits in zip(queries.column("id").to_pylist(), found, strict=True)])


def test_queries_find_the_documents_they_were_written_for(texts, demo_data):
    assert texts.index.dim == 384
    assert share_found(texts, demo_data.queries) > 0.75


def test_scores_are_those_of_the_encoders_two_sides(texts, encoder, demo_data):
    ids, given = (demo_data.documents.column(name).to_pylist()[:32] for name in ("id", "text"))  # the first batch
    asked = demo_data.queries.column("text").to_pylist()[:10]
    queries, documents = encoder.encode_query(asked), encoder.encode_document(given)
    expected = [[(query @ document.T).max(1).sum() for document in documents] for query in queries]
    for hits, scores in zip(texts.search(asked, k=32, filter=ids), expected, strict=True):
        assert hits.scores == pytest.approx([scores[ids.index(doc_id)] for doc_id in hits.ids], abs=1e-3)
    assert texts.texts(ids) == given


def test_an_explanation_points_at_the_words_in_common(texts):
    doc_id = "libcollada-dom-dev"
    explanation = texts.explain("collada document object model headers", doc_id)
    assert explanation.rank <= 3
    for word in ("col", "##lad", "header"):
        token = explanation.query_words.index(word)
        assert explanation.document_words[explanation.best_tokens[token]] == word
        assert explanation.gains[token] > 3 * np.median(abs(explanation.gains))
    assert texts.explain_miss("collada document object model headers", doc_id, 10).stage == "found"


def test_learned_from_the_documents_own_sentences(texts, encoder, demo_data):
    index = LemurIndex(num_features=256, epochs=2, num_candidates=50, ef_search=None)
    learned = TextIndex(encoder, index.add(texts.index.get(texts.index.ids()))).fit(progress=False)
    assert learned.index.is_fitted
    assert share_found(learned, demo_data.queries) > 0.6
