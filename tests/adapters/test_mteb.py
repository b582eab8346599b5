"""LemurSearch in mteb: a task of real texts in memory, run to its end by mteb.evaluate."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # read when mteb imports huggingface_hub
pytest.importorskip("mteb", reason="pip install lemur_ann[mteb]")

import mteb
from datasets import Dataset
from lemur_ann.adapters.mteb import LemurSearch
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta, SearchProtocol

from lemur_ann import LemurIndex, TextIndex
from lemur_ann.demo import demo_encoder
from lemur_ann.encoders import Encoder

OPTIONS = {"num_features": 256, "epochs": 0, "num_sample_tokens": 2048, "rank": 63, "num_candidates": 40, "ef_search": 100}
THREADS = 1  # the learned map is the same for the same number of threads
WHERE = {"hf_split": "test", "hf_subset": "default", "encode_kwargs": {"batch_size": 16, "show_progress_bar": False}}


def task_of(corpus, queries, relevant, *, kind="Retrieval", top_ranked=None):
    """A task whose data is given and not downloaded."""

    class Task(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="DebianSummaries" + kind,
            description="Find the package description that a summary was written for.",
            reference=None,
            dataset={"path": "local/debian", "revision": "1"},
            type=kind,
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )

        def load_data(self, *_args, **_kwargs):
            data = RetrievalSplitData(
                corpus=Dataset.from_list(corpus),
                queries=Dataset.from_list(queries),
                relevant_docs=relevant,
                top_ranked=top_ranked,
            )
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

    return Task()


@pytest.fixture(scope="module")
def rows(demo_data):
    """Of the demo data: corpus, queries, and which document is relevant for a query. A query's id is not a document's."""
    columns = demo_data.documents.drop_columns(["tokens"]).to_pylist()
    asked = demo_data.queries.drop_columns(["tokens"]).to_pylist()
    corpus = [{"id": row["id"], "title": "", "text": row["text"]} for row in columns]
    queries = [{"id": f"about {row['id']}", "text": row["text"]} for row in asked]
    return corpus, queries, {f"about {row['id']}": {row["id"]: 1} for row in asked}


@pytest.fixture(scope="module")
def metadata(rows):
    return task_of(*rows).metadata


def evaluated(search, task, **how):
    how = {"cache": None, "co2_tracker": False, "show_progress_bar": False, **how}
    (result,) = mteb.evaluate(search, task, **how).task_results
    return result.scores["test"][0]


def maxsim(queries, documents):
    tokens, starts = np.concatenate(documents), np.cumsum([0] + [len(document) for document in documents[:-1]])
    return np.stack([np.maximum.reduceat(query @ tokens.T, starts, axis=1).sum(0) for query in queries])


def ranking(encoder, corpus, queries):
    """Ids of all documents for each query, best first, and the scores, by numpy."""
    texts = [f"{row['title']} {row['text']}".strip() for row in corpus]
    documents = [np.asarray(matrix, np.float32) for matrix in encoder.documents(texts)]
    scores = maxsim([np.asarray(matrix, np.float32) for matrix in encoder.queries([row["text"] for row in queries])], documents)
    ids = np.array([row["id"] for row in corpus])
    return ids[np.argsort(-scores, axis=1, kind="stable")], scores


def ndcg_at_10(ranked, queries, relevant):
    """Of queries with one relevant document each."""
    gains = []
    for ids, query in zip(ranked, queries, strict=True):
        (wanted,) = relevant[query["id"]]
        places = np.flatnonzero(np.asarray(ids[:10]) == wanted)
        gains.append(1 / np.log2(places[0] + 2) if len(places) else 0.0)
    return np.mean(gains)


def recall_at_10(ranked, queries, relevant):
    return np.mean([next(iter(relevant[query["id"]])) in ids[:10] for ids, query in zip(ranked, queries, strict=True)])


def test_exact_search_of_a_task(rows, demo_data):
    encoder = demo_encoder(demo_data)
    ranked, _ = ranking(encoder, *rows[:2])
    search = LemurSearch(encoder, name="demo/encoder")
    scores = evaluated(search, task_of(*rows))
    assert scores["ndcg_at_10"] == pytest.approx(ndcg_at_10(ranked, *rows[1:]), abs=1e-5)
    assert scores["recall_at_10"] == pytest.approx(recall_at_10(ranked, *rows[1:]), abs=1e-5)
    assert scores["recall_at_1000"] == 1, "all 600 documents are ranked"
    assert 0.3 < scores["ndcg_at_10"] < 1, "a task with something to find and something to miss"
    assert not search.texts.index.is_fitted
    assert len(search.texts) == 600


def test_learned_from_training_queries(rows, demo_data):
    _, queries, relevant = rows
    encoder = demo_encoder(demo_data)
    training = demo_data.training_queries.column("text").to_pylist()
    search = LemurSearch(encoder, name="demo/encoder", fit=True, training_queries=training, num_threads=THREADS, **OPTIONS)
    scores = evaluated(search, task_of(*rows))
    assert search.texts.index.is_fitted
    index = LemurIndex(**OPTIONS).fit(demo_data.documents, queries=demo_data.training_queries, num_threads=THREADS)
    ranked = [hits.ids.tolist() for hits in index.search(demo_data.queries, k=10)]
    assert scores["ndcg_at_10"] == pytest.approx(ndcg_at_10(ranked, queries, relevant), abs=1e-5)
    assert scores["recall_at_10"] == pytest.approx(recall_at_10(ranked, queries, relevant), abs=1e-5)
    assert scores["recall_at_1000"] < 1, "40 candidates of 600 miss some"


def test_learned_from_the_corpus(rows, word_encoder):
    corpus, queries, relevant = rows
    ranked, _ = ranking(word_encoder, corpus, queries)
    exact = evaluated(LemurSearch(word_encoder, name="demo/words"), task_of(*rows))["ndcg_at_10"]
    assert exact == pytest.approx(ndcg_at_10(ranked, queries, relevant), abs=1e-5)
    options = {**OPTIONS, "num_candidates": 200}  # vectors of words that mean nothing are hard to learn from
    search = LemurSearch(word_encoder, name="demo/words", fit=True, num_threads=THREADS, **options)
    learned = evaluated(search, task_of(*rows))["ndcg_at_10"]
    own = TextIndex(word_encoder, LemurIndex(**options), fit_at=None)
    own.fit([row["text"] for row in corpus], ids=[row["id"] for row in corpus], num_threads=THREADS)
    found = [hits.ids.tolist() for hits in own.search([row["text"] for row in queries], k=10)]
    assert learned == pytest.approx(ndcg_at_10(found, queries, relevant), abs=1e-5)
    assert learned > 0.8 * exact


def index_and_search(search, corpus, queries, metadata, top_k, **how):
    search.index(Dataset.from_list(corpus), task_metadata=metadata, num_proc=None, **WHERE)
    return search.search(Dataset.from_list(queries), task_metadata=metadata, top_k=top_k, num_proc=None, **WHERE, **how)


def test_the_contract(rows, demo_data, metadata):
    corpus, queries, _ = rows
    encoder = demo_encoder(demo_data)
    search = LemurSearch(encoder, name="demo/encoder")
    assert isinstance(search, SearchProtocol)
    found = index_and_search(search, corpus, queries, metadata, 7)
    assert type(found) is dict
    assert list(found) == [row["id"] for row in queries]
    ranked, scores = ranking(encoder, corpus, queries)
    for row, (query_id, hits) in enumerate(found.items()):
        assert type(query_id) is str
        assert type(hits) is dict
        assert {type(value) for pair in hits.items() for value in pair} == {str, float}
        assert list(hits) == ranked[row][:7].tolist()
        np.testing.assert_allclose(list(hits.values()), np.sort(scores[row])[::-1][:7], rtol=1e-4)


def test_titles_and_instructions_reach_the_encoder(word_encoder, metadata):
    asked, given = [], []
    encoder = Encoder(
        lambda texts: asked.extend(texts) or word_encoder.queries(texts),
        lambda texts: given.extend(texts) or word_encoder.documents(texts),
    )
    corpus = [{"id": "1", "title": "Foxes", "text": "are red"}, {"id": "2", "title": "", "text": "whales are blue"}]
    queries = [{"id": "a", "text": "who is red", "instruction": "foxes only"}]
    found = index_and_search(LemurSearch(encoder, name="demo/words"), corpus, queries, metadata, 1)
    assert given == ["Foxes are red", "whales are blue"]
    assert asked == ["who is red foxes only"]
    assert list(found["a"]) == ["1"]
    turns = [{"role": "user", "content": "whales"}, {"role": "assistant", "content": "blue"}]
    index_and_search(LemurSearch(encoder, name="demo/words"), corpus, [{"id": "a", "text": turns}], metadata, 1)
    assert asked[-1] == "user: whales; assistant: blue"


def test_every_corpus_replaces_the_last(word_encoder, metadata):
    search = LemurSearch(word_encoder, name="demo/words")
    for doc_id in ("old", "new"):
        found = index_and_search(search, [{"id": doc_id, "text": "a fox"}], [{"id": "q", "text": "fox"}], metadata, 10)
        assert list(found["q"]) == [doc_id]


def test_as_many_hits_as_candidates_where_their_number_is_given(rows, word_encoder, metadata):
    corpus, queries, _ = rows
    unnamed = {name: value for name, value in OPTIONS.items() if name != "num_candidates"}
    for options, count in ((unnamed, 150), (OPTIONS, 40)):
        search = LemurSearch(word_encoder, name="demo/words", fit=True, candidates="exact", **options)
        found = index_and_search(search, corpus[:200], queries[:3], metadata, 150)
        assert [len(hits) for hits in found.values()] == [count] * 3


@pytest.mark.parametrize("fit", [False, True])
def test_reranking_scores_the_given_documents(rows, demo_data, fit):
    corpus, queries, relevant = rows
    encoder = demo_encoder(demo_data)
    ranked, scores = ranking(encoder, corpus, queries)
    given = {query["id"]: ids[5:60].tolist()[::-1] for query, ids in zip(queries, ranked, strict=True)}
    task = task_of(*rows, kind="Reranking", top_ranked=given)
    search = LemurSearch(encoder, name="demo/encoder", fit=fit, **OPTIONS)
    result = evaluated(search, task)
    assert result["ndcg_at_10"] == pytest.approx(ndcg_at_10(ranked[:, 5:60], queries, relevant), abs=1e-5)
    assert not search.texts.index.is_fitted, "nothing is learned where nothing is searched"
    few = {queries[0]["id"]: given[queries[0]["id"]], queries[1]["id"]: []}
    found = index_and_search(search, corpus, queries[:3], task.metadata, 1000, top_ranked=few)
    first = np.sort(scores[0])[::-1][5:60]
    assert list(found[queries[0]["id"]]) == ranked[0][5:60].tolist()
    np.testing.assert_allclose(list(found[queries[0]["id"]].values()), first, rtol=1e-4)
    assert [len(found[query["id"]]) for query in queries[:3]] == [55, 0, 0]


def test_the_cache_of_results_keeps_settings_apart(rows, demo_data, tmp_path):
    encoder = demo_encoder(demo_data)
    cache = mteb.ResultCache(tmp_path)
    training = demo_data.training_queries.column("text").to_pylist()
    how = {"fit": True, "training_queries": training, "num_threads": THREADS}
    few = {**OPTIONS, "num_candidates": 2, "ef_search": 2}
    searches = [
        LemurSearch(encoder, name="demo/encoder"),
        LemurSearch(encoder, name="demo/encoder", **how, **OPTIONS),
        LemurSearch(encoder, name="demo/encoder", **how, **few),
    ]
    scores = [evaluated(search, task_of(*rows), cache=cache)["recall_at_10"] for search in searches]
    assert scores[0] >= scores[1] > scores[2]
    assert len(list(tmp_path.rglob("DebianSummariesRetrieval.json"))) == 3
    again = LemurSearch(encoder, name="demo/encoder", **how, **few)
    assert evaluated(again, task_of(*rows), cache=cache)["recall_at_10"] == scores[2]
    assert again.texts is None, "the result came from the cache"
    assert LemurSearch(
        encoder, name="demo/encoder", fit=True, training_queries=training[:9]
    ).mteb_model_meta.experiment_name != (
        LemurSearch(encoder, name="demo/encoder", fit=True, training_queries=training[:8]).mteb_model_meta.experiment_name
    )


def test_predictions_are_saved(rows, demo_data, tmp_path):
    evaluated(LemurSearch(demo_encoder(demo_data), name="demo/encoder"), task_of(*rows), prediction_folder=tmp_path)
    (path,) = tmp_path.glob("*_predictions.json")
    assert '"about librte-rcu23"' in path.read_text()


class PaddedModel:
    """A model of mteb that pads what it gives to one length with zeros, as its wrappers of ColPali do."""

    mteb_model_meta = ModelMeta.create_empty({"name": "demo/padded"})

    def __init__(self, encoder):
        self.encoder = encoder
        self.told = []

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, batch_size, **_kwargs):
        self.told.append((task_metadata.name, hf_split, hf_subset, prompt_type.value, batch_size))
        side = self.encoder.queries if prompt_type == "query" else self.encoder.documents
        matrices = [matrix for batch in inputs for matrix in side(batch["text"])]
        out = np.zeros((len(matrices), max(map(len, matrices)), 64), np.float32)
        for row, matrix in zip(out, matrices, strict=True):
            row[: len(matrix)] = matrix
        return out


def test_a_model_of_mteb_that_pads(rows, word_encoder):
    model = PaddedModel(word_encoder)
    search = LemurSearch(model)
    plain = LemurSearch(word_encoder, name="demo/words")
    assert evaluated(search, task_of(*rows))["ndcg_at_10"] == evaluated(plain, task_of(*rows))["ndcg_at_10"]
    name = task_of(*rows).metadata.name
    assert model.told == [(name, "test", "default", side, 32) for side in ("document", "query")]
    assert search.texts.index.num_tokens == plain.texts.index.num_tokens, "padding is not stored"
    assert search.mteb_model_meta.name == "demo/padded"


@pytest.fixture(scope="module")
def multi_vector_model(tmp_path_factory):
    """A small MultiVectorEncoder with random weights, as mteb wraps it, with prompts that change what it gives."""
    transformers = pytest.importorskip("transformers", minversion="5")
    torch = pytest.importorskip("torch")
    encoders = pytest.importorskip("sentence_transformers", minversion="6")
    folder = tmp_path_factory.mktemp("model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{i}" for i in range(200)]
    transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(folder)
    model = encoders.MultiVectorEncoder(str(folder), device="cpu")
    model.prompts = {"Retrieval-query": "w1 w2 w3 ", "Retrieval-document": "w4 "}
    return mteb.models.MultiVectorWrapper(model)


def sentences(random, count, words):
    return [" ".join(f"w{i}" for i in random.integers(0, 200, words)) for _ in range(count)]


def test_a_multi_vector_model_of_mteb(multi_vector_model, rng):
    texts = sentences(rng, 120, 12)
    corpus = [{"id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
    queries = [{"id": f"q{i}", "text": " ".join(text.split()[:4])} for i, text in enumerate(texts[:30])]
    task = task_of(corpus, queries, {f"q{i}": {f"d{i}": 1} for i in range(30)})
    task.load_data()
    data = task.dataset["default"]["test"]
    multi_vector_model.index(data["corpus"], task_metadata=task.metadata, num_proc=None, **WHERE)
    own = multi_vector_model.search(data["queries"], task_metadata=task.metadata, top_k=120, num_proc=None, **WHERE)
    search = LemurSearch(multi_vector_model)
    ours = index_and_search(search, corpus, queries, task.metadata, 120)
    assert own.keys() == ours.keys()
    for query_id, hits in own.items():
        assert ours[query_id] == pytest.approx(hits, abs=1e-3)
    unprompted = index_and_search(LemurSearch(multi_vector_model.model, name="a/b"), corpus, queries, task.metadata, 120)
    assert unprompted["q0"] != pytest.approx(own["q0"], abs=1e-2), "the task's prompts change what the model gives"
    learned = LemurSearch(multi_vector_model, fit=True, num_threads=THREADS, **OPTIONS)
    found = index_and_search(learned, corpus, queries, task.metadata, 10)
    best = {query_id: sorted(hits, key=hits.get, reverse=True)[:10] for query_id, hits in own.items()}
    shared = np.mean([len({*best[query_id]} & hits.keys()) / 10 for query_id, hits in found.items()])
    assert shared > 0.7, "of the exact top 10, with 40 of 120 documents reranked"
    assert learned.texts.index.is_fitted


def test_texts_only(rows, word_encoder):
    model = PaddedModel(word_encoder)
    model.mteb_model_meta = ModelMeta.create_empty({"name": "demo/pages", "modalities": ["text", "image"]})
    task = task_of(*rows)
    task.metadata = task.metadata.model_copy(update={"category": "t2i", "modalities": ["text", "image"]})
    with pytest.raises(ValueError, match=r"supports \['text'\], but none overlap with"):
        evaluated(LemurSearch(model), task)


def test_an_empty_corpus(word_encoder, metadata):
    search = LemurSearch(word_encoder, name="demo/words")
    empty = Dataset.from_dict({"id": [], "title": [], "text": []})
    search.index(empty, task_metadata=metadata, num_proc=None, **WHERE)
    queries = Dataset.from_list([{"id": "q", "text": "fox"}])
    assert search.search(queries, task_metadata=metadata, top_k=10, num_proc=None, **WHERE) == {"q": {}}


def test_errors(word_encoder, metadata):
    with pytest.raises(ValueError, match="call index"):
        LemurSearch(word_encoder, name="demo/words").search(
            Dataset.from_list([{"id": "q", "text": "fox"}]), task_metadata=metadata, top_k=10, num_proc=None, **WHERE
        )
    with pytest.raises(ValueError, match="name must be 'organization/model' .*, got None"):
        LemurSearch(word_encoder)
    with pytest.raises(TypeError, match="fit must be True or False, got str 'no'"):
        LemurSearch(word_encoder, name="demo/words", fit="no")
    with pytest.raises(ValueError, match="training_queries are for fit=True"):
        LemurSearch(word_encoder, name="demo/words", training_queries=["fox"])
    with pytest.raises(ValueError, match="num_candidates must be at least 1"):
        LemurSearch(word_encoder, name="demo/words", num_candidates=0)
    with pytest.raises(TypeError, match="encoder must be a late-interaction model"):
        LemurSearch(object(), name="demo/words")
    dense = PaddedModel(Encoder(word_encoder.queries, word_encoder.documents))
    dense.encode = lambda loader, **_kwargs: np.ones((len(loader.dataset), 8), np.float32)
    with pytest.raises((TypeError, ValueError), match="a matrix of token embeddings for each text"):
        index_and_search(LemurSearch(dense), [{"id": "1", "text": "a fox"}], [{"id": "q", "text": "fox"}], metadata, 1)
