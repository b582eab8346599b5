"""What PyLate's programs rely on in an index, for LemurIndex and for PyLate's own Voyager alike.

test_pylate.py runs this in an environment of its own, since PyLate pins sentence-transformers; its name keeps it out of other
runs. By hand: pytest -o addopts="" tests/adapters/pylate_contract.py
"""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from lemur_ann.adapters.pylate import LemurIndex
from pylate import indexes, models, rank, retrieve

import lemur_ann
from lemur_ann import TextIndex

DIM = 16
FIT = {"num_features": 64, "epochs": 1, "rank": 15}
PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "pylate.md"

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*SwigPy.*")


def embeddings(count, seed, low=2, high=9):
    """Of positive numbers: rank.rerank pads with zeros, which would win over similarities below zero."""
    random = np.random.default_rng(seed)
    matrices = [abs(random.normal(size=(random.integers(low, high), DIM))) for _ in range(count)]
    return [(matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32) for matrix in matrices]


DOCUMENTS = embeddings(60, seed=1)
QUERIES = embeddings(5, seed=2)
IDS = [f"doc {i}" for i in range(len(DOCUMENTS))]


def best(query, ids=IDS, documents=DOCUMENTS, k=10):
    """The oracle: all MaxSim scores, and the best k of them."""
    scores = [float((query @ document.T).max(1).sum()) for document in documents]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
    return [ids[i] for i in order], [scores[i] for i in order]


def check(results, queries=QUERIES, ids=IDS, documents=DOCUMENTS, k=10):
    assert len(results) == len(queries)
    for hits, query in zip(results, queries, strict=True):
        expected_ids, expected_scores = best(query, ids, documents, k)
        assert [hit["id"] for hit in hits] == expected_ids
        assert [hit["score"] for hit in hits] == pytest.approx(expected_scores, abs=1e-5)
        assert all(set(hit) == {"id", "score"} and type(hit["score"]) is float for hit in hits)


def search(index, queries=QUERIES, k=10, **how):
    """Every token of every document is a candidate, so that what a token index returns is exact too."""
    return retrieve.ColBERT(index=index).retrieve(queries_embeddings=queries, k=k, k_token=10_000, device="cpu", **how)


@pytest.fixture(params=["LemurIndex", "Voyager"])
def make(request, tmp_path):
    """Opens an index by its name in a folder of this test."""

    def make(name="index", override=True):
        if request.param == "LemurIndex":
            return LemurIndex(index_folder=str(tmp_path), index_name=name, override=override)
        settings = {"embedding_size": DIM, "M": 32, "ef_construction": 500, "ef_search": 2000}
        return indexes.Voyager(index_folder=str(tmp_path), index_name=name, override=override, **settings)

    return make


# Every index


def test_it_is_an_index_of_pylate(make):
    assert isinstance(make(), indexes.base.Base)


def test_retrieve(make):
    index = make()
    assert index.add_documents(documents_ids=IDS, documents_embeddings=DOCUMENTS) is index
    check(search(index))
    check(search(index, k=3), k=3)


@pytest.mark.parametrize("form", ["list of tensors", "tensor", "array"])
def test_forms_of_embeddings(make, form):
    documents, queries = embeddings(30, seed=3, low=4, high=5), embeddings(4, seed=4, low=4, high=5)
    given = {
        "list of tensors": lambda matrices: [torch.from_numpy(matrix) for matrix in matrices],
        "tensor": lambda matrices: torch.from_numpy(np.stack(matrices)),
        "array": np.stack,
    }[form]
    index = make().add_documents(IDS[:30], given(documents))
    check(search(index, given(queries)), queries, IDS[:30], documents)


@pytest.mark.parametrize("given", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_one_query_and_one_document_alone(make, given):
    index = make().add_documents(IDS[:-1], DOCUMENTS[:-1])
    index.add_documents(IDS[-1], given(DOCUMENTS[-1]))
    check(search(index, given(QUERIES[0])), QUERIES[:1])


def test_integer_ids_come_back_as_integers(make):
    index = make().add_documents(documents_ids=range(60), documents_embeddings=DOCUMENTS)
    results = search(index)
    check(results, ids=list(range(60)))
    assert type(results[0][0]["id"]) is int


def test_additions_and_batches(make):
    index = make()
    for begin in range(0, 60, 20):
        part = slice(begin, begin + 20)
        index = index.add_documents(documents_ids=IDS[part], documents_embeddings=DOCUMENTS[part], batch_size=7)
    check(search(index))


def test_what_is_added_again_takes_the_place_of_what_was_there(make):
    index = make().add_documents(IDS, DOCUMENTS)
    new = embeddings(2, seed=5)
    index.add_documents(IDS[:2], new)
    check(search(index), documents=new + DOCUMENTS[2:])


def test_remove_documents(make):
    index = make().add_documents(IDS, DOCUMENTS)
    gone = best(QUERIES[0], k=3)[0]
    assert index.remove_documents(gone) is index
    left = [i for i in range(60) if IDS[i] not in gone]
    ids, documents = [IDS[i] for i in left], [DOCUMENTS[i] for i in left]
    check(search(index), ids=ids, documents=documents)
    index.add_documents(gone, [DOCUMENTS[IDS.index(doc_id)] for doc_id in gone])
    check(search(index))


def test_the_same_folder_and_name_are_the_same_index(make):
    make().add_documents(IDS[:30], DOCUMENTS[:30])
    again = make(override=False)
    check(search(again), ids=IDS[:30], documents=DOCUMENTS[:30])
    again.add_documents(IDS[30:], DOCUMENTS[30:])
    check(search(make(override=False)))
    make("other").add_documents(IDS[:5], DOCUMENTS[:5])
    check(search(make("other", override=False)), ids=IDS[:5], documents=DOCUMENTS[:5], k=5)
    check(search(make(override=False)))


def test_override_begins_anew(make):
    make().add_documents(IDS[:30], DOCUMENTS[:30])
    index = make(override=True).add_documents(IDS[30:], DOCUMENTS[30:])
    check(search(index), ids=IDS[30:], documents=DOCUMENTS[30:])


def test_rerank_of_stored_embeddings(make):
    index = make().add_documents(IDS, DOCUMENTS)
    groups = [IDS[:20], IDS[10:15]]
    stored = index.get_documents_embeddings(groups)
    assert [len(group) for group in stored] == [20, 5]
    np.testing.assert_allclose(stored[1][2], DOCUMENTS[12], atol=1e-6)
    reranked = rank.rerank(documents_ids=groups, queries_embeddings=QUERIES[:2], documents_embeddings=stored)
    check(reranked[:1], QUERIES[:1], IDS[:20], DOCUMENTS[:20], k=20)
    check(reranked[1:], QUERIES[1:2], IDS[10:15], DOCUMENTS[10:15])


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A ColBERT of random weights and a small vocabulary, made here."""
    folder = tmp_path_factory.mktemp("model")
    words = ["a", "the", "red", "blue", "deep", "little", "old", "fox", "whale", "sea", "bird", ".", ","]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 64}))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.5, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    return models.ColBERT(str(folder), embedding_size=DIM, query_length=12, device="cpu")


TEXTS = [
    f"{article} {adjective} {noun}{end}"
    for article, end in (("a", "."), ("the", ""))
    for adjective in ("red", "blue", "deep", "little, old")
    for noun in ("fox", "whale", "sea", "bird")
]


def test_a_model(make, model):
    documents = model.encode(TEXTS, is_query=False, show_progress_bar=False)
    queries = model.encode(["red fox", "the deep sea", "old whale"], is_query=True, show_progress_bar=False)
    index = make().add_documents(documents_ids=TEXTS, documents_embeddings=documents)
    results = search(index, queries, k=5)
    for hits, query in zip(results, queries, strict=True):
        assert [hit["score"] for hit in hits] == pytest.approx(best(query, TEXTS, documents, 5)[1], abs=1e-4)
    one = model.encode("red fox", is_query=True, show_progress_bar=False)
    assert search(index, one, k=1)[0][0]["score"] == pytest.approx(results[0][0]["score"], abs=1e-4)


# LemurIndex alone: what PLAID has beside these, and what is new


@pytest.fixture
def index(tmp_path):
    return LemurIndex(tmp_path, "index", override=True, **FIT).add_documents(IDS, DOCUMENTS)


def test_it_works_while_it_is_empty(tmp_path):
    index = LemurIndex(tmp_path)
    assert index.is_end_to_end_index
    assert search(index) == [[]] * len(QUERIES)
    assert index.remove_documents(["nothing"]) is index
    assert index.get_documents_embeddings([[], []]) == [[], []]
    assert index.add_documents([], []) is index


def test_update_documents(index):
    new = embeddings(2, seed=6)
    assert index.update_documents([IDS[3], "doc 60"], new) is index
    kept = [i for i in range(60) if i != 3]
    check(search(index), ids=[*(IDS[i] for i in kept), IDS[3], "doc 60"], documents=[*(DOCUMENTS[i] for i in kept), *new])


def test_removing_what_is_not_there_counts_for_nothing(index):
    index.remove_documents(["doc 7", "nobody"])
    index.remove_documents("doc 8")
    assert len(index.index) == 58


@pytest.mark.parametrize("fitted", [False, True])
def test_subset(index, fitted):
    if fitted:
        index.fit(embeddings(100, seed=7), progress=False)
    some = IDS[5:25]
    check(search(index, subset=some), ids=some, documents=DOCUMENTS[5:25])
    check(search(index, subset=[*some, "nobody"], k=30), ids=some, documents=DOCUMENTS[5:25], k=20)
    each = [IDS[i : i + 15] for i in range(5)]
    for i, hits in enumerate(search(index, subset=each)):
        check([hits], QUERIES[i : i + 1], each[i], DOCUMENTS[i : i + 15])
    assert search(index, subset=[]) == [[]] * 5
    assert search(index, subset=[[], ["doc 1"], [], [], ["nobody"]])[1][0]["id"] == "doc 1"
    check(search(index, torch.from_numpy(QUERIES[0]), subset=some), QUERIES[:1], some, DOCUMENTS[5:25])
    with pytest.raises(ValueError, match="lists of ids for 2 queries, and there are 5"):
        search(index, subset=each[:2])
    with pytest.raises(TypeError, match="ids are integers, index has ids that are strings"):
        search(index, subset=[1, 2])


def test_xtr_retrieval_gives_its_hits_as_they_are(index):
    check(retrieve.XTR(index=index).retrieve(queries_embeddings=QUERIES, k=10))


def test_half_precision(tmp_path):
    index = LemurIndex(tmp_path).add_documents(IDS, [torch.from_numpy(matrix).half() for matrix in DOCUMENTS])
    halves = [matrix.astype(np.float16).astype(np.float32) for matrix in DOCUMENTS]
    check(search(index), documents=halves)
    assert index.get_documents_embeddings([IDS[:1]])[0][0].dtype == np.float32
    check(rank.rerank([IDS], QUERIES[:1], index.get_documents_embeddings([IDS])), QUERIES[:1], documents=halves, k=60)


def test_bad_documents_change_nothing(index):
    for ids, matrices, message in (
        (["a", "b"], DOCUMENTS[:1], "got 2 ids"),
        (["a", "a"], DOCUMENTS[:2], "id 'a' is repeated"),
        ([1], DOCUMENTS[:1], "ids are integers, index has ids that are strings"),
        (["a"], [DOCUMENTS[0][:, :5]], "dim 5"),
        (["a"], [DOCUMENTS[0] * np.nan], "NaN"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            index.add_documents(ids, matrices)
    check(search(index))


def test_learned(tmp_path):
    documents, training, queries = embeddings(600, seed=8), embeddings(300, seed=9), embeddings(20, seed=10)
    ids = [f"{i}" for i in range(600)]
    index = LemurIndex(tmp_path, num_candidates=100, ef_search=200, **FIT).add_documents(ids, documents)
    assert not index.index.is_fitted
    check(search(index, queries), queries, ids, documents)
    assert index.fit(training, progress=False) is index
    results = search(index, queries)
    exact = [best(query, ids, documents) for query in queries]
    found = [len({hit["id"] for hit in hits} & set(top)) / 10 for hits, (top, _) in zip(results, exact, strict=True)]
    assert np.mean(found) > 0.7  # random data, and a small map
    index.add_documents(["more"], queries[:1])
    assert search(index, queries[:1], k=1)[0][0]["id"] == "more"
    index.search_options["num_candidates"] = 601
    assert [hit["id"] for hit in search(index, queries)[1]] == exact[1][0]


def test_training_queries_of_the_constructor(tmp_path):
    queries = torch.from_numpy(np.stack(embeddings(100, seed=11, low=4, high=5)))
    index = LemurIndex(tmp_path, training_queries_embeddings=queries, fit_at=50, **FIT)
    index.add_documents(IDS[:40], DOCUMENTS[:40])
    assert not index.index.is_fitted
    index.add_documents(IDS[40:], DOCUMENTS[40:])
    assert index.index.is_fitted
    check(search(index))  # 250 candidates are all


def test_learning_without_queries_warns(index):
    with pytest.warns(UserWarning, match="quer"):
        index.fit(progress=False)
    with pytest.raises(ValueError, match="dim"):
        index.fit([np.ones((3, 5), np.float32)])


def test_a_new_process_finds_every_change(index, tmp_path):
    index.remove_documents(IDS[:1])
    program = (
        "import sys; from lemur_ann.adapters.pylate import LemurIndex; from lemur_ann import IndexLocked\n"
        "try: LemurIndex(sys.argv[1], 'index')\n"
        "except IndexLocked: print('locked')\n"
        "index = LemurIndex(sys.argv[1], 'index', read_only=True)\n"
        "print(len(index.index), index.get_documents_embeddings([['doc 1']])[0][0].tolist())\n"
        "try: index.remove_documents(['doc 1'])\n"
        "except PermissionError: print('read-only')\n"
        "try: LemurIndex(sys.argv[1], 'index', override=True)\n"
        "except IndexLocked: print('kept')\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.splitlines() == ["locked", f"59 {DOCUMENTS[1].tolist()}", "read-only", "kept"], run.stderr
    index.close()
    check(search(index), ids=IDS[1:], documents=DOCUMENTS[1:])
    with pytest.raises(PermissionError, match="closed"):
        index.add_documents(["a"], DOCUMENTS[:1])
    with lemur_ann.LemurIndex.open(tmp_path / "index") as core:
        assert len(core) == 59


def test_objects_of_one_process_share_the_index(index, tmp_path):
    other = LemurIndex(tmp_path, "index")
    other.add_documents(["more"], QUERIES[:1])
    assert search(index, QUERIES[:1], k=1)[0][0]["id"] == "more"
    new = LemurIndex(tmp_path, "index", override=True)
    assert len(new.index) == 0
    assert len(index.index) == 61  # what it read is its own
    assert len(LemurIndex(tmp_path, "index").index) == 0


def test_options_are_those_of_the_index(tmp_path):
    LemurIndex(tmp_path, "index", M=12, num_features=64).close()
    LemurIndex(tmp_path, "index", M=12).close()
    with pytest.raises(ValueError, match="the index in .* has M=12"):
        LemurIndex(tmp_path, "index", M=16, num_features=64)
    with pytest.raises(TypeError, match="nbits"):
        LemurIndex(tmp_path, "index", nbits=4)
    for name in ("override", "read_only"):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got str 'no'"):
            LemurIndex(tmp_path, "index", **{name: "no"})
    with pytest.raises(ValueError, match="pass one of them"):
        LemurIndex(tmp_path, "index", override=True, read_only=True)
    with pytest.raises(FileNotFoundError):
        LemurIndex(tmp_path, "nothing", read_only=True)
    device = LemurIndex(tmp_path, "index", device="cpu")
    assert device.index.options.device == "cpu"
    assert LemurIndex(tmp_path, "index", override=True, M=16).index.options.M == 16


def test_override_where_something_else_is(tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="notes"):
        LemurIndex(tmp_path, "index", override=True)
    assert (tmp_path / "index" / "notes.txt").read_text() == "mine"


def test_override_of_a_broken_index(index, tmp_path):
    index.close()
    (tmp_path / "index" / "manifest.json").write_text("{")
    with pytest.raises(lemur_ann.CorruptIndex):
        LemurIndex(tmp_path, "index")
    check(search(LemurIndex(tmp_path, "index", override=True).add_documents(IDS, DOCUMENTS)))


def test_text_index_over_a_model_of_pylate(model):
    texts = TextIndex(model, batch_size=5).add(TEXTS, ids=TEXTS)
    documents = model.encode(TEXTS, is_query=False, show_progress_bar=False)
    query = model.encode(["little, old bird"], is_query=True, show_progress_bar=False)[0]
    assert texts.search("little, old bird", k=5).scores == pytest.approx(best(query, TEXTS, documents, 5)[1], abs=1e-4)
    explanation = texts.explain("little, old bird", TEXTS[-1])
    assert explanation.query_words[:7] == ("[CLS]", "[Q] ", "little", ",", "old", "bird", "[SEP]")
    assert len(explanation.query_words) == len(query)
    assert explanation.document_words[:2] == ("[CLS]", "[D] ")
    assert "," not in explanation.document_words  # which the model leaves out


def test_the_program_of_the_page(tmp_path, monkeypatch, capsys):
    program = re.search(r'```python title="pylate"\n(.*?)```', PAGE.read_text(), re.DOTALL)[1]
    (tmp_path / "page.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / "page.py"))
    assert "rank.rerank agrees: True" in capsys.readouterr().out
