from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

pytest.importorskip("llama_index.core", reason="pip install lemur_ann[llama-index]")

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from lemur_ann.adapters.llama_index import LemurRetriever, LemurVectorStore
from llama_index.core import (
    Document,
    MockEmbedding,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import VectorIndexRetriever
from llama_index.core.schema import (
    ImageNode,
    IndexNode,
    MetadataMode,
    NodeRelationship,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from lemur_ann import LemurIndex, TextIndex
from lemur_ann.demo import demo_encoder

FIT = {"num_features": 64, "epochs": 1, "rank": 15, "num_candidates": 40, "ef_search": None}
EMBEDDING = MockEmbedding(embed_dim=1)


def node(node_id, text, source=None, embedding=(1.0, 0.0), **metadata):
    relationships = {} if source is None else {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=source)}
    return TextNode(
        id_=node_id,
        text=text,
        embedding=list(embedding),
        metadata=metadata,
        relationships=relationships,
        excluded_embed_metadata_keys=list(metadata),
    )


def nodes():
    """Their order by similarity to the query of `asked` is c, a, b, d in both stores."""
    return [
        node("a", "red fox", "doc-0", (1, 0.2), weight=1.0, rank="a", quality=["medium", "high"], identifier="6FTR78Yun"),
        node("b", "red sea", "doc-1", (0.5, 1), weight=2.0, rank="c", quality=["medium"], identifier="6FTR78Ygl", note=""),
        node("c", "quick red fox", "doc-2", (1, 0), weight=3.0, rank="c", quality=[], identifier="6ftr78Ztl", note="x"),
        node("d", "whale", None, (0, 1), weight=4, rank=None, identifier="none"),
    ]


def asked(**how):
    return VectorStoreQuery(**{"query_str": "quick red fox", "query_embedding": [1.0, 0.0], "similarity_top_k": 10, **how})


def where(*parts, condition="and"):
    filters = [MetadataFilter(key=p[0], operator=p[1], value=p[2]) if isinstance(p, tuple) else p for p in parts]
    return MetadataFilters(filters=filters, condition=condition)


@pytest.fixture
def lemur(word_encoder):
    return LemurVectorStore(word_encoder)


# What LlamaIndex's own store and this one agree on. SimpleVectorStore's tests are the only statement of it.


@pytest.fixture(params=["SimpleVectorStore", "LemurVectorStore"])
def store(request, lemur):
    return SimpleVectorStore() if request.param == "SimpleVectorStore" else lemur


@pytest.fixture
def filled(store):
    assert store.add(nodes()) == ["a", "b", "c", "d"]
    return store


FILTERS = [
    (where(("rank", "==", "c")), "bc"),
    (where(("weight", "==", 2)), "b"),
    (where(("weight", "==", 1.0)), "a"),
    (where(("unknown", "==", "c")), ""),
    (where(("rank", "!=", "c")), "ad"),
    (where(("unknown", "!=", "c")), "abcd"),
    (where(("weight", ">", 1.5)), "bcd"),
    (where(("weight", ">=", 2.0)), "bcd"),
    (where(("weight", "<", 1.1)), "a"),
    (where(("weight", "<=", 2)), "ab"),
    (where(("rank", "in", ["a", "b"])), "a"),
    (where(("weight", "in", [1, 4])), "ad"),
    (where(("rank", "nin", ["c"])), "ad"),
    (where(("quality", "any", ["high", "low"])), "a"),
    (where(("quality", "all", ["medium", "high"])), "a"),
    (where(("quality", "contains", "medium")), "ab"),
    (where(("identifier", "text_match", "6FTR78Y")), "ab"),
    (where(("identifier", "text_match_insensitive", "6FTR78")), "abc"),
    (where(("rank", "is_empty", None)), "d"),
    (where(("quality", "is_empty", None)), "cd"),
    (where(("note", "is_empty", None)), "abd"),
    (where(("doc_id", "==", "doc-1")), "b"),
    (where(("ref_doc_id", "in", ["doc-1", "doc-2"])), "bc"),
    (where(("rank", "==", "c"), ("weight", ">", 2)), "c"),
    (where(("weight", "==", 2), ("weight", "==", 3)), ""),
    (where(("rank", "==", "c"), ("weight", ">", 2), condition=None), "c"),
    (where(("rank", "==", "a"), ("weight", ">", 2), condition="or"), "acd"),
    (where(("rank", "==", "a"), condition="not"), "bcd"),
    (where(("rank", "==", "a"), ("weight", ">", 3), condition="not"), "bc"),
    (where(), "abcd"),
    (where(condition="not"), "abcd"),
]


def test_the_filters_below_are_all_there_are():
    used = {part.operator for filters, _ in FILTERS for part in filters.filters}
    assert used == set(FilterOperator)
    assert {filters.condition for filters, _ in FILTERS} == {*FilterCondition, None}


@pytest.mark.parametrize(("filters", "expected"), FILTERS, ids=[str(i) for i in range(len(FILTERS))])
def test_filters(filled, filters, expected):
    assert set(filled.query(asked(filters=filters)).ids) == set(expected)
    if not filters.filters and isinstance(filled, LemurVectorStore):
        with pytest.raises(ValueError, match="filters are empty"):
            filled.delete_nodes(filters=filters)
        return
    filled.delete_nodes(filters=filters)
    assert set(filled.query(asked()).ids) == set("abcd") - set(expected)


@pytest.mark.parametrize("operator", ["text_match", "text_match_insensitive", ">"])
def test_a_filter_of_another_type_is_an_error(filled, operator):
    with pytest.raises(TypeError):
        filled.query(asked(filters=where(("weight", operator, "1"))))


def test_best_first_and_top_k(filled):
    assert filled.query(asked()).ids == ["c", "a", "b", "d"]
    assert filled.query(asked(similarity_top_k=2)).ids == ["c", "a"]
    assert filled.query(asked(similarity_top_k=1, filters=where(("weight", "<", 3)))).ids == ["a"]
    similarities = filled.query(asked()).similarities
    assert similarities == sorted(similarities, reverse=True)


def test_node_ids(filled):
    assert filled.query(asked(node_ids=["d", "a", "unknown"])).ids == ["a", "d"]
    assert filled.query(asked(node_ids=["a", "c"], filters=where(("rank", "==", "c")))).ids == ["c"]


def test_the_same_id_replaces(filled):
    assert filled.add([node("a", "whale whale", embedding=(0, 1), rank="z")]) == ["a"]
    assert filled.query(asked(similarity_top_k=2)).ids == ["c", "b"]
    assert filled.query(asked(filters=where(("rank", "==", "z")))).ids == ["a"]
    assert filled.query(asked(filters=where(("rank", "==", "a")))).ids == []
    assert filled.add([node("e", "red"), node("e", "fox", rank="second")]) == ["e", "e"]
    assert filled.query(asked(filters=where(("rank", "==", "second")))).ids == ["e"]


def test_delete_by_source(filled):
    filled.delete("doc-2")
    filled.delete("unknown")
    assert filled.query(asked()).ids == ["a", "b", "d"]


def test_delete_nodes(filled):
    filled.delete_nodes([])
    filled.delete_nodes(["unknown"])
    filled.delete_nodes(["a", "c"], where(("rank", "==", "c")))
    assert filled.query(asked()).ids == ["a", "b", "d"]
    filled.delete_nodes(["b", "a", "unknown"])
    assert filled.query(asked()).ids == ["d"]


def test_clear_and_go_on(filled):
    filled.clear()
    assert filled.query(asked()).ids == []
    filled.add(nodes()[:1])
    assert filled.query(asked(filters=where(("rank", "==", "a")))).ids == ["a"]


def test_an_empty_store(store):
    assert store.query(asked()).ids == []
    assert store.query(asked(filters=where(("rank", "==", "a")), node_ids=["a"])).ids == []
    assert store.add([]) == []
    store.delete("doc-0")
    store.delete_nodes(["a"])
    store.delete_nodes(filters=where(("rank", "==", "a")))
    store.clear()


def test_a_mode_it_has_not(filled):
    with pytest.raises(ValueError, match="Invalid query mode"):
        filled.query(asked(mode=VectorStoreQueryMode.TEXT_SEARCH))


@pytest.mark.parametrize("fs", [None, LocalFileSystem()])
def test_persist(filled, word_encoder, tmp_path, fs):
    how = {} if isinstance(filled, SimpleVectorStore) else {"encoder": word_encoder}
    filled.persist(str(tmp_path / "not" / "there" / "default__vector_store.json"), fs=fs)
    loaded = type(filled).from_persist_dir(str(tmp_path / "not" / "there"), fs=fs, **how)
    for filters, expected in FILTERS[:3]:
        assert set(loaded.query(asked(filters=filters)).ids) == set(expected)
    assert loaded.query(asked()) == filled.query(asked())
    with pytest.raises(ValueError, match="No existing"):
        type(filled).from_persist_path(str(tmp_path / "nowhere"), fs=fs, **how)


async def test_async_variants_agree(filled):
    assert await filled.async_add([node("e", "red red", "doc-9")]) == ["e"]
    assert (await filled.aquery(asked())).ids == filled.query(asked()).ids
    await filled.adelete("doc-9")
    await filled.adelete_nodes(["d"])
    await filled.adelete_nodes(filters=where(("rank", "==", "a")))
    assert filled.query(asked()).ids == ["c", "b"]
    await filled.aclear()
    assert filled.query(asked()).ids == []


# What SimpleVectorStore has not


def test_nested_filters_against_the_truth_of_their_parts(lemur):
    simple = SimpleVectorStore()
    for store in (lemur, simple):
        store.add(nodes())
    leaves = [filters.filters[0] for filters, _ in FILTERS if len(filters.filters) == 1]
    truth = [set(simple.query(asked(filters=MetadataFilters(filters=[leaf]))).ids) for leaf in leaves]
    chance = random.Random(0)

    def make(depth):
        if depth == 0:
            i = chance.randrange(len(leaves))
            return leaves[i], truth[i]
        parts = [make(chance.randrange(depth)) for _ in range(chance.randint(1, 3))]
        condition = chance.choice(list(FilterCondition))
        combine = {"and": all, "or": any, "not": lambda values: not any(values)}[condition.value]
        passing = {one for one in "abcd" if combine([one in ids for _, ids in parts])}
        return MetadataFilters(filters=[part for part, _ in parts], condition=condition), passing

    for _ in range(200):
        filters, expected = make(3)
        if isinstance(filters, MetadataFilter):
            continue
        assert set(lemur.query(asked(filters=filters)).ids) == expected


def test_scores_are_maxsim_of_the_embedding_text(lemur, word_encoder):
    given = [*nodes(), TextNode(id_="e", text="sea", metadata={"title": "quick"}), Document(id_="f", text="a fox")]
    lemur.add(given)
    query = word_encoder.queries(["quick red fox"])[0]
    texts = [one.get_content(metadata_mode=MetadataMode.EMBED) for one in given]
    assert texts[4] == "title: quick\n\nsea"
    expected = {
        one.node_id: (query @ document.T).max(1).sum()
        for one, document in zip(given, word_encoder.documents(texts), strict=True)
    }
    result = lemur.query(asked())
    assert dict(zip(result.ids, result.similarities, strict=True)) == pytest.approx(expected, abs=1e-5)
    assert result.ids == sorted(expected, key=expected.get, reverse=True)
    assert lemur.texts.texts("e") == ["title: quick\n\nsea"]


def test_nodes_come_back_as_they_were(lemur):
    full = TextNode(
        id_="full",
        text='with "quotes", ümlauts\nand lines',
        metadata={"nested": {"deep": [1, None]}, "doc_id": "the user's own", "metadata": "too"},
        excluded_embed_metadata_keys=["nested"],
        excluded_llm_metadata_keys=["doc_id"],
        start_char_idx=3,
        end_char_idx=9,
        text_template="{metadata_str}|{content}",
        relationships={
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"page": 1}),
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="after"),
        },
    )
    pointer = IndexNode(id_="pointer", text="see the table", index_id="table")
    image = ImageNode(id_="image", text="a picture", image_url="http://127.0.0.1/fox.png")
    lemur.add([full, pointer, image])
    assert lemur.get_nodes(["pointer", "full", "image"]) == [pointer, full, image]
    found = lemur.query(asked(node_ids=["full"])).nodes[0]
    assert found == full
    assert found is not full
    assert found.ref_doc_id == "doc"


def test_get_nodes(lemur):
    lemur.add(nodes())
    assert [one.node_id for one in lemur.get_nodes()] == ["a", "b", "c", "d"]
    assert [one.node_id for one in lemur.get_nodes(["d", "unknown", "a", "d"])] == ["d", "a"]
    assert [one.node_id for one in lemur.get_nodes(filters=where(("rank", "==", "c")))] == ["b", "c"]
    assert [one.node_id for one in lemur.get_nodes(["c", "a"], where(("rank", "==", "c")))] == ["c"]
    assert lemur.get_nodes([]) == []


@pytest.mark.parametrize(
    ("doc_ids", "expected"), [(None, "abcd"), ([], ""), (["unknown"], ""), (["doc-0"], "a"), (["doc-2", "doc-1"], "bc")]
)
def test_doc_ids(lemur, doc_ids, expected):
    lemur.add(nodes())
    assert set(lemur.query(asked(doc_ids=doc_ids)).ids) == set(expected)
    limited = asked(doc_ids=doc_ids, node_ids=["a", "b"], filters=where(("weight", "<", 2)))
    assert set(lemur.query(limited).ids) == set(expected) & {"a"}


def test_what_is_refused(lemur, word_encoder, tmp_path):
    lemur.add(nodes())
    with pytest.raises(ValueError, match="searches by query_str"):
        lemur.query(VectorStoreQuery(query_embedding=[1.0, 0.0]))
    with pytest.raises(ValueError, match=r"clear\(\) deletes all"):
        lemur.delete_nodes()
    with pytest.raises(ValueError, match="k must be at least 1"):
        lemur.query(asked(similarity_top_k=0))
    with pytest.raises(TypeError, match="beam"):
        lemur.query(asked(), beam=3)
    with pytest.raises(NotImplementedError, match="local"):
        lemur.persist(str(tmp_path / "there"), fs=MemoryFileSystem())
    with pytest.raises(NotImplementedError, match="local"):
        LemurVectorStore.from_persist_path(str(tmp_path), MemoryFileSystem(), encoder=word_encoder)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        lemur.persist(str(tmp_path / "notes"))
    with pytest.raises(ValueError, match="no LemurVectorStore added"):
        LemurVectorStore(word_encoder, TextIndex(word_encoder).add(["red"], ids=["a"]).index)
    with pytest.raises(TypeError, match="encoder must be"):
        LemurVectorStore(3)
    assert [one.node_id for one in lemur.get_nodes()] == ["a", "b", "c", "d"]


def test_changes_by_another_hand_are_seen(lemur, word_encoder):
    other = LemurVectorStore(word_encoder, lemur.client)
    lemur.add(nodes())
    only = where(("rank", "==", "c"))
    assert set(lemur.query(asked(filters=only)).ids) == {"b", "c"}
    other.add([node("d", "whale", rank="c")])
    assert set(lemur.query(asked(filters=only)).ids) == {"b", "c", "d"}
    other.delete_nodes(["b"])
    assert set(lemur.query(asked(filters=only)).ids) == {"c", "d"}
    other.client.compact()
    assert set(lemur.query(asked(filters=only)).ids) == {"c", "d"}


def test_reading_while_others_write(lemur):
    lemur.add(nodes())
    stop, errors = threading.Event(), []

    def write():
        try:
            for i in range(30):
                lemur.add([node(f"{i}", "red fox", f"s{i}", rank="c"), node("b", "red", rank="c")])
                lemur.delete(f"s{i - 1}")
        except Exception as error:
            errors.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not stop.is_set():
        found = lemur.query(asked(filters=where(("rank", "==", "c"))))
        assert {one.metadata["rank"] for one in found.nodes} == {"c"}
        assert len(lemur.get_nodes()) >= 4
    thread.join()
    assert errors == []


WAITING = [
    ("async_add", [nodes()]),
    ("aquery", [asked()]),
    ("adelete", ["doc-0"]),
    ("adelete_nodes", [["a"]]),
    ("aget_nodes", [["a"]]),
    ("aclear", []),
]


@pytest.mark.parametrize(("name", "arguments"), WAITING, ids=[name for name, _ in WAITING])
async def test_the_event_loop_goes_on_meanwhile(word_encoder, name, arguments):
    go_on = threading.Event()

    def slowly(encode):
        return lambda texts: go_on.wait(10) and encode(texts)

    class Slow(LemurVectorStore):
        @property
        def client(self):
            go_on.wait(10)
            return super().client

    go_on.set()
    slow = Slow((slowly(word_encoder.queries), slowly(word_encoder.documents)))
    slow.add(nodes())
    go_on.clear()
    task = asyncio.create_task(getattr(slow, name)(*arguments))
    await asyncio.sleep(0.05)  # it has begun, and waits
    assert not go_on.is_set()
    assert not task.done()
    go_on.set()
    await task


def test_fitted(word_encoder):
    store = LemurVectorStore(word_encoder, LemurIndex(**FIT))
    texts = [f"this is document{i} about topic{i % 7} and word{i % 31}" for i in range(200)]
    store.add([node(f"{i}", text, f"doc-{i % 5}", topic=i % 7) for i, text in enumerate(texts)])
    before = store.query(asked(query_str="about topic3 word3 document3", similarity_top_k=5))
    assert store.fit([f"about topic{i % 7} word{i % 31}" for i in range(200)], progress=False) is store
    assert store.client.is_fitted
    after = store.query(asked(query_str="about topic3 word3 document3", similarity_top_k=5), num_candidates=200)
    assert after.ids == before.ids
    assert after.similarities == pytest.approx(before.similarities, abs=1e-5)
    few = where(("topic", "==", 3), ("topic", "==", 4), condition="or")
    limited = store.query(asked(query_str="word12", filters=few, doc_ids=["doc-1"], similarity_top_k=50))
    assert set(limited.ids) == {f"{i}" for i in range(200) if i % 7 in (3, 4) and i % 5 == 1}
    store.add([node("new", "word12 word12")])
    store.delete("doc-2")
    found = store.query(asked(query_str="word12", similarity_top_k=200), exact=True)
    assert "new" in found.ids
    assert len(found.ids) == 161
    store.clear()
    store.add([node("again", "word12")])
    assert store.query(asked(query_str="word12")).ids == ["again"]


def test_it_learns_by_itself_once_there_are_many(word_encoder):
    store = LemurVectorStore(word_encoder, LemurIndex(**FIT), fit_at=150)
    store.add([node(f"{i}", f"this is document{i} about word{i % 31}") for i in range(150)])
    assert store.client.is_fitted


def test_real_embeddings(demo_data):
    store = LemurVectorStore(demo_encoder(demo_data), LemurIndex(num_candidates=600))
    ids, texts = (demo_data.documents.column(name).to_pylist() for name in ("id", "text"))
    store.add([TextNode(id_=str(i), text=text) for i, text in zip(ids, texts, strict=True)])
    exact = LemurIndex().add(demo_data.documents).search(demo_data.queries, k=5)
    retriever = VectorStoreIndex.from_vector_store(store, embed_model=EMBEDDING).as_retriever(similarity_top_k=5)
    for query, hits in zip(demo_data.queries.column("text").to_pylist(), exact, strict=True):
        found = retriever.retrieve(query)
        assert [one.node_id for one in found] == [str(i) for i in hits.ids]
        np.testing.assert_allclose([one.score for one in found], hits.scores, rtol=1e-6)


# In LlamaIndex


@pytest.fixture
def index(lemur):
    documents = [Document(id_=f"doc-{i}", text=text) for i, text in enumerate(["a red fox", "a blue whale", "the red sea"])]
    context = StorageContext.from_defaults(vector_store=lemur)
    return VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=EMBEDDING)


def sources(found):
    return [one.node.ref_doc_id for one in found]


def test_vector_store_index(index, lemur):
    assert sources(index.as_retriever(similarity_top_k=1).retrieve("blue whale")) == ["doc-1"]
    index.insert(Document(id_="doc-3", text="a white whale"))
    assert set(sources(index.as_retriever(similarity_top_k=2).retrieve("whale"))) == {"doc-1", "doc-3"}
    index.update_ref_doc(Document(id_="doc-1", text="a green frog"))
    assert sources(index.as_retriever(similarity_top_k=1).retrieve("whale")) == ["doc-3"]
    index.delete_ref_doc("doc-3", delete_from_docstore=True)
    assert len(lemur.client) == 3
    retriever = index.as_retriever(similarity_top_k=3, filters=where(("doc_id", "in", ["doc-0", "doc-2"])))
    assert set(sources(retriever.retrieve("whale"))) == {"doc-0", "doc-2"}
    assert sources(index.as_retriever(doc_ids=["doc-2"]).retrieve("whale")) == ["doc-2"]
    exact = index.as_retriever(similarity_top_k=1, vector_store_kwargs={"exact": True})
    assert sources(exact.retrieve("frog")) == ["doc-1"]
    index.delete_nodes([one.node_id for one in lemur.get_nodes(filters=where(("doc_id", "==", "doc-0")))])
    assert set(sources(index.as_retriever(similarity_top_k=9).retrieve("red"))) == {"doc-1", "doc-2"}


async def test_async_in_an_index(index):
    await index.ainsert(Document(id_="doc-3", text="a white whale"))
    await index.adelete_ref_doc("doc-1")
    assert sources(await index.as_retriever(similarity_top_k=1).aretrieve("whale")) == ["doc-3"]
    response = await index.as_query_engine(llm=MockLLM(), similarity_top_k=1).aquery("white whale")
    assert "a white whale" in str(response)


def test_from_vector_store_and_a_query_engine(index, lemur):
    again = VectorStoreIndex.from_vector_store(lemur, embed_model=EMBEDDING)
    response = again.as_query_engine(llm=MockLLM(), similarity_top_k=1).query("blue whale")
    assert "a blue whale" in str(response)
    assert "the red sea" not in str(response)
    assert sources(response.source_nodes) == ["doc-1"]


def test_storage_context_round_trip(index, word_encoder, tmp_path):
    index.storage_context.persist(tmp_path / "storage")
    store = LemurVectorStore.from_persist_dir(str(tmp_path / "storage"), encoder=word_encoder)
    context = StorageContext.from_defaults(vector_store=store, persist_dir=str(tmp_path / "storage"))
    loaded = load_index_from_storage(context, embed_model=EMBEDDING)
    before, after = (one.as_retriever(similarity_top_k=3).retrieve("blue whale") for one in (index, loaded))
    assert after == before
    loaded.insert(Document(id_="doc-3", text="whale whale"))
    loaded.storage_context.persist(tmp_path / "storage")  # over what is there
    store = LemurVectorStore.from_persist_dir(str(tmp_path / "storage"), encoder=word_encoder)
    assert len(store.client) == 4
    assert len(index.vector_store.client) == 3


def test_an_empty_store_is_kept_too(lemur, word_encoder, tmp_path):
    lemur.persist(str(tmp_path / "empty"))
    store = LemurVectorStore.from_persist_path(str(tmp_path / "empty"), encoder=word_encoder)
    store.add(nodes())
    assert store.query(asked()).ids == ["c", "a", "b", "d"]


def test_another_process(demo_data, tmp_path):
    store = LemurVectorStore(demo_encoder(demo_data))
    texts = demo_data.documents.column("text").to_pylist()[:20]
    store.add([TextNode(id_=f"{i}", text=text) for i, text in enumerate(texts)])
    store.persist(str(tmp_path / "default__vector_store.json"))
    program = f"""
from lemur_ann.adapters.llama_index import LemurVectorStore
from lemur_ann.demo import demo_encoder, load_demo_data
from llama_index.core.vector_stores.types import VectorStoreQuery
store = LemurVectorStore.from_persist_dir({str(tmp_path)!r}, encoder=demo_encoder())
query = load_demo_data().queries.column("text")[0].as_py()
print(*store.query(VectorStoreQuery(query_str=query, similarity_top_k=20)).ids)
"""
    query = VectorStoreQuery(query_str=demo_data.queries.column("text")[0].as_py(), similarity_top_k=20)
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == store.query(query).ids


def test_on_disk(word_encoder, tmp_path):
    with LemurIndex.open(tmp_path / "index") as index:
        store = LemurVectorStore(word_encoder, index)
        store.add(nodes())
        reader = LemurVectorStore(word_encoder, LemurIndex.open(tmp_path / "index", read_only=True))
        assert reader.query(asked(filters=where(("rank", "==", "c")))).ids == ["c", "b"]
        store.add([node("d", "whale", rank="c")])
        reader.client.refresh()
        assert reader.query(asked(filters=where(("rank", "==", "c")))).ids == ["c", "b", "d"]


def test_index_nodes_beside_text(lemur):
    table = TextNode(id_="row", text="fox 3, whale 5")
    pointer = IndexNode(id_="pointer", text="a table of animals", index_id="table", obj=table)
    context = StorageContext.from_defaults(vector_store=lemur)
    index = VectorStoreIndex([node("a", "a red fox")], objects=[pointer], storage_context=context, embed_model=EMBEDDING)
    # as_retriever() would look among index nodes only, which LlamaIndex names as node_ids
    retriever = VectorIndexRetriever(index, similarity_top_k=1, object_map={"table": table})
    assert retriever.retrieve("red fox")[0].node_id == "a"
    assert retriever.retrieve("table of animals")[0].node_id == "row"


def test_ingestion_pipeline(lemur):
    pipeline = IngestionPipeline(
        transformations=[EMBEDDING],
        vector_store=lemur,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
    )
    pipeline.run(documents=[Document(id_="one", text="a red fox"), Document(id_="two", text="a blue whale")])
    pipeline.run(documents=[Document(id_="one", text="a green fox"), Document(id_="two", text="a blue whale")])
    assert {one.text for one in lemur.get_nodes()} == {"a green fox", "a blue whale"}
    assert lemur.query(asked(query_str="green", similarity_top_k=1)).nodes[0].text == "a green fox"


# The retriever


@pytest.fixture
def texts(word_encoder):
    table = pa.table({"id": [1, 2, 3], "text": ["a red fox", "a blue whale", "the red sea"], "year": [1999, 2020, 2021]})
    return TextIndex(word_encoder).add(table)


def test_retriever(texts, word_encoder):
    first, second = LemurRetriever(texts).retrieve("red fox")
    assert (first.node_id, first.text, first.metadata) == ("1", "a red fox", {"year": 1999})
    (query,), documents = word_encoder.queries(["red fox"]), word_encoder.documents(["a red fox", "the red sea"])
    expected = [(query @ document.T).max(1).sum() for document in documents]
    assert [first.score, second.score] == pytest.approx(expected, abs=1e-5)
    recent = LemurRetriever(texts, 3, filter=pc.field("year") > 2000, exact=True)
    assert {one.node_id for one in recent.retrieve("red fox")} == {"2", "3"}
    assert [one.node_id for one in LemurRetriever(texts, filter=[2]).retrieve(QueryBundle("red fox"))] == ["2"]


async def test_retriever_async_and_in_an_engine(texts):
    retriever = LemurRetriever(texts, 1)
    assert (await retriever.aretrieve("whale"))[0].node_id == "2"
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    assert "a blue whale" in str(engine.query("whale"))
    assert "a blue whale" in str(await engine.aquery("whale"))


def test_retriever_gives_a_stores_nodes(lemur):
    lemur.add(nodes())
    assert LemurRetriever(lemur.texts, 1).retrieve("quick red fox")[0].node == lemur.get_nodes(["c"])[0]


def test_retriever_of_nothing(word_encoder):
    assert LemurRetriever(TextIndex(word_encoder), filter=pc.field("year") > 2000).retrieve("fox") == []


def test_without_llama_index_the_error_names_the_extra(tmp_path):
    program = "import sys; sys.modules['llama_index'] = None; import lemur_ann.adapters.llama_index"
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "ImportError: lemur_ann.adapters.llama_index needs LlamaIndex: pip install lemur_ann[llama-index]" in ended.stderr


WEIRD = ["a/b", "..", "it's", 'say "x"', "\\", "new\nline", "\u00fc\u221e\U0001f642", "%s", "x" * 2000, " ", "None", "1"]
WEIRD += ["", "nul\0"]


@pytest.mark.parametrize("name", WEIRD)
def test_ids_of_any_characters(lemur, name):
    for delete in (lemur.delete, lambda one: lemur.delete_nodes([one])):
        lemur.add([node(name, "red fox", source=name), node("other", "blue", source="another")])
        assert [one.node_id for one in lemur.get_nodes([name])] == [name]
        assert name in lemur.query(asked()).ids
        assert lemur.query(asked(node_ids=[name])).ids[:1] == [name]
        assert lemur.query(asked(doc_ids=[name])).ids == [name]
        delete(name)
        assert list(lemur.client) == ["other"]


def test_what_is_no_deletion_deletes_nothing(lemur):
    lemur.add(nodes())
    lemur.delete_nodes([])
    lemur.delete("nobody")
    empty = MetadataFilters(filters=[])
    with pytest.raises(ValueError, match=r"clear\(\) deletes all"):
        lemur.delete_nodes()
    inner = MetadataFilters(filters=[MetadataFilter(key="year", value=1), empty], condition="or")
    for all_pass in (empty, MetadataFilters(filters=[empty]), inner):
        with pytest.raises(ValueError, match=r"would delete all nodes; clear\(\) deletes all"):
            lemur.delete_nodes(filters=all_pass)
    for wrong in ({"year": 1}, "year", [1], [], {}):
        with pytest.raises(TypeError, match="filters must be MetadataFilters"):
            lemur.delete_nodes(filters=wrong)
        with pytest.raises(TypeError, match="filters must be MetadataFilters"):
            lemur.query(asked(filters=wrong))
        with pytest.raises(TypeError, match="filters must be MetadataFilters"):
            lemur.get_nodes(filters=wrong)
    for wrong in ({"a": 1}, b"a", 5):
        with pytest.raises(TypeError):
            lemur.delete_nodes(wrong)
    for wrong in (None, 5, ["a"]):
        with pytest.raises(TypeError, match="ref_doc_id must be a string"):
            lemur.delete(wrong)
    for wrong in ({"node_ids": "a"}, {"doc_ids": "a"}):
        with pytest.raises(TypeError, match="must be lists of ids, got str"):
            lemur.query(asked(**wrong))
    assert len(lemur.client) == 4
    lemur.delete_nodes(["a"], empty)
    lemur.delete_nodes("b")
    assert sorted(lemur.client) == ["c", "d"]


def test_what_is_no_node_is_told(lemur):
    for wrong in (node("z", "red"), "red", ["red"], [None], [node("z", "red"), None]):
        with pytest.raises(TypeError, match="nodes must be a list of nodes"):
            lemur.add(wrong)
    assert len(lemur.client) == 0
    assert lemur.add(node(name, "red") for name in "xy") == ["x", "y"]
