"""sentence-transformers' MultiVectorEncoder through TextIndex: there is no adapter, as_encoder knows it."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", minversion="6", reason="pip install lemur_ann[sentence-transformers]")

import tokenizers
import torch
import transformers
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask

from lemur_ann import LemurIndex, TextIndex
from lemur_ann.encoders import _names

TEXTS = [
    f"{article} {adjective} {noun}{end}"
    for article, end in (("a", "."), ("the", ""))
    for adjective in ("red", "blue", "deep", "little, old")
    for noun in ("fox", "whale", "sea", "bird")
]
QUERIES = ["red fox", "the deep blue sea", "old bird", "whale"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of random weights and a small vocabulary, made here."""
    folder = tmp_path_factory.mktemp("model")
    words = ["a", "the", "red", "blue", "deep", "little", "old", "fox", "whale", "sea", "bird", ".", ",", "asked", "said"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 64}))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.5, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["prompts", "expanded queries, documents without punctuation"])
def model(folder, request):
    if request.param == "prompts":
        return MultiVectorEncoder(folder, device="cpu", prompts={"query": "asked ", "document": "said "})
    model = MultiVectorEncoder(folder, device="cpu")
    model[0].query_expansion = {"strategy": "fixed", "length": 12}
    mask = MultiVectorMask(skiplist_words=[".", ","])
    mask.resolve_with_tokenizer(model.tokenizer)
    position = next(i for i, module in enumerate(model) if isinstance(module, MultiVectorMask))
    model[position] = mask
    return model


@pytest.fixture(scope="module")
def scores(model):
    """The model's own: (queries, documents)."""
    return model.similarity(model.encode_query(QUERIES), model.encode_document(TEXTS)).numpy()


def check(found, scores):
    for hits, row in zip(found, scores, strict=True):
        assert hits.scores == pytest.approx(np.sort(row)[::-1][: len(hits)], abs=1e-4)
        assert hits.scores == pytest.approx([row[TEXTS.index(text)] for text in hits.ids], abs=1e-4)


def test_scores_tell_the_models_sides_apart(model, scores):
    swapped = model.similarity(model.encode_document(QUERIES), model.encode_query(TEXTS)).numpy()
    assert np.median(abs(scores - swapped)) > 0.05
    assert np.ptp(scores, axis=1).min() > 0.05


@pytest.mark.parametrize("batch_size", [32, 5])
def test_texts_in_and_texts_asked(model, scores, batch_size):
    texts = TextIndex(model, batch_size=batch_size).add(TEXTS, ids=TEXTS)
    assert texts.index.dim == model.get_embedding_dimension()
    found = texts.search(QUERIES, k=7)
    check(found, scores)
    check([texts.search(QUERIES[1], k=7)], scores[1:2])
    assert texts.texts(found[0].ids) == found[0].ids.tolist()


def test_a_text_index_is_pickled(model, tmp_path):
    with LemurIndex.open(tmp_path / "index") as index:
        texts = TextIndex(model, index).add(TEXTS[:8], ids=TEXTS[:8])
        copy = pickle.loads(pickle.dumps(texts))
    assert copy.search(QUERIES, k=5) == texts.search(QUERIES, k=5)
    assert copy.explain(QUERIES[0], TEXTS[0]).query_words == texts.explain(QUERIES[0], TEXTS[0]).query_words


def test_the_embeddings_go_in_as_they_are(model, scores):
    index = LemurIndex().add(model.encode_document(TEXTS), ids=TEXTS)  # tensors
    check(index.search(model.encode_query(QUERIES), k=7), scores)
    assert index.search(model.encode_query(QUERIES[0]), k=7) == index.search(model.encode_query(QUERIES[:1]), k=7)[0]


def test_explanations_name_the_models_tokens(model, scores):
    texts = TextIndex(model).add(TEXTS, ids=TEXTS)
    text, query = "the little, old fox", QUERIES[1]
    explanation = texts.explain(query, text)
    assert explanation.score == pytest.approx(scores[1][TEXTS.index(text)], abs=1e-4)
    if model.prompts.get("query"):
        assert explanation.query_words == ("[CLS]", "asked", "the", "deep", "blue", "sea", "[SEP]")
        assert explanation.document_words == ("[CLS]", "said", "the", "little", ",", "old", "fox", "[SEP]")
    else:
        assert explanation.query_words[:6] == ("[CLS]", "the", "deep", "blue", "sea", "[SEP]")
        assert explanation.query_words[6:] == ("[MASK]",) * 6
        assert explanation.document_words == ("[CLS]", "the", "little", "old", "fox", "[SEP]"), "no punctuation"
    hits = texts.search(query, k=3)
    assert texts.explain_miss(query, hits.ids[2], k=3).found_at == 3


def test_names_of_tokens_that_are_bytes():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), vocab_size=300)
    tokenizer.train_from_iterator(["un café noir"] * 9, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ids = fast("un café noir")["input_ids"]
    assert fast.convert_ids_to_tokens(ids) == ["un", "ĠcafÃ©", "Ġnoir"]
    assert _names(fast, ids) == ["un", " café", " noir"]


def test_pooled_tokens_have_no_names(folder):
    model = MultiVectorEncoder(folder, device="cpu")
    model.append(HierarchicalTokenPooling(pool_factor=2))
    texts = TextIndex(model).add(TEXTS, ids=TEXTS)
    explanation = texts.explain("red fox", TEXTS[0])
    assert explanation.query_words == ("[CLS]", "red", "fox", "[SEP]")
    assert explanation.document_words is None
    assert explanation.similarities.shape[1] < 6


def test_learned_from_the_documents_own_texts(model, scores):
    index = LemurIndex(num_features=64, epochs=1, rank=15, num_candidates=len(TEXTS))
    texts = TextIndex(model, index).fit(TEXTS, ids=TEXTS, progress=False)
    assert texts.index.is_fitted
    check(texts.search(QUERIES, k=7), scores)


def test_changes_and_another_process(model, scores, tmp_path):
    with LemurIndex.open(tmp_path / "index") as index:
        texts = TextIndex(model, index).add(TEXTS[1:], ids=TEXTS[1:])
        texts.upsert([TEXTS[0], TEXTS[5]], ids=[TEXTS[0], TEXTS[5]])
    check(TextIndex(model, LemurIndex.open(tmp_path / "index", read_only=True)).search(QUERIES, k=7), scores)


def test_mean_maxsim_ranks_alike(folder):
    model = MultiVectorEncoder(folder, device="cpu", similarity_fn_name="meanmaxsim")
    hits = TextIndex(model).add(TEXTS, ids=TEXTS).search(QUERIES[0], k=7)
    means = model.similarity(model.encode_query(QUERIES[:1]), model.encode_document(hits.ids.tolist()))[0].numpy()
    assert hits.scores / len(model.encode_query(QUERIES[0])) == pytest.approx(means, abs=1e-5)


def test_a_text_of_which_the_model_keeps_no_token(folder):
    model = MultiVectorEncoder(folder, device="cpu")
    mask = MultiVectorMask(skiplist_words=["[CLS]", "[SEP]", "."])
    mask.resolve_with_tokenizer(model.tokenizer)
    model[next(i for i, module in enumerate(model) if isinstance(module, MultiVectorMask))] = mask
    texts = TextIndex(model)
    with pytest.raises(ValueError, match="document encoder: document 1 has no tokens, expected at least one"):
        texts.add(["a fox", "."])
    assert len(texts) == 0


def test_a_dense_model_is_refused(folder):
    dense = SentenceTransformer(folder, device="cpu")
    with pytest.raises(TypeError, match="must give a vector for each token, and SentenceTransformer gives one for a text"):
        TextIndex(dense)
    texts = TextIndex((dense.encode_query, dense.encode_document))
    with pytest.raises(ValueError, match="document encoder: .*it must give a matrix of token embeddings for each text"):
        texts.add(TEXTS)
