"""LangChain's own suites over our vector store and retriever, and what its users do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

pytest.importorskip("langchain_core", reason="pip install lemur_ann[langchain]")
pytest.importorskip("langchain_tests", reason="pip install langchain-tests")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.runnables import RunnableLambda
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests
from lemur_ann.adapters.langchain import LemurRetriever, LemurVectorStore
from pydantic import ValidationError

from lemur_ann import IndexLocked, LemurIndex, TextIndex
from lemur_ann.demo import demo_encoder

FIT = {"num_features": 64, "epochs": 1, "rank": 15, "num_candidates": 40, "ef_search": None}


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, word_encoder):
        return LemurVectorStore(word_encoder)


class TestVectorStoreOnDisk(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, word_encoder, tmp_path):
        with LemurIndex.open(tmp_path / "index") as opened:
            yield LemurVectorStore(word_encoder, opened)


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def store(self, word_encoder):
        self.texts = TextIndex(word_encoder).add([f"document {i} of ten" for i in range(10)])

    @property
    def retriever_constructor(self):
        return LemurRetriever

    @property
    def retriever_constructor_params(self):
        return {"store": LemurVectorStore(self.texts)}

    @property
    def retriever_query_example(self):
        return "document 3"


class TestRetrieverOverATextIndex(TestRetriever):
    @property
    def retriever_constructor_params(self):
        return {"store": self.texts}


class TestRetrieverOfTheStore(TestRetriever):
    """What store.as_retriever() makes has no k of its own: LangChain keeps it in search_kwargs."""

    @property
    def retriever_constructor(self):
        return lambda store, k=4: store.as_retriever(search_kwargs={"k": k})


@pytest.fixture
def store(word_encoder):
    return LemurVectorStore.from_documents(
        [
            Document(id="fox", page_content="a red fox", metadata={"kind": "animal", "legs": 4, "tags": ["wild", "small"]}),
            Document(id="whale", page_content="a blue whale", metadata={"kind": "animal", "legs": 0}),
            Document(id="sea", page_content="the red sea", metadata={"kind": "place", "legs": None}),
        ],
        word_encoder,
    )


def ids_of(documents):
    return [document.id for document in documents]


def maxsim(encoder, query, text):
    (a,), (b,) = encoder.queries([query]), encoder.documents([text])
    return float((a @ b.T).max(axis=1).sum())


def test_scores_are_exact_maxsim(store, word_encoder):
    found = store.similarity_search_with_score("red fox", k=3)
    expected = {d.id: maxsim(word_encoder, "red fox", d.page_content) for d in store.get_by_ids(["fox", "whale", "sea"])}
    assert [d.id for d, _ in found] == sorted(expected, key=expected.get, reverse=True)
    assert [score for _, score in found] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-5)
    assert ids_of(store.similarity_search("red fox", k=3)) == [d.id for d, _ in found]
    assert ids_of(store.similarity_search_by_vector(word_encoder.queries(["red fox"])[0], k=1)) == ["fox"]


def test_real_documents_against_exact_search(demo_data):
    encoder = demo_encoder(demo_data)
    rows = demo_data.documents.drop_columns(["tokens"]).to_pylist()
    store = LemurVectorStore.from_texts([row["text"] for row in rows], encoder, ids=[row["id"] for row in rows])
    oracle = LemurIndex().add(demo_data.documents)
    for row, tokens in zip(demo_data.queries.slice(0, 10)["text"].to_pylist(), demo_data.queries["tokens"], strict=False):
        matrix = np.array(tokens.as_py(), np.float32)
        hits = oracle.search(matrix, k=5, exact=True)
        found = store.similarity_search_with_score(row, k=5)
        assert [d.id for d, _ in found] == hits.ids.tolist()
        assert [score for _, score in found] == pytest.approx(hits.scores.tolist(), rel=1e-3)


def test_fit(word_encoder):
    texts = [f"this is document{i} about topic{i % 7} and word{i % 31}" for i in range(200)]
    metadatas = [{"topic": i % 7} for i in range(200)]
    store = LemurVectorStore.from_texts(texts, word_encoder, metadatas, index=LemurIndex(**FIT), batch_size=64)
    asked = [f"about topic{i % 7} word{i % 31}" for i in range(150)]
    before = store.similarity_search_with_score("document42 topic0", k=1)
    assert store.fit(asked) is store
    assert store.texts.index.is_fitted
    assert store.similarity_search_with_score("document42 topic0", k=1, exact=True) == before
    assert store.similarity_search("document42 topic0 word11", k=1)[0].page_content == texts[42]
    found = store.similarity_search("document42", k=30, filter={"topic": 3}, num_candidates=200)
    assert len(found) == len([i for i in range(200) if i % 7 == 3])
    assert {d.metadata["topic"] for d in found} == {3}
    store.add_texts(["something else entirely"], ids=["new"])
    assert ids_of(store.similarity_search("something entirely", k=1, num_candidates=201)) == ["new"]


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"kind": "animal"}, {"fox", "whale"}),
        ({"kind": "animal", "legs": 0}, {"whale"}),
        ({"legs": None}, {"sea"}),
        ({"tags": ["wild", "small"]}, {"fox"}),
        ({"colour": None}, set()),
        ({}, {"fox", "whale", "sea"}),
        (lambda document: "red" in document.page_content, {"fox", "sea"}),
        (lambda document: document.id != "fox" and document.metadata["legs"] == 0, {"whale"}),
        (lambda document: False, set()),
        (pc.field("id") == "sea", {"sea"}),
        (pc.match_substring(pc.field("text"), "red"), {"fox", "sea"}),
        (["whale", "nobody"], {"whale"}),
        (None, {"fox", "whale", "sea"}),
    ],
)
async def test_filters(store, filter, expected):
    assert set(ids_of(store.similarity_search("red", k=5, filter=filter))) == expected
    assert {d.id for d, _ in await store.asimilarity_search_with_relevance_scores("red", k=5, filter=filter)} == expected
    assert set(ids_of(store.as_retriever(search_kwargs={"k": 5, "filter": filter}).invoke("red"))) == expected
    assert set(ids_of(await LemurRetriever(store=store, k=5, filter=filter).ainvoke("red"))) == expected
    assert set(ids_of(store.max_marginal_relevance_search("red", k=5, filter=filter))) == expected
    if isinstance(filter, dict) and not filter:
        with pytest.raises(ValueError, match="filter is empty"):
            store.delete(filter=filter)
    elif filter is not None:
        assert store.delete(filter=filter)
        assert set(store.texts.index) == {"fox", "whale", "sea"} - expected


def test_a_filter_that_cannot_be_meant(store):
    for filter in ({"legs": {"$gt": 2}}, {"$and": []}):
        with pytest.raises(ValueError, match=r"filters by equality and has no operator '\$(gt|and)'"):
            store.similarity_search("red", filter=filter)
    with pytest.raises(ValueError, match="does not fit the columns"):
        store.similarity_search("red", filter=pc.field("kind") == "animal")
    with pytest.raises(TypeError, match="filter must be a pyarrow compute expression"):
        store.similarity_search("red", filter="fox")


def test_an_empty_store(word_encoder):
    store = LemurVectorStore(word_encoder)
    for filter in (None, {"a": 1}, lambda document: True, pc.field("text") == "a", ["a"]):
        assert store.similarity_search("red", filter=filter) == []
        assert store.similarity_search_with_relevance_scores("red", filter=filter) == []
        assert store.max_marginal_relevance_search("red", filter=filter) == []
        assert store.delete(filter=filter)
    assert store.add_texts([]) == []
    assert store.add_documents([]) == []


def test_delete(store):
    assert store.delete([])
    assert store.delete(["nobody"])
    assert len(store.texts) == 3
    assert store.delete(["fox", "nobody", "fox"])
    assert store.get_by_ids(["fox", "sea", "sea"]) == [
        Document(id="sea", page_content="the red sea", metadata={"kind": "place", "legs": None})
    ]
    for arguments in ({"ids": ["sea"], "filter": {"kind": "place"}}, {"where": {"kind": "place"}}):
        with pytest.raises(TypeError, match=r"delete takes ids or filter=, got (both|where)"):
            store.delete(**arguments)
    assert len(store.texts) == 2
    assert store.delete()
    assert len(store.texts) == 0
    assert store.similarity_search("red") == []
    store.add_texts(["a fox again"], ids=["fox"])
    assert ids_of(store.similarity_search("fox")) == ["fox"]


def test_a_replaced_document_is_found_by_what_it_says_now(store):
    store.add_texts(["a green fox"], [{"kind": "plush"}], ids=["fox"])
    assert store.get_by_ids(["fox"])[0].metadata == {"kind": "plush"}
    assert ids_of(store.similarity_search("green", k=1)) == ["fox"]
    assert len(store.texts) == 3


def test_ids(word_encoder):
    store = LemurVectorStore(word_encoder)
    given = store.add_documents([Document(id="one", page_content="one"), Document(page_content="two")])
    assert given[0] == "one"
    assert len(given[1]) == 36
    assert {d.id: d.page_content for d in store.get_by_ids(given)} == {"one": "one", given[1]: "two"}
    assert store.add_texts((text for text in ["three", "four"]), ids=["3", "4"]) == ["3", "4"]
    for arguments, message in (
        ({"ids": ["a"]}, "expected one of ids for each of 2 texts, got 1"),
        ({"metadatas": [{}]}, "expected one of metadatas for each of 2 texts, got 1"),
        ({"ids": ["a", "a"]}, "id 'a' is repeated in row 1"),
    ):
        with pytest.raises(ValueError, match=message):
            store.add_texts(["five", "six"], **arguments)
    assert len(store.texts) == 4


def test_metadata_that_is_not_json_changes_nothing(store):
    with pytest.raises(TypeError, match="metadata of document 'b' must be JSON: Object of type set"):
        store.add_texts(["good", "bad"], [{}, {"a": {1}}], ids=["a", "b"])
    assert len(store.texts) == 3
    nested = {"a": {"b": [1, 2.5, None, True, "ü"]}}
    store.add_texts(["good"], [nested], ids=["a"])
    assert store.get_by_ids(["a"])[0].metadata == nested


def test_documents_are_copies(store):
    found = store.similarity_search("fox", k=1)[0]
    found.metadata["tags"].append("gone")
    found.page_content = "gone"
    assert store.get_by_ids(["fox"])[0].metadata["tags"] == ["wild", "small"]
    assert store.similarity_search("fox", k=1)[0].page_content == "a red fox"


def test_relevance_is_the_mean_best_cosine(store, word_encoder):
    found = store.similarity_search_with_relevance_scores("red fox", k=3)
    for document, relevance in found:
        assert relevance == pytest.approx(max(0, maxsim(word_encoder, "red fox", document.page_content) / 3), abs=1e-5)
    best, second = found[0][1], found[1][1]
    assert 1 > best > second >= 0
    threshold = (best + second) / 2
    assert store.similarity_search_with_relevance_scores("red fox", k=3, score_threshold=threshold) == found[:1]
    retriever = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"k": 3, "score_threshold": threshold}
    )
    assert ids_of(retriever.invoke("red fox")) == ["fox"]


async def test_relevance_counts_a_query_by_the_lengths_of_its_tokens(word_encoder):
    unlike = LemurVectorStore((lambda texts: [-m for m in word_encoder.queries(texts)], word_encoder.queries))
    unlike.add_texts(["fox"], ids=["fox"])
    assert unlike.similarity_search_with_score("fox")[0][1] < 0
    assert unlike.similarity_search_with_relevance_scores("fox")[0][1] == 0

    longer = LemurVectorStore((lambda texts: [3 * m for m in word_encoder.queries(texts)], word_encoder.queries))
    longer.add_texts(["a fox"], ids=["fox"])
    assert longer.similarity_search_with_score("a fox")[0][1] == pytest.approx(9, abs=1e-4)
    for found in (
        longer.similarity_search_with_relevance_scores("a fox"),
        await longer.asimilarity_search_with_relevance_scores("a fox"),
    ):
        assert found[0][1] == pytest.approx(1, abs=1e-5)
        assert found[0][1] <= 1

    not_unit = LemurVectorStore((word_encoder.queries, lambda texts: [3 * m for m in word_encoder.queries(texts)]))
    not_unit.add_texts(["a fox"], ids=["fox"])
    with pytest.warns(UserWarning, match="Relevance scores must be between 0 and 1"):
        not_unit.similarity_search_with_relevance_scores("a fox")


def test_max_marginal_relevance(word_encoder):
    texts = {"one": "red fox runs", "same": "red fox runs fast", "other": "red cat sleeps", "far": "blue sea"}
    store = LemurVectorStore.from_texts(list(texts.values()), word_encoder, ids=list(texts))
    query = "red fox runs"
    ranked = ids_of(store.similarity_search(query, k=4))
    assert ranked[:3] == ["one", "same", "other"]
    assert ids_of(store.max_marginal_relevance_search(query, k=4, lambda_mult=1.0)) == ranked
    assert ids_of(store.max_marginal_relevance_search(query, k=2, lambda_mult=0.0)) == ["one", "far"]
    assert ids_of(store.max_marginal_relevance_search(query, k=2, fetch_k=3, lambda_mult=0.3)) == ["one", "other"]
    retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 2, "fetch_k": 2, "lambda_mult": 0.0})
    assert ids_of(retriever.invoke(query)) == ["one", "same"]


def test_max_marginal_relevance_is_its_definition(demo_data):
    encoder = demo_encoder(demo_data)
    rows = demo_data.documents.slice(0, 200).drop_columns(["tokens"])
    store = LemurVectorStore(TextIndex(encoder).add(rows))
    query, mult = demo_data.queries["text"][3].as_py(), 0.4
    fetched = store.similarity_search_with_relevance_scores(query, k=12)
    tokens = [m.astype(np.float32) for m in encoder.documents([d.page_content for d, _ in fetched])]

    def similarity(a, b):
        return (a @ b.T).max(axis=1).sum() / np.linalg.norm(a, axis=1).sum()

    chosen = [0]
    while len(chosen) < 6:
        left = [i for i in range(12) if i not in chosen]
        shared = {i: max(similarity(tokens[i], tokens[j]) for j in chosen) for i in left}
        chosen.append(max(left, key=lambda i: mult * fetched[i][1] - (1 - mult) * shared[i]))
    assert chosen != list(range(6))
    found = store.max_marginal_relevance_search(query, k=6, fetch_k=12, lambda_mult=mult)
    assert found == [fetched[i][0] for i in chosen]


def test_saved_and_loaded(store, word_encoder, tmp_path):
    store.save_local(tmp_path / "store")
    loaded = LemurVectorStore.load_local(tmp_path / "store", word_encoder, batch_size=8)
    assert loaded.texts.batch_size == 8
    assert loaded.similarity_search_with_score("red", k=3) == store.similarity_search_with_score("red", k=3)
    loaded.delete(["fox"])
    assert len(LemurVectorStore.load_local(tmp_path / "store", word_encoder).texts) == 3
    with pytest.raises(FileNotFoundError):
        LemurVectorStore.load_local(tmp_path / "nothing", word_encoder)


def test_opened_on_disk(word_encoder, tmp_path):
    with LemurIndex.open(tmp_path / "index") as opened:
        LemurVectorStore(word_encoder, opened).add_texts(["a red fox"], [{"legs": 4}], ids=["fox"])
        with pytest.raises(IndexLocked):
            LemurIndex.open(tmp_path / "index")
    program = f"""
import numpy as np
from lemur_ann import LemurIndex
from lemur_ann.adapters.langchain import LemurVectorStore
ones = lambda texts: [np.ones((1, 64), np.float32) for _ in texts]
with LemurIndex.open({str(tmp_path / "index")!r}) as index:
    store = LemurVectorStore((ones, ones), index)
    print(store.get_by_ids(["fox"])[0].metadata)
    store.add_texts(["a blue whale"], ids=["whale"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "{'legs': 4}\n"
    reader = LemurVectorStore(word_encoder, LemurIndex.open(tmp_path / "index", read_only=True))
    assert [d.page_content for d in reader.get_by_ids(["fox", "whale"])] == ["a red fox", "a blue whale"]


def test_an_index_made_elsewhere(word_encoder):
    table = pa.table({"id": [7, 8], "text": ["a red fox", "a blue whale"], "year": pa.array([1999, None])})
    store = LemurVectorStore(TextIndex(word_encoder).add(table))
    fox = Document(id="7", page_content="a red fox", metadata={"year": 1999})
    assert store.similarity_search("red", k=1) == [fox]
    assert store.get_by_ids(["8", "7", "9", "9" * 30, "07"])[1:] == [fox]
    assert store.get_by_ids(["8"])[0].metadata == {}
    assert ids_of(store.similarity_search("a", filter={"year": 1999})) == ["7"]
    assert ids_of(store.similarity_search("a", filter=pc.field("year") < 2000)) == ["7"]
    with pytest.raises(TypeError, match="ids are strings, index has ids that are integers"):
        store.add_texts(["more"])
    assert store.delete(["7", "12"])
    assert store.texts.index.ids().to_pylist() == [8]


def test_no_texts_and_no_metadata(make_matrices, word_encoder):
    store = LemurVectorStore(word_encoder, LemurIndex().add(make_matrices(3, dim=64), ids=["a", "b", "c"]))
    assert store.get_by_ids(["b"]) == [Document(id="b", page_content="", metadata={})]


def test_the_retriever(store, word_encoder):
    retriever = LemurRetriever(store=store, k=2, search_kwargs={"exact": True})
    assert ids_of(retriever.invoke("red fox")) == ids_of(store.similarity_search("red fox", k=2))
    assert ids_of(retriever.invoke("red fox", k=1, filter={"kind": "place"})) == ["sea"]
    assert [ids_of(found) for found in retriever.batch(["fox", "whale"], k=1)] == [["fox"], ["whale"]]
    chain = retriever | RunnableLambda(lambda found: found[0].page_content)
    assert chain.invoke("blue") == "a blue whale"
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        LemurRetriever(store=store, k=0)
    with pytest.raises(ValidationError, match="instance of LemurVectorStore"):
        LemurRetriever(store=word_encoder)


async def test_async_retriever_takes_arguments(store):
    retriever = LemurRetriever(store=store)
    assert ids_of(await retriever.ainvoke("red", k=1, filter={"kind": "place"})) == ["sea"]
    assert [ids_of(found) for found in await retriever.abatch(["fox", "whale"], k=1)] == [["fox"], ["whale"]]
    assert ids_of(await store.as_retriever().ainvoke("whale", k=1)) == ["whale"]


async def test_the_event_loop_goes_on_while_texts_are_encoded(word_encoder):
    loop_ran = threading.Event()

    def waits(encode):
        def encoded(texts):
            assert loop_ran.wait(20), "the event loop was blocked"
            return encode(texts)

        return encoded

    async def while_the_loop_runs(work):
        loop_ran.clear()
        task = asyncio.create_task(work)
        await asyncio.sleep(0.01)
        loop_ran.set()
        return await task

    encoder = (waits(word_encoder.queries), waits(word_encoder.documents))
    store = await while_the_loop_runs(LemurVectorStore.afrom_texts(["a red fox"], encoder, ids=["fox"]))
    assert await while_the_loop_runs(store.aadd_texts(["a blue whale"], ids=["whale"])) == ["whale"]
    for search in (
        store.asimilarity_search("whale", k=1),
        store.amax_marginal_relevance_search("whale", k=1),
        LemurRetriever(store=store, k=1).ainvoke("whale"),
    ):
        assert ids_of(await while_the_loop_runs(search)) == ["whale"]
    for search in (
        store.asimilarity_search_with_score("whale", k=1),
        store.asimilarity_search_with_relevance_scores("whale", k=1),
    ):
        assert [d.id for d, _ in await while_the_loop_runs(search)] == ["whale"]


def test_searches_beside_deletions(word_encoder):
    store = LemurVectorStore.from_texts([f"word {i}" for i in range(200)], word_encoder, ids=[f"{i}" for i in range(200)])
    errors = []

    def search():
        try:
            while len(store.texts) > 10:
                store.similarity_search("word", k=30, filter=lambda document: True)
                store.max_marginal_relevance_search("word", k=3)
                store.get_by_ids([f"{i}" for i in range(200)])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(190):
        store.delete([f"{i}"])
    for thread in threads:
        thread.join()
    assert errors == []


def test_langchains_indexing(word_encoder):
    """index() passes batch_size to add_documents, deletes what a source no longer has, and skips what has not changed."""
    store, records = LemurVectorStore(word_encoder), InMemoryRecordManager("test")
    records.create_schema()

    def indexed(texts):
        documents = [Document(page_content=text, metadata={"source": "book"}) for text in texts]
        return index(documents, records, store, cleanup="full", source_id_key="source", key_encoder="sha256")

    assert indexed(["a red fox", "a blue whale"])["num_added"] == 2
    again = indexed(["a blue whale", "the red sea"])
    assert (again["num_added"], again["num_skipped"], again["num_deleted"]) == (1, 1, 1)
    assert {d.page_content for d in store.similarity_search("a", k=5)} == {"a blue whale", "the red sea"}


def test_errors(store, word_encoder):
    with pytest.raises(TypeError, match="encoder must be a late-interaction model .* got DeterministicFakeEmbedding"):
        LemurVectorStore.from_texts(["a"], DeterministicFakeEmbedding(size=4))
    with pytest.raises(TypeError, match="a TextIndex has its index and its options"):
        LemurVectorStore(store.texts, batch_size=3)
    with pytest.raises(TypeError, match="query must be a string, got list"):
        store.similarity_search(["red"])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        store.similarity_search("red", k=0)
    with pytest.raises(TypeError, match="fetch_k"):
        store.similarity_search("red", fetch_k=20)
    with pytest.raises(ValueError, match="must be a matrix of shape"):
        store.similarity_search_by_vector([0.5] * 64)


WEIRD = ["a/b", "..", "it's", 'say "x"', "\\", "new\nline", "\u00fc\u221e\U0001f642", "%s", "x" * 2000, " ", "None", "1"]
WEIRD += ["-1", "007", "nul\0"]


@pytest.mark.parametrize("doc_id", WEIRD)
def test_ids_of_any_characters(word_encoder, doc_id):
    store = LemurVectorStore(word_encoder)
    assert store.add_texts(["red fox", "blue"], ids=[doc_id, "other"]) == [doc_id, "other"]
    assert ids_of(store.similarity_search("red", k=1)) == [doc_id]
    assert ids_of(store.get_by_ids([doc_id])) == [doc_id]
    assert store.delete([doc_id])
    assert list(store.texts.index) == ["other"]


def test_ids_that_are_no_strings_become_strings(word_encoder):
    """As in LangChain's Document, whose id makes a string of a number."""
    store, key = LemurVectorStore(word_encoder), uuid.uuid4()
    assert store.add_texts(["red", "blue", "deep"], ids=[1, key, np.int64(3)]) == ["1", str(key), "3"]
    assert ids_of(store.get_by_ids([1, key, np.int64(3)])) == ["1", str(key), "3"]
    store.delete([1, key])
    assert list(store.texts.index) == ["3"]
    made = store.add_documents([Document(id=5, page_content="a"), Document(page_content="b")])
    assert made[0] == "5"
    assert uuid.UUID(made[1])


@pytest.mark.parametrize(
    ("texts", "how", "kind", "message"),
    [
        ("one text", {}, TypeError, "texts must be a list, got str"),
        (["a", None], {}, TypeError, r"texts\[1\] must be a string, got NoneType"),
        (["a", 5], {}, TypeError, r"texts\[1\] must be a string, got int"),
        ({"a", "b"}, {}, TypeError, "texts must be a list, got set"),
        (["a", "b"], {"ids": ["x", ""]}, ValueError, r"ids\[1\] is empty; None makes one"),
        (["a", "b"], {"ids": ["x", 1.5]}, TypeError, r"ids\[1\] must be a string, got float"),
        (["a", "b"], {"ids": ["x", True]}, TypeError, r"ids\[1\] must be a string, got bool"),
        (["a", "b"], {"ids": ["x", b"y"]}, TypeError, r"ids\[1\] must be a string, got bytes"),
        (["a", "b"], {"ids": "xy"}, TypeError, "ids must be a list, got str"),
        (["a", "b"], {"ids": {"x", "y"}}, TypeError, "ids must be a list, got set"),
        (["a", "b"], {"ids": {"x": 1, "y": 2}}, TypeError, "ids must be a list, got dict"),
        (["a", "b"], {"ids": []}, ValueError, "expected one of ids for each of 2 texts, got 0"),
        (["a", "b"], {"metadatas": []}, ValueError, "expected one of metadatas for each of 2 texts, got 0"),
        (["a"], {"metadatas": {"year": 1}}, TypeError, "metadatas must be a list, got dict"),
        (["a", "b"], {"metadatas": [{}, "x"]}, TypeError, r"metadatas\[1\] must be a dict, got str"),
        (["a", "b"], {"metadatas": [{}, {(1, 2): 3}]}, TypeError, r"metadatas\[1\] must be JSON: keys must be str"),
    ],
)
def test_what_is_no_addition_is_told(store, texts, how, kind, message):
    version = store.texts.index.version
    with pytest.raises(kind, match=message):
        store.add_texts(texts, **how)
    assert store.texts.index.version == version
    assert sorted(store.texts.index) == ["fox", "sea", "whale"]


def test_what_is_no_deletion_deletes_nothing(store):
    for nothing in ([], ["nobody"], [""], set(), np.array([], str), ()):
        assert store.delete(nothing)
    for wrong in ({"fox": 1}, [None], [True], [1.5], 5, b"fox"):
        with pytest.raises(TypeError, match="must be a"):
            store.delete(wrong)
    for wrong in ("fox", 5):
        with pytest.raises(TypeError, match="filter must be"):
            store.delete(filter=wrong)
    with pytest.raises(ValueError, match=r"filter is empty, and would delete all documents; delete\(\) without arguments"):
        store.delete(filter={})
    assert sorted(store.texts.index) == ["fox", "sea", "whale"]
    store.delete("fox")
    store.delete(filter={"kind": "place"})
    assert list(store.texts.index) == ["whale"]


def test_numbers_of_hits(store):
    for ask in (store.similarity_search, store.max_marginal_relevance_search):
        assert len(ask("red", k=np.int64(2))) == 2
        for wrong, kind in ((0, ValueError), (-1, ValueError), (None, TypeError), (True, TypeError), (2.0, TypeError)):
            with pytest.raises(kind, match="k must be"):
                ask("red", k=wrong)
    assert ids_of(store.similarity_search("red", k=3, filter={})) == ids_of(store.similarity_search("red", k=3))
    assert store.add_texts([]) == []
