from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
pytest.importorskip("haystack", reason="pip install lemur_ann[haystack]")

from haystack import Document, Pipeline
from haystack.components.writers import DocumentWriter
from haystack.core.errors import DeserializationError, SerializationError
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.errors import FilterError
from haystack.testing import document_store as sync_tests
from haystack.testing import document_store_async as async_tests
from lemur_ann.adapters.haystack import LemurDocumentStore, LemurRetriever

from lemur_ann import IndexLocked, LemurIndex
from lemur_ann.demo import demo_encoder

SMALL = {"num_features": 64, "epochs": 1, "rank": 15, "num_candidates": 40, "ef_search": None}
TRUSTED = ["lemur_ann"]


@pytest.fixture
def store(word_encoder):
    return LemurDocumentStore(word_encoder, index_options=SMALL)


@pytest.fixture(scope="module")
def fitted(word_encoder, tmp_path_factory):
    """An index that has learned a map and holds no documents any more."""
    path = tmp_path_factory.mktemp("haystack") / "index"
    store = LemurDocumentStore(word_encoder, path=path, index_options=SMALL)
    store.write_documents(about(100))
    store.fit(progress=False)
    store.delete_all_documents()
    store.close()
    return path


class TestHaystackSuite(
    sync_tests.DocumentStoreBaseExtendedTests,
    sync_tests.CountDocumentsByFilterTest,
    sync_tests.CountUniqueMetadataByFilterTest,
    sync_tests.GetMetadataFieldsInfoTest,
    sync_tests.GetMetadataFieldMinMaxTest,
    sync_tests.GetMetadataFieldUniqueValuesTest,
):
    @pytest.fixture(params=["in memory", "on disk and fitted"])
    def document_store(self, request, word_encoder, fitted, tmp_path):
        path = None if request.param == "in memory" else shutil.copytree(fitted, tmp_path / "index")
        store = LemurDocumentStore(word_encoder, path=path)
        assert store.index.is_fitted is (path is not None)
        yield store
        store.close()

    def test_write_documents(self, document_store):
        documents = [Document(id="1", content="one"), Document(id="2", content="two")]
        assert document_store.write_documents(documents) == 2
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([Document(id="2", content="three")])
        self.assert_documents_are_equal(document_store.filter_documents(), documents)


class TestHaystackAsyncSuite(
    async_tests.CountDocumentsAsyncTest,
    async_tests.CountDocumentsByFilterAsyncTest,
    async_tests.CountUniqueMetadataByFilterAsyncTest,
    async_tests.DeleteAllAsyncTest,
    async_tests.DeleteByFilterAsyncTest,
    async_tests.DeleteDocumentsAsyncTest,
    async_tests.FilterDocumentsAsyncTest,
    async_tests.GetMetadataFieldMinMaxAsyncTest,
    async_tests.GetMetadataFieldUniqueValuesAsyncTest,
    async_tests.GetMetadataFieldsInfoAsyncTest,
    async_tests.UpdateByFilterAsyncTest,
    async_tests.WriteDocumentsAsyncTest,
):
    @pytest.fixture
    def document_store(self, store):
        return store

    async def test_write_documents_async(self, document_store):
        documents = [Document(id="1", content="one"), Document(id="2", content="two")]
        assert await document_store.write_documents_async(documents) == 2
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async(documents[:1])
        self.assert_documents_are_equal(await document_store.filter_documents_async(), documents)


def test_every_mixin_of_haystack_is_run():
    for module, suite in ((sync_tests, TestHaystackSuite), (async_tests, TestHaystackAsyncSuite)):
        offered = [value for name, value in vars(module).items() if name.endswith("Test")]
        assert len(offered) >= 11
        assert [mixin.__name__ for mixin in offered if not issubclass(suite, mixin)] == []


def about(count):
    return [
        Document(id=f"{i}", content=f"this is document{i} about topic{i % 7} and word{i % 31}", meta={"topic": i % 7})
        for i in range(count)
    ]


def topic(number):
    return {"field": "meta.topic", "operator": "==", "value": number}


def by_hand(encoder, query, documents):
    """(id, MaxSim) of documents, best first."""
    (tokens,) = encoder.queries([query])
    matrices = encoder.documents([document.content for document in documents])
    scores = [float((tokens @ matrix.T).max(1).sum()) for matrix in matrices]
    return sorted(zip([document.id for document in documents], scores, strict=True), key=lambda pair: -pair[1])


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("filters", [None, topic(3)])
def test_retriever_finds_what_maxsim_finds(store, word_encoder, fitted, filters):
    documents = about(200)
    store.write_documents(documents)
    if fitted:
        store.fit(["about topic3", "document4 and word5"] * 50, progress=False)
    assert store.index.is_fitted is fitted
    allowed = [document for document in documents if filters is None or document.meta["topic"] == 3]
    query = "document45 about topic3 and word14"
    found = LemurRetriever(store, search_options={"num_candidates": 200}).run(query, filters, top_k=5)["documents"]
    best = by_hand(word_encoder, query, allowed)
    np.testing.assert_allclose([document.score for document in found], [score for _, score in best[:5]], rtol=1e-5)
    assert found[0].id == best[0][0] == "45"
    assert found[0].content == documents[45].content
    assert found[0].meta == {"topic": 3}


def test_on_the_demo(demo_data):
    store = LemurDocumentStore(demo_encoder)
    texts = demo_data.documents.column("text").to_pylist()
    store.write_documents([Document(id=f"{i}", content=text) for i, text in enumerate(texts)])
    queries = demo_data.queries.column("text").to_pylist()[:10]
    exact = LemurIndex().add(demo_data.documents.select(["tokens"])).search(demo_data.queries.slice(0, 10), k=5)
    retriever = LemurRetriever(store, top_k=5)
    for query, hits in zip(queries, exact, strict=True):
        found = retriever.run(query)["documents"]
        assert [(document.id, document.score) for document in found] == [(str(i), score) for i, score in hits]


def test_empty_store(store):
    assert LemurRetriever(store).run("anything") == {"documents": []}
    assert LemurRetriever(store).run("anything", topic(1)) == {"documents": []}
    store.write_documents(about(3))
    store.delete_all_documents()
    assert LemurRetriever(store).run("anything") == {"documents": []}
    assert store.write_documents([]) == 0


def test_every_field_comes_back(store):
    document = Document(
        content="a red fox",
        blob=ByteStream(b"\x00\xff", meta={"page": 3}, mime_type="image/png"),
        meta={"id": "colliding", "content": "too", "nested": {"list": [1, 2.5, None, True]}, "ß": "é"},
        score=0.25,
        embedding=[0.1, -1e-7],
        sparse_embedding=SparseEmbedding([0, 7], [0.5, 0.1]),
    )
    store.write_documents([document, Document(id="plain", content="")])
    assert store.filter_documents() == [document, Document(id="plain", content="")]
    (found,) = store.retrieve("fox")
    assert found.score == pytest.approx(1, abs=0.6)
    assert {**found.to_dict(flatten=False), "score": 0.25} == document.to_dict(flatten=False)


def test_documents_without_text_are_kept_and_never_found(store):
    documents = [
        Document(id="picture", blob=ByteStream(b"png"), meta={"topic": 1}),
        Document(id="empty", content="", meta={"topic": 1}),
    ]
    store.write_documents(documents)
    assert store.retrieve("fox") == []
    store.write_documents([Document(id="fox", content="a red fox", meta={"topic": 1})])
    assert store.filter_documents(topic(1))[:2] == documents
    assert store.filter_documents({"field": "content", "operator": "==", "value": None}) == documents[:1]
    assert [document.id for document in store.retrieve("fox")] == ["fox"]
    assert [document.id for document in store.retrieve("fox", topic(1))] == ["fox"]
    assert store.retrieve("fox", {"field": "id", "operator": "in", "value": ["picture", "empty"]}) == []
    store.fit(progress=False)
    assert [document.id for document in store.retrieve("fox")] == ["fox"]
    store.delete_documents(["picture"])
    assert store.count_documents() == 2


def test_what_is_given_out_is_a_copy(store):
    store.write_documents(about(3))
    for given in (store.filter_documents(topic(1)), store.retrieve("document1", topic(1)), store.retrieve("document1")):
        given[0].meta["topic"] = "changed"
    assert [document.id for document in store.filter_documents(topic(1))] == ["1"]


def test_policies_within_one_call(store):
    twice = [Document(id="a", content="first"), Document(id="a", content="second")]
    for policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL):
        with pytest.raises(DuplicateDocumentError, match="ID 'a' already exists"):
            store.write_documents(twice, policy)
        assert store.count_documents() == 0
    assert store.write_documents(twice, DuplicatePolicy.SKIP) == 1
    assert store.filter_documents()[0].content == "first"
    assert store.write_documents(twice, DuplicatePolicy.OVERWRITE) == 2
    assert store.filter_documents() == twice[1:]
    assert store.retrieve("second")[0].score > store.retrieve("first")[0].score


def test_a_filter_sees_every_change(store):
    store.write_documents([Document(id="a", content="fox", meta={"topic": 1})])
    assert len(store.filter_documents(topic(1))) == 1
    store.write_documents([Document(id="a", content="fox", meta={"topic": 2})], DuplicatePolicy.OVERWRITE)
    assert store.filter_documents(topic(1)) == store.retrieve("fox", topic(1)) == []
    store.update_by_filter(topic(2), {"topic": 1})
    assert len(store.retrieve("fox", topic(1))) == 1
    store.index.delete(["a"])
    assert store.count_documents_by_filter(topic(1)) == 0


def test_an_update_encodes_nothing_anew(word_encoder):
    given = []

    def documents(texts):
        given.extend(texts)
        return word_encoder.documents(texts)

    store = LemurDocumentStore((word_encoder.queries, documents))
    store.write_documents(about(5))
    before = store.retrieve("document4 topic4")
    assert store.update_by_filter(topic(4), {"seen": True}) == 1
    after = store.retrieve("document4 topic4")
    assert (after[0].id, after[0].meta) == ("4", {"topic": 4, "seen": True})
    assert [(document.id, document.score) for document in after] == [(document.id, document.score) for document in before]
    assert len(given) == 5


@pytest.mark.parametrize(
    "filters",
    [
        {"field": "meta.topic", "operator": "like", "value": 1},
        {"operator": "XOR", "conditions": []},
        {"field": "meta.topic", "value": 1},
        {"conditions": [topic(1)]},
        {"field": "meta.topic", "operator": "in", "value": 1},
        [topic(1)],
    ],
)
@pytest.mark.parametrize("count", [0, 3])
def test_bad_filters(store, filters, count):
    store.write_documents(about(count))
    for refuse in (store.filter_documents, store.delete_by_filter, store.count_documents_by_filter):
        with pytest.raises(FilterError):
            refuse(filters)
    with pytest.raises(FilterError):
        LemurRetriever(store).run("document1", filters)
    assert store.count_documents() == count


def test_empty_filters_change_nothing(store):
    store.write_documents(about(3))
    with pytest.raises(FilterError):
        store.delete_by_filter({})
    with pytest.raises(FilterError):
        store.update_by_filter({}, {"topic": 0})
    assert store.filter_documents({}) == about(3)
    assert len(LemurRetriever(store).run("document1", {})["documents"]) == 3


def test_bad_input(store, word_encoder):
    with pytest.raises(ValueError, match="document 'a' cannot be stored as JSON: .* set is not JSON"):
        store.write_documents([Document(id="b", content="b"), Document(id="a", content="a", meta={"bad": {1, 2}})])
    assert store.count_documents() == 0
    with pytest.raises(TypeError, match="encoder must be a late-interaction model .* got str"):
        LemurDocumentStore("model")
    with pytest.raises(TypeError, match="encoder_kwargs go with a class or a function, and encoder is Encoder"):
        LemurDocumentStore(word_encoder, {"device": "cpu"})
    with pytest.raises(TypeError, match="featurs"):
        LemurDocumentStore(word_encoder, index_options={"featurs": 1})
    with pytest.raises(TypeError, match="read_only must be True or False, got str 'no'"):
        LemurDocumentStore(word_encoder, path="index", read_only="no")
    with pytest.raises(ValueError, match="read_only=True needs a path"):
        LemurDocumentStore(word_encoder, read_only=True)
    with pytest.raises(TypeError, match="must be a LemurDocumentStore, got dict"):
        LemurRetriever({})
    with pytest.raises(ValueError, match="top_k must be greater than 0, but got 0"):
        LemurRetriever(store, top_k=0)
    store.write_documents(about(3))
    with pytest.raises(ValueError, match="k must be at least 1, got -1"):
        LemurRetriever(store).run("document1", top_k=-1)
    assert LemurRetriever(store).run("document1", top_k=0) == {"documents": []}


def test_filters_of_the_retriever(store):
    store.write_documents(about(50))
    first = {"field": "id", "operator": "in", "value": ["3", "10", "11"]}
    replace = LemurRetriever(store, first)
    assert {document.id for document in replace.run("document3")["documents"]} == {"3", "10", "11"}
    assert {document.meta["topic"] for document in replace.run("document3", topic(5))["documents"]} == {5}
    merge = LemurRetriever(store, first, filter_policy=FilterPolicy.MERGE)
    assert {document.id for document in merge.run("document3", topic(3))["documents"]} == {"3", "10"}


class OneFunction:
    """An encoder as a class that cannot be imported by its name where it is made in a function."""

    encode_query = encode_document = staticmethod(lambda texts: [np.ones((1, 4), np.float32) for _ in texts])


def made_in_a_function():
    class Encoder(OneFunction):
        pass

    return Encoder


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (OneFunction(), r"the encoder is an object \(OneFunction\).* Give the store a class or a function"),
        (made_in_a_function(), "made_in_a_function.<locals>.Encoder cannot be imported by that name.* Give the store a class"),
        (lambda: OneFunction(), "lambdas is not supported.* Give the store a class"),
    ],
)
def test_an_encoder_that_cannot_be_serialised(encoder, message):
    store = LemurDocumentStore(encoder)
    store.write_documents(about(2))
    pipeline = Pipeline()
    pipeline.add_component("retriever", LemurRetriever(store))
    assert len(pipeline.run({"retriever": {"query": "works all the same"}})["retriever"]["documents"]) == 2
    with pytest.raises(SerializationError, match=message):
        pipeline.dumps()


ENCODERS = """
import numpy as np

class WordEncoder:
    def __init__(self, dim):
        self.dim = dim

    def encode(self, texts):
        return [np.stack([np.random.default_rng(list(word.encode())).normal(size=self.dim) for word in text.split()])
                for text in texts]

    encode_query = encode_document = encode

    @classmethod
    def small(cls):
        return cls(16)
"""


@pytest.fixture
def word_encoders(tmp_path, monkeypatch):
    """A module that other processes can import too."""
    (tmp_path / "word_encoders.py").write_text(ENCODERS)
    monkeypatch.syspath_prepend(tmp_path)
    import word_encoders

    yield word_encoders
    del sys.modules["word_encoders"]


def indexing_and_search(store):
    indexing, search = Pipeline(), Pipeline()
    indexing.add_component("writer", DocumentWriter(store, DuplicatePolicy.OVERWRITE))
    retriever = LemurRetriever(store, topic(2), 3, FilterPolicy.MERGE, {"num_threads": 1})
    search.add_component("retriever", retriever)
    return indexing, search


def test_pipelines_as_yaml(word_encoders, tmp_path):
    path = tmp_path / "index"
    store = LemurDocumentStore(
        word_encoders.WordEncoder, {"dim": 24}, path=path, index_options={"seed": 3}, batch_size=8, fit_at=None
    )
    pipelines = indexing_and_search(store)
    texts = [pipeline.dumps() for pipeline in pipelines]
    trusted = [*TRUSTED, "word_encoders"]
    indexing, search = [Pipeline.loads(text, allowed_modules=trusted) for text in texts]
    assert (indexing, search) == pipelines
    assert not path.exists()  # nothing is opened, and no model made, before there is something to do

    indexing.run({"writer": {"documents": about(20)}})
    found = search.run({"retriever": {"query": "document9 about"}})["retriever"]["documents"]
    assert found[0].id == "9"
    assert len(found) == 3
    assert found == store.retrieve("document9 about", topic(2), 3)  # three stores, one index
    restored = search.get_component("retriever").document_store
    assert restored.index is store.index
    assert restored.index.options.seed == 3
    assert restored.index.dim == 24

    with pytest.raises(DeserializationError, match="allowlist|trusted"):
        Pipeline.loads(texts[1], allowed_modules=TRUSTED)

    stores = [store, restored, indexing.get_component("writer").document_store]
    for one in stores[:2]:
        one.close()
    with pytest.raises(IndexLocked):  # one of them uses it still
        LemurIndex.open(path)
    stores[2].close()
    with LemurIndex.open(path) as index:
        assert len(index) == 20

    again = search.run({"retriever": {"query": "document9 about"}})["retriever"]["documents"]  # which opens it again
    assert again == found
    restored.close()

    (tmp_path / "search.yaml").write_text(texts[1])
    program = (
        "from haystack import Pipeline\n"
        f"pipeline = Pipeline.load(open('search.yaml'), allowed_modules={trusted})\n"
        "found = pipeline.run({'retriever': {'query': 'document9 about'}})['retriever']['documents']\n"
        "print([(document.id, document.score) for document in found])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == str([(document.id, document.score) for document in found]), ran.stderr


def test_dictionaries(word_encoders, monkeypatch):
    store = LemurDocumentStore(word_encoders.WordEncoder.small)
    data = LemurRetriever(store).to_dict()
    assert data["init_parameters"]["document_store"]["init_parameters"]["encoder"] == "word_encoders.WordEncoder.small"
    del data["init_parameters"]["filter_policy"]
    with pytest.raises(DeserializationError, match="allowlist"):
        LemurRetriever.from_dict(data)
    monkeypatch.setenv("HAYSTACK_DESERIALIZATION_ALLOWLIST", ",".join([*TRUSTED, "word_encoders"]))
    retriever = LemurRetriever.from_dict(data)
    assert retriever.filter_policy is FilterPolicy.REPLACE
    assert retriever.to_dict() == LemurRetriever(store).to_dict()
    retriever.document_store.write_documents(about(2))
    assert retriever.document_store.index.dim == 16


def test_a_relative_path_is_that_of_the_time_it_was_given(word_encoders, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    store = LemurDocumentStore(word_encoders.WordEncoder, {"dim": 16}, path="index")
    monkeypatch.chdir(tmp_path / "b")
    store.write_documents(about(3))
    store.close()
    assert [file.parent.parent.name for file in tmp_path.rglob("manifest.json")] == ["a"]
    assert store.to_dict()["init_parameters"]["path"] == store.path == "index"
    monkeypatch.chdir(tmp_path)
    assert store.count_documents() == 3
    store.close()


def test_a_store_in_memory_is_restored_empty_and_stays_after_close(word_encoders):
    store = LemurDocumentStore(word_encoders.WordEncoder, {"dim": 16})
    store.write_documents(about(3))
    store.close()
    assert store.count_documents() == 3
    pipeline = Pipeline()
    pipeline.add_component("retriever", LemurRetriever(store))
    restored = Pipeline.loads(pipeline.dumps(), allowed_modules=[*TRUSTED, "word_encoders"])
    assert restored.run({"retriever": {"query": "document1"}}) == {"retriever": {"documents": []}}


def test_on_disk_before_and_after_fit(word_encoder, tmp_path):
    store = LemurDocumentStore(word_encoder, path=tmp_path / "index", index_options=SMALL)
    store.write_documents(about(150))
    store.update_by_filter(topic(3), {"seen": True})
    store.fit(progress=False)
    found = store.retrieve("document45 about topic3")
    with pytest.raises(IndexLocked):
        LemurIndex.open(tmp_path / "index")
    reader = LemurDocumentStore(word_encoder, path=tmp_path / "index", read_only=True)
    assert reader.retrieve("document45 about topic3") == found
    assert reader.index is not store.index
    with pytest.raises(PermissionError, match="read-only"):
        reader.delete_documents(["45"])
    store.delete_documents(["45"])
    reader.index.refresh()
    assert "45" not in {document.id for document in reader.retrieve("document45 about topic3", topic(3), 30)}
    store.close()
    again = LemurDocumentStore(word_encoder, path=tmp_path / "index", index_options=SMALL)
    assert again.index.is_fitted
    assert again.count_documents_by_filter({"field": "meta.seen", "operator": "==", "value": True}) == 21 - 1
    again.close()


def test_a_forgotten_store_lets_go_of_its_folder(word_encoder, tmp_path):
    store = LemurDocumentStore(word_encoder, path=tmp_path)
    store.write_documents(about(2))
    del store
    with LemurIndex.open(tmp_path) as index:
        assert len(index) == 2


async def test_search_options(store):
    store.write_documents(about(3))
    retriever = LemurRetriever(store, search_options={"target_recall": 0.9})
    with pytest.raises(ValueError, match="target_recall"):  # which needs a tuned index
        retriever.run("document1")
    with pytest.raises(ValueError, match="target_recall"):
        await retriever.run_async("document1")
    assert len(LemurRetriever(store, search_options={"exact": True}).run("document1")["documents"]) == 3


async def test_async_pipeline(store):
    await store.write_documents_async(about(30))
    pipeline = Pipeline()
    pipeline.add_component("retriever", LemurRetriever(store, top_k=2))
    queries = [f"document{i}" for i in range(10)]
    ran = await asyncio.gather(*[pipeline.run_async({"retriever": {"query": query}}) for query in queries])
    assert [found["retriever"]["documents"][0].id for found in ran] == [f"{i}" for i in range(10)]
    assert await store.retrieve_async("document4", topic(4)) == store.retrieve("document4", topic(4))


def test_documents_deleted_while_they_are_read(store):
    store.write_documents(about(3))
    assert list(store._rows(["gone", "2", "1"])) == ["2", "1"]  # what a search found, and another thread deleted


def test_threads(store):
    """Searches find only what matches, and writers lose nothing, while others change the store."""
    failures = []
    done = threading.Event()

    def guarded(work):
        def run():
            try:
                work()
            except Exception as error:
                failures.append(error)

        return threading.Thread(target=run)

    def search():
        while not done.is_set():
            for found in (store.retrieve("document5 topic5", topic(5), 20), store.filter_documents(topic(5))):
                assert {document.meta["topic"] for document in found} <= {5}

    def write(begin):
        for document in about(60)[begin::2]:
            store.write_documents([document], DuplicatePolicy.SKIP)
            if int(document.id) % 3 == 0:
                store.delete_documents([document.id])

    searchers, writers = [guarded(search)], [guarded(lambda: write(0)), guarded(lambda: write(1)), guarded(lambda: write(0))]
    for thread in searchers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    searchers[0].join()
    assert failures == []
    kept = {document.id for document in store.filter_documents()}
    assert {f"{i}" for i in range(60) if i % 3} <= kept


WEIRD = ["a/b", "..", "it's", 'say "x"', "\\", "new\nline", "\u00fc\u221e\U0001f642", "%s", "x" * 2000, " ", "None", "1"]
WEIRD += ["nul\0"]


@pytest.mark.parametrize("doc_id", WEIRD)
def test_ids_of_any_characters(store, doc_id):
    store.write_documents([Document(id=doc_id, content="document1"), Document(id="other", content="else")])
    assert [document.id for document in store.retrieve("document1", top_k=1)] == [doc_id]
    with pytest.raises(DuplicateDocumentError):
        store.write_documents([Document(id=doc_id, content="document2")])
    store.delete_documents([doc_id, doc_id, "nobody"])
    assert [document.id for document in store.filter_documents()] == ["other"]


def test_what_is_no_deletion_deletes_nothing(store):
    store.write_documents([Document(id=name, content="document1") for name in "abc"])
    store.delete_documents([])
    for wrong in ({"a": 1}, b"a", None, 5):
        with pytest.raises(TypeError):
            store.delete_documents(wrong)
    assert store.count_documents() == 3
    empty = {"operator": "AND", "conditions": []}
    for all_pass in ({}, empty, {"operator": "OR", "conditions": [topic(1), empty]}):
        with pytest.raises(FilterError):
            store.delete_by_filter(all_pass)
        with pytest.raises(FilterError):
            store.update_by_filter(all_pass, {"seen": True})
    assert store.count_documents() == 3
    store.delete_documents("abc")  # one id, which names none, and not three
    assert store.count_documents() == 3
    store.delete_documents("a")
    assert store.count_documents() == 2
