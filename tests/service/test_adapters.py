"""Frameworks over an index that a service has, in the place of one that is here."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import lemur_ann
from lemur_ann import TextIndex

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
TEXTS = ["a red fox", "a blue whale", "a black crow", "a blue crow"]


@pytest.fixture
def remote(serve):
    """An empty index of a service without an encoder."""
    with lemur_ann.connect(serve().address, "index") as index:
        yield index


def test_text_index(remote, word_encoder):
    texts = TextIndex(word_encoder, remote).add(TEXTS, ids=["fox", "whale", "crow", "jay"])
    twin = TextIndex(word_encoder).add(TEXTS, ids=["fox", "whale", "crow", "jay"])
    assert texts.search("blue", 3) == twin.search("blue", 3)
    assert texts.search(["blue", "red"], 3, filter=["fox", "jay"]) == twin.search(["blue", "red"], 3, filter=["fox", "jay"])
    assert texts.texts(["jay"]) == ["a blue crow"]
    assert len(texts) == 4
    assert "jay" in texts
    assert str(texts.explain("blue", "jay")) == str(twin.explain("blue", "jay"))
    texts.upsert(pa.table({"id": ["jay"], "text": ["a blue jay"]}))
    assert texts.texts(["jay"]) == ["a blue jay"]
    assert texts.delete(["jay"]) == 1
    texts.fit(queries=TEXTS)
    assert remote.is_fitted
    with pytest.raises(ValueError, match="no encoder at its service"):
        texts.fit()
    assert "RemoteIndex" in repr(texts)
    with pytest.raises(TypeError, match="LemurIndex or a RemoteIndex"):
        TextIndex(word_encoder, "index")


def test_a_service_learns_with_its_own_encoder(serve, word_encoder):
    with lemur_ann.connect(serve(encoder=word_encoder).address, "index") as remote:
        texts = TextIndex(word_encoder, remote).add([f"{text} number {i}" for i in range(20) for text in TEXTS])
        texts.fit()
        assert remote.is_fitted


def test_langchain(remote, word_encoder):
    pytest.importorskip("langchain_core", reason="pip install lemur_ann[langchain]")
    from lemur_ann.adapters.langchain import LemurRetriever, LemurVectorStore

    store = LemurVectorStore(word_encoder, remote)
    assert store.add_texts(TEXTS, [{"n": i} for i in range(4)], ids=["fox", "whale", "crow", "jay"]) == [
        "fox",
        "whale",
        "crow",
        "jay",
    ]
    found = store.similarity_search_with_score("blue crow", k=2)
    assert found[0][0].id == "jay"
    assert [document.id for document in store.similarity_search("blue", k=3, filter={"n": 1})] == ["whale"]
    assert [document.id for document in store.similarity_search("blue", filter=lambda document: document.id == "fox")] == [
        "fox"
    ]
    assert len(store.max_marginal_relevance_search("blue", k=2)) == 2
    assert [document.page_content for document in store.get_by_ids(["crow", "nobody"])] == ["a black crow"]
    assert LemurRetriever(store=store, k=1).invoke("red")[0].id == "fox"
    with pytest.raises(TypeError, match="is a dict such as"):
        store.similarity_search("blue", filter=pc.field("text") != "")
    assert store.delete(["fox", "nobody"])
    assert len(remote) == 3
    assert store.delete()
    assert len(remote) == 0


def test_llama_index(remote, word_encoder):
    pytest.importorskip("llama_index.core", reason="pip install lemur_ann[llama-index]")
    from lemur_ann.adapters.llama_index import LemurRetriever, LemurVectorStore
    from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
    from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQuery

    store = LemurVectorStore(word_encoder, remote)
    names = ["fox", "whale", "crow", "jay"]
    for name, text in zip(names, TEXTS, strict=True):
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"book of the {name}")}
        store.add([TextNode(id_=name, text=text, metadata={"name": name}, relationships=source)])
    found = store.query(VectorStoreQuery(query_str="blue", similarity_top_k=2))
    assert set(found.ids) == {"whale", "jay"}
    filters = MetadataFilters(filters=[MetadataFilter(key="name", value="jay")])
    assert store.query(VectorStoreQuery(query_str="blue", similarity_top_k=2, filters=filters)).ids == ["jay"]
    both = VectorStoreQuery(query_str="blue", node_ids=["fox", "jay"], doc_ids=["book of the fox"])
    assert store.query(both).ids == ["fox"]
    assert store.query(VectorStoreQuery(query_str="blue", doc_ids=[])).ids == []
    assert [node.node_id for node in store.get_nodes(["crow", "nobody"])] == ["crow"]
    assert LemurRetriever(store.texts, 1, filter={"ref_doc_id": "book of the fox"}).retrieve("blue")[0].node.node_id == "fox"
    store.delete("book of the fox")
    store.delete_nodes(["crow"])
    assert set(remote) == {"whale", "jay"}
    LemurVectorStore(word_encoder, remote)
    store.clear()
    assert len(remote) == 0


def test_haystack(remote, word_encoder):
    pytest.importorskip("haystack", reason="pip install lemur_ann[haystack]")
    from haystack import Document
    from haystack.core.errors import SerializationError
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy
    from lemur_ann.adapters.haystack import LemurDocumentStore, LemurRetriever

    store = LemurDocumentStore(word_encoder, index=remote)
    names = ["fox", "whale", "crow", "jay"]
    documents = [
        Document(id=name, content=text, meta={"n": i}) for i, (name, text) in enumerate(zip(names, TEXTS, strict=True))
    ]
    assert store.retrieve("blue") == []
    assert store.write_documents([*documents, Document(id="nothing", meta={"n": 9})]) == 5
    with pytest.raises(DuplicateDocumentError):
        store.write_documents(documents[:1])
    assert store.write_documents(documents[:1], DuplicatePolicy.OVERWRITE) == 1
    assert store.count_documents() == 5
    assert {document.id for document in store.retrieve("blue", top_k=2)} == {"whale", "jay"}
    assert len(store.retrieve("blue", top_k=9)) == 4
    low = {"field": "meta.n", "operator": "<", "value": 2}
    assert {document.id for document in store.filter_documents(low)} == {"fox", "whale"}
    assert LemurRetriever(store, filters=low, top_k=1).run("blue")["documents"][0].id == "whale"
    assert store.update_by_filter(low, {"seen": True}) == 2
    assert store.filter_documents(low)[0].meta["seen"]
    assert store.delete_by_filter(low) == 2
    with pytest.raises(SerializationError, match="open index"):
        store.to_dict()
    with pytest.raises(ValueError, match="takes the place of path"):
        LemurDocumentStore(word_encoder, path="somewhere", index=remote)
    store.close()
    store.delete_all_documents()
    assert len(remote) == 0
