"""Fewer tokens: against SciPy and sentence-transformers, and in an index however its documents come."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import lemur_ann
from lemur_ann import LemurEncoder, LemurIndex, TextIndex, _core, reference
from lemur_ann.cli import app
from lemur_ann.documents import pooling as pooling_module
from lemur_ann.encoders import Encoder

SMALL = {"num_features": 64, "epochs": 0, "rank": 15, "num_sample_tokens": 256}
WAYS = ["ward", "sequential"]


def unit(tokens):
    lengths = np.linalg.norm(tokens.astype(np.float32), axis=1, keepdims=True)
    return (tokens / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def by_scipy(tokens, pool_factor, protected_tokens):
    """Ward's clusters of cosine distances, and their means, of length 1; which original token is in which."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    rest = tokens[protected_tokens:].astype(np.float32)
    count = max(len(rest) // pool_factor, 1)
    if count >= len(rest):
        return unit(tokens), list(range(len(tokens)))
    distances = squareform(np.clip(1 - rest @ rest.T, 0, 2), checks=False)
    labels = fcluster(linkage(distances, "ward"), count, "maxclust")
    means = [rest[labels == label].mean(axis=0) for label in np.unique(labels)]
    return unit(np.concatenate([tokens[:protected_tokens], means])), [*range(protected_tokens), *(labels + protected_tokens)]


def farthest(one, other):
    """The largest difference of a component of a token and of the one in the other set that is nearest to it."""
    differences = np.abs(one[:, None].astype(np.float32) - other[None].astype(np.float32)).max(axis=2)
    return max(differences.min(axis=0).max(), differences.min(axis=1).max())


def same_groups(one, other):
    """Whether two labels of tokens make the same clusters."""
    pairs = set(zip(one, other, strict=True))
    return len(pairs) == len(set(one)) == len(set(other))


@pytest.fixture(scope="module")
def real(demo_data):
    """Tokens of real documents, of length 1 but for rounding."""
    return [unit(np.array(tokens.as_py())).astype(np.float16) for tokens in demo_data.documents["tokens"][:150]]


@pytest.mark.parametrize("pool_factor", [2, 3, 7, 1000])
@pytest.mark.parametrize("protected_tokens", [0, 1, 3])
def test_ward_against_scipy(real, pool_factor, protected_tokens):
    pooled, groups = lemur_ann.pool(real, pool_factor, protected_tokens=protected_tokens)
    for tokens, own, numbers in zip(real, pooled, groups, strict=True):
        expected, labels = by_scipy(tokens, pool_factor, protected_tokens)
        assert own.dtype == np.float16
        assert len(own) == len(expected) == protected_tokens + max((len(tokens) - protected_tokens) // pool_factor, 1)
        assert farthest(own, expected) < 1e-3
        assert same_groups(numbers.tolist(), labels)
        np.testing.assert_array_equal(own[:protected_tokens], tokens[:protected_tokens])


@pytest.mark.parametrize(("num_tokens", "pieces"), [(1, 1), (257, 1), (258, 2), (1021, 4)])
def test_sequential_is_ward_in_runs(rng, num_tokens, pieces):
    tokens = unit(rng.normal(size=(num_tokens, 32)))
    (pooled,), (groups,) = lemur_ann.pool([tokens], 3, pooling="sequential")
    bounds = [1 + (num_tokens - 1) * i // pieces for i in range(pieces + 1)]
    parts = [tokens[begin:end] for begin, end in itertools.pairwise(bounds) if end > begin]
    alone = lemur_ann.pool(parts, 3, protected_tokens=0)
    np.testing.assert_array_equal(pooled, np.concatenate([tokens[:1], *alone.documents]))
    assert groups[0] == 0
    counts = [len(np.unique(groups[begin:end])) for begin, end in itertools.pairwise(bounds) if end > begin]
    assert counts == [len(own) for own in alone.documents]


@pytest.mark.parametrize(("pool_factor", "protected_tokens"), [(2, 1), (3, 1), (4, 0)])
def test_agrees_with_sentence_transformers(real, pool_factor, protected_tokens):
    modules = pytest.importorskip("sentence_transformers.multi_vector_encoder.modules")
    import torch

    theirs = modules.HierarchicalTokenPooling(pool_factor, num_protected_tokens=protected_tokens)
    expected = theirs.pool([torch.from_numpy(tokens.astype(np.float32)) for tokens in real])
    pooled, _ = lemur_ann.pool([tokens.astype(np.float32) for tokens in real], pool_factor, protected_tokens=protected_tokens)
    for own, wanted in zip(pooled, expected, strict=True):
        assert farthest(own, wanted.numpy()) < 1e-3


@pytest.mark.parametrize("pooling", WAYS)
def test_a_document_is_pooled_alike_alone_and_among_others(real, pooling):
    together, groups = lemur_ann.pool(real, 3, pooling=pooling, num_threads=3)
    for i in (0, 7, 149):
        (alone,), (numbers,) = lemur_ann.pool([real[i]], 3, pooling=pooling, num_threads=1)
        np.testing.assert_array_equal(alone, together[i])
        np.testing.assert_array_equal(numbers, groups[i])
    wide, _ = lemur_ann.pool([tokens.astype(np.float32) for tokens in real], 3, pooling=pooling)
    for one, other in zip(together, wide, strict=True):
        np.testing.assert_array_equal(one, other.astype(np.float16))


@pytest.mark.parametrize("pooling", WAYS)
@pytest.mark.parametrize("pool_factor", [1, 2, 5])
def test_what_is_odd(rng, pooling, pool_factor):
    one = rng.normal(size=(1, 8)).astype(np.float32)
    few = rng.normal(size=(3, 8)).astype(np.float32)
    equal, zeros = np.repeat(unit(one), 9, axis=0), np.zeros((6, 8), np.float32)
    opposite = np.concatenate([one, one, -one])
    for tokens in (one, few, equal, zeros, opposite, np.concatenate([zeros, equal]), 1e15 * unit(few), 1e-30 * few):
        (pooled,), (groups,) = lemur_ann.pool([tokens], pool_factor, pooling=pooling)
        assert np.isfinite(pooled).all()
        assert pooled.shape == (groups.max() + 1, 8)
        assert len(groups) == len(tokens)
        firsts = [groups.tolist().index(number) for number in range(len(pooled))]
        assert firsts == sorted(firsts)
        if pool_factor == 1:
            np.testing.assert_array_equal(pooled, tokens)
    (pooled,), _ = lemur_ann.pool([equal], 4, pooling="ward")
    np.testing.assert_allclose(pooled, equal[:2], rtol=1e-6)  # the protected one, and all others at once


def test_lengths_stay(rng):
    """Of merged tokens the mean length, and the direction of their mean."""
    tokens = np.float32([[2, 0], [4, 0], [0, 3], [0, 0.1]])
    (pooled,), (groups,) = lemur_ann.pool([tokens], 2, protected_tokens=0)
    assert groups.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(pooled, [[3, 0], [0, 1.55]], rtol=1e-6)
    scaled = (rng.uniform(0.5, 3, size=(40, 1)) * unit(rng.normal(size=(40, 16)))).astype(np.float32)
    (_,), (one,) = lemur_ann.pool([scaled], 3)
    (_,), (other,) = lemur_ann.pool([unit(scaled)], 3)
    assert one.tolist() == other.tolist()  # clusters are of directions


def test_long_documents_are_pooled_in_pieces(rng):
    tokens = unit(rng.normal(size=(5001, 8)))
    (pooled,), (groups,) = lemur_ann.pool([tokens], 10)
    assert len(pooled) == 1 + 500  # 166, 167 and 167
    third = 1 + 5000 // 3
    (first,), _ = lemur_ann.pool([tokens[:third]], 10)
    np.testing.assert_array_equal(first, pooled[: len(first)])
    assert groups[:third].max() < groups[third:].min()


def test_on_every_instruction_set(real, isa):
    """The demo's tokens have no two distances so near to each other that a rounding would tell."""
    pooled, groups = lemur_ann.pool(real[:30], 2)
    for i, tokens in enumerate(real[:30]):
        expected, labels = by_scipy(tokens, 2, 1)
        assert farthest(pooled[i], expected) < 1e-3
        assert same_groups(groups[i].tolist(), labels)


def test_forms_of_documents(real, tmp_path):
    table = pa.table({"id": [str(i) for i in range(20)], "tokens": pa.array([list(m) for m in real[:20]], TOKENS)})
    pq.write_table(table, tmp_path / "documents.parquet")
    expected, groups = lemur_ann.pool(real[:20], 2)
    flat = np.concatenate(real[:20])
    offsets = np.cumsum([0, *map(len, real[:20])])
    for made in (
        lemur_ann.pool(table, 2),
        lemur_ann.pool(tmp_path / "documents.parquet", 2),
        lemur_ann.pool(flat, 2, offsets=offsets),
        lemur_ann.pool(iter(real[:20]), 2),
    ):
        for i in range(20):
            np.testing.assert_array_equal(made.documents[i], expected[i])
            np.testing.assert_array_equal(made.groups[i], groups[i])
    assert lemur_ann.pool([], 2) == ([], [])


TOKENS = pa.list_(pa.list_(pa.float16(), 128))


def documents_of(matrices, first=0, **columns):
    dim = matrices[0].shape[1]
    names = [f"doc-{i}" for i in range(first, first + len(matrices))]
    tokens = pa.array([list(m) for m in matrices], pa.list_(pa.list_(pa.from_numpy_dtype(matrices[0].dtype), dim)))
    return pa.table({"id": names, "tokens": tokens, "year": list(range(len(matrices))), **columns})


@pytest.fixture
def queries(demo_data):
    return demo_data.training_queries.select(["tokens"])[:100]


def tokens_of(index, i):
    return index.get([f"doc-{i}"])["tokens"][0].as_py()


@pytest.mark.parametrize("pooling", WAYS)
def test_an_index_pools_whatever_comes(real, queries, tmp_path, pooling, monkeypatch):
    """In fit, add and upsert, from memory and in a stream, saved and loaded: each document has what pool makes of it."""
    monkeypatch.setattr(pooling_module, "VALUES_PER_BLOCK", 128 * 500)
    options = {**SMALL, "pool_factor": 2, "pooling": pooling, "protected_tokens": 2}
    expected, groups = lemur_ann.pool(real, 2, pooling=pooling, protected_tokens=2)
    pq.write_table(documents_of(real[:60]), tmp_path / "first.parquet")
    streamed = LemurIndex(**options).fit(tmp_path / "first.parquet", queries=queries, directory=tmp_path)
    inside = LemurIndex(**options).fit(real[:60], queries=queries, ids=[f"doc-{i}" for i in range(60)])
    for index in (streamed, inside):
        index.add(documents_of(real[60:100], 60))
        index.add(documents_of(real[100:120], 100).to_reader(max_chunksize=7))
        index.upsert(documents_of(real[120:150], 90))  # of which 30 are there, with other tokens
        index.save(tmp_path / "saved")
        for one in (index, LemurIndex.load(tmp_path / "saved")):
            assert (one.options.pool_factor, one.options.pooling, one.options.protected_tokens) == (2, pooling, 2)
            for i in (0, 59, 60, 89):
                np.testing.assert_array_equal(tokens_of(one, i), expected[i])
                assert one.metadata([f"doc-{i}"])["token_groups"][0].as_py() == groups[i].tolist()
            for i in (90, 110, 119):
                np.testing.assert_array_equal(tokens_of(one, i), expected[i + 30])
            assert one.metadata(["doc-100"]).schema.field("token_groups").type == pa.large_list(pa.uint16())
            one.check()
    query = queries["tokens"][0].as_py()
    found = streamed.search(np.array(query, np.float32), k=5, exact=True)
    stored = [np.array(tokens_of(streamed, i)) for i in range(120)]
    assert found.ids[0] == f"doc-{np.argmax(reference.maxsim(np.array(query, np.float32), stored))}"
    assert streamed.search(queries[:5], k=5, exact=True) == inside.search(queries[:5], k=5, exact=True)


def test_what_an_index_gives_is_taken_as_it_is(real, tmp_path):
    index = LemurIndex(pool_factor=3).add(documents_of(real[:30]))
    again = LemurIndex(pool_factor=3).add(index.get(list(index)))
    assert again.get(list(again)).equals(index.get(list(index)))
    pq.write_table(index.to_arrow().read_all(), tmp_path / "exported.parquet")
    assert LemurIndex(pool_factor=3).add(tmp_path / "exported.parquet").get(list(index)).equals(index.get(list(index)))
    mixed = pa.concat_tables([index.get(["doc-3", "doc-4"]), documents_of(real[30:33], 30)], promote_options="permissive")
    index.upsert(mixed)
    expected, groups = lemur_ann.pool(real, 3)
    for i in (3, 4, 30, 32):
        np.testing.assert_array_equal(tokens_of(index, i), expected[i])
        assert index.metadata([f"doc-{i}"])["token_groups"][0].as_py() == groups[i].tolist()
    elsewhere = documents_of(expected[:5], token_groups=[own.tolist() for own in groups[:5]])  # list<int64>
    taken = LemurIndex(pool_factor=3).add(elsewhere)
    np.testing.assert_array_equal(tokens_of(taken, 4), expected[4])


def test_what_is_pooled_is_not_pooled_again(real):
    index = LemurIndex(**SMALL, pool_factor=2)
    index.add(real[:3])
    table = index.get(index.ids())
    again = lemur_ann.pool(table, 2)
    for row, (tokens, groups) in enumerate(zip(again.documents, again.groups, strict=True)):
        np.testing.assert_array_equal(tokens, index.snapshot.store[row])
        assert groups.tolist() == table["token_groups"][row].as_py()


@pytest.mark.parametrize("pool_factor", [7, 100, 200])
def test_pieces_have_as_many_tokens_as_the_whole(rng, pool_factor):
    tokens = rng.normal(size=(10_000, 4)).astype(np.float32)
    for pooling in WAYS:
        (pooled,), _ = lemur_ann.pool([tokens], pool_factor, pooling=pooling, protected_tokens=0)
        assert len(pooled) == 10_000 // pool_factor


def test_an_index_without_pooling_leaves_columns_alone(real):
    index = LemurIndex().add(documents_of(real[:3], token_groups=["a", "b", "c"]))
    assert index.metadata(["doc-1"])["token_groups"][0].as_py() == "b"
    assert index.explain(real[0][:3], "doc-0").members is None
    assert "token_groups" not in LemurIndex().add(documents_of(real[:3])).metadata(["doc-1"]).column_names


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (["a", "b"], TypeError, r"column 'token_groups' must be list<uint16>.*got large_string; rename it"),
        ([[0.5], [1.0]], TypeError, r"must be list<uint16>"),
        ([[0, 1], None], ValueError, r"document 0 \(id 'doc-0'\) does not fit: it has 4 tokens"),
        ([None, [0, 1, 1, 3]], ValueError, r"document 1 \(id 'doc-1'\) does not fit: it has 4 tokens"),
        ([[0, 1, 2, 3], []], ValueError, r"document 1 \(id 'doc-1'\) does not fit"),
        ([None, [0, 1, 2, None]], ValueError, r"document 1 \(id 'doc-1'\) does not fit"),
        ([None, [0, 1, 2, 70_000]], ValueError, r"numbers that are not of pooled tokens, which are from 0 to 65,535"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_columns_that_do_not_fit(rng, column, error, message, stream):
    documents = documents_of([rng.normal(size=(4, 8)).astype(np.float32) for _ in range(2)], token_groups=column)
    index = LemurIndex(pool_factor=2)
    with pytest.raises(error, match=message):
        index.add(documents.to_reader() if stream else documents)
    assert len(index) == 0
    assert index.dim is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pool_factor": 0}, ValueError, "pool_factor must be at least 1, got 0"),
        ({"pool_factor": 1.5}, TypeError, "pool_factor must be an integer, got float 1.5"),
        ({"pool_factor": 2, "pooling": "mean"}, ValueError, "pooling must be 'ward' or 'sequential', got 'mean'"),
        ({"pool_factor": 2, "protected_tokens": -1}, ValueError, "protected_tokens must be at least 0, got -1"),
        ({"pool_factor": 2, "protected_tokens": 10**6}, ValueError, "protected_tokens must be at most 65,536"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        LemurIndex(**options)
    with pytest.raises(error, match=message):
        lemur_ann.pool([np.ones((2, 3), np.float32)], **options)


def test_as_many_tokens_as_have_numbers():
    tokens = np.eye(2, dtype=np.float16)[np.arange(60_000) % 2]
    (pooled,), _ = lemur_ann.pool([tokens], 1, protected_tokens=20_000)
    assert len(pooled) == 60_000


def test_too_many_tokens():
    long = np.ones((70_000 * 2, 1), np.float32)
    with pytest.raises(ValueError, match=r"document 1 has 140,000 tokens, of which pool_factor=2 may leave more than 65,536"):
        lemur_ann.pool([long[:3], long], 2)
    with pytest.raises(ValueError, match="document 0 would have 65537"):
        _core.pool(long[:65_537], np.array([0, 65_537]), 1, 0, 2048, 1)
    for bad in ((0, 0, 9), (1, -1, 9), (1, 0, 0), (1, 0, 2049)):
        with pytest.raises(ValueError, match="must"):
            _core.pool(long[:3], np.array([0, 3]), *bad, 1)


def test_pooling_stays_as_it_is(real, queries):
    index = LemurIndex(**SMALL, pool_factor=2).fit(real, queries=queries)
    with pytest.raises(TypeError, match="refit learns from tokens as they are kept, and keeps pool_factor"):
        index.refit(pool_factor=3)
    index.refit(epochs=0)
    assert index.options.pool_factor == 2
    index.delete(list(range(140)))
    index.compact()
    assert index.metadata([149])["token_groups"][0].as_py() == lemur_ann.pool([real[149]], 2).groups[0].tolist()


def test_an_encoder_learns_from_pooled_documents(real, queries):
    how = {**SMALL, "num_threads": 1}
    pooled = LemurEncoder.fit(lemur_ann.pool(real, 2).documents, queries, **how)
    assert LemurEncoder.fit(real, queries, **how, pool_factor=2).fingerprint == pooled.fingerprint


def test_small_codes_of_pooled_tokens(demo_data):
    options = {"num_features": 128, "epochs": 0, "rank": 31, "token_codes": "int4", "keep_tokens": "none", "pool_factor": 2}
    index = LemurIndex(**options).fit(demo_data.documents, queries=demo_data.training_queries)
    plain = LemurIndex(**{**options, "pool_factor": 1}).fit(demo_data.documents, queries=demo_data.training_queries)
    assert 1.9 < plain.num_tokens / index.num_tokens < 2.1
    again = LemurIndex(pool_factor=2).add(index.get(["gimp", "vim"] if "gimp" in index else list(index)[:2]))
    assert len(again) == 2


def words_of(text):
    return text.split()


def encode(texts):
    return [unit(np.stack([np.random.default_rng(list(w.encode())).normal(size=16) for w in words_of(t)])) for t in texts]


def names_of(texts):
    return [words_of(text) for text in texts]


def test_explain_says_what_was_merged():
    texts = TextIndex(Encoder(encode, encode, names_of, names_of), LemurIndex(pool_factor=2, protected_tokens=0))
    texts.add(["red fox red fox", "a blue whale"], ids=["fox", "whale"])
    explanation = texts.explain("red", "fox")
    assert explanation.members == ((0, 2), (1, 3))
    assert explanation.document_words == ("red … red", "fox … fox")
    assert "red … red" in str(explanation)
    assert explanation.original_similarities.shape == (1, 4)
    np.testing.assert_array_equal(explanation.original_similarities, explanation.similarities[:, [0, 1, 0, 1]])
    query = encode(["red"])[0]
    bare = texts.index.explain(query, "fox")
    assert bare.document_words is None
    assert "0+2" in str(bare)
    assert "0+2" in bare._repr_html_()
    named = texts.index.explain(query, "fox", document_words=["red one", "fox one"])  # of the pooled ones
    assert named.document_words == ("red one", "fox one")
    pieces = texts.index.explain(query, "whale", document_words=["a", "blu", "##e"])
    assert "a" in pieces.document_words[0]
    with pytest.raises(ValueError, match="for each of 4 original tokens, or of the 2 that they were pooled into, got 3"):
        texts.index.explain(query, "fox", document_words=["a", "b", "c"])
    with pytest.raises(TypeError, match="document_words must be a list of strings"):
        texts.index.explain(query, "fox", document_words="abcd")


def test_a_page_is_drawn_by_its_patches(tmp_path):
    pytest.importorskip("matplotlib")
    page = unit(np.random.default_rng(0).normal(size=(13, 8)))
    index = LemurIndex(pool_factor=3).add([page])
    explanation = index.explain(page[:2], 0)
    axes = explanation.picture(tmp_path / "page.png", grid=(3, 4), offset=1, query_token=0)
    np.testing.assert_allclose(axes.images[0].get_array(), explanation.original_similarities[0, 1:].reshape(3, 4))


@pytest.fixture(scope="module")
def fitted(demo_data):
    options = {"num_features": 128, "epochs": 0, "rank": 31}
    return LemurIndex(**options).fit(demo_data.documents, queries=demo_data.training_queries)


def test_tune_codes_measures_pooled_tokens(fitted, demo_data):
    found = fitted.tune_codes(demo_data.queries, relevant="id", max_loss=0.3)
    assert [factor for factor, _ in found.pooled] == [2] * 5 + [3] * 5 + [4] * 5
    assert [width.token_codes for _, width in found.pooled[:5]] == ["float16", "int4", "int3", "int2", "int1"]
    whole, half = found.widths[0], found.pooled[1][1]
    assert 0.5 < half.bytes_per_token / whole.bytes_per_token < 0.56
    floats = [width for _, width in found.pooled if width.token_codes == "float16"]
    assert 128 < floats[0].bytes_per_token < 142
    recalls = [width.recall for width in floats]
    assert recalls == sorted(recalls, reverse=True)
    assert recalls[0] >= half.recall
    factor, width = found.smallest
    holding = [w.bytes_per_token for w in (*found.widths, *(w for _, w in found.pooled)) if w.loss <= 0.3]
    assert width.bytes_per_token == pytest.approx(min(holding), abs=0.5)
    assert "an original token" in str(found)
    assert "float16, pool_factor=2" in str(found)
    assert factor == 1 or f"fit anew with pool_factor={factor}" in str(found)
    alone = fitted.tune_codes(demo_data.queries, pool_factors=())
    assert alone.pooled == ()
    assert "pool" not in str(alone)
    with pytest.raises(ValueError, match="pool_factors must be at least 2, got 1"):
        fitted.tune_codes(demo_data.queries, pool_factors=[1])


def test_what_tune_codes_measures_is_what_an_index_has(fitted, demo_data):
    """Pooled tokens in memory against an index of such, exactly searched."""
    index = LemurIndex(pool_factor=2).add(demo_data.documents)
    exact = fitted.search(demo_data.queries, k=10, exact=True)
    pooled = index.search(demo_data.queries, k=10, exact=True)
    shares = [len(set(a.ids) & set(b.ids)) / 10 for a, b in zip(exact, pooled, strict=True)]
    found = fitted.tune_codes(demo_data.queries, pool_factors=[2])
    assert found.pooled[0][1].recall == pytest.approx(np.mean(shares), abs=0.02)
    assert index.fit(queries=demo_data.training_queries).tune_codes(demo_data.queries).pooled == ()


@pytest.mark.parametrize("lengths", [(5, 20), (40, 41)])
def test_a_plan_knows_pooling(rng, lengths):
    documents = [unit(rng.normal(size=(rng.integers(*lengths), 16))) for _ in range(500)]
    index = LemurIndex(pool_factor=3, token_codes=None).add(documents)
    mean = sum(map(len, documents)) / 500
    planned = lemur_ann.plan(500, mean, 16, token_dtype="float32", pool_factor=3, token_codes=None)
    assert planned.num_tokens == pytest.approx(index.num_tokens, rel=0.03)
    stats = index.stats().parts
    assert planned.parts["tokens"] == pytest.approx(stats["tokens"].size, rel=0.05)
    assert planned.parts["metadata"] == pytest.approx(stats["metadata"].size, rel=0.05)
    assert planned.num_original_tokens == round(500 * mean)
    assert "pooled from" in str(planned)
    assert lemur_ann.plan(500, mean, 16).num_original_tokens is None


def test_on_the_command_line(real, queries, tmp_path):
    pq.write_table(documents_of(real), tmp_path / "documents.parquet")
    pq.write_table(queries, tmp_path / "queries.parquet")
    build = ["build", str(tmp_path / "documents.parquet"), "--queries", str(tmp_path / "queries.parquet")]
    options = ["--pool-factor", "2", "--pooling", "sequential", "--protected-tokens", "0", "--epochs", "0"]
    result = CliRunner().invoke(app, [*build, *options, "--num-features", "64", "--out", str(tmp_path / "index")])
    assert result.exit_code == 0, result.output
    index = LemurIndex.load(tmp_path / "index")
    np.testing.assert_array_equal(
        tokens_of(index, 3), lemur_ann.pool([real[3]], 2, pooling="sequential", protected_tokens=0)[0][0]
    )
    shown = CliRunner().invoke(app, ["plan", "1000", "100", "128", "--pool-factor", "2"]).output
    assert "pooled from 100,000" in shown


def test_tokens_that_are_no_numbers_end():
    """Which are refused as they come; the files of an index may be damaged all the same."""
    tokens = np.full((9, 4), np.nan, np.float32)
    tokens[3], tokens[5] = 1, np.inf
    pooled, offsets, groups = _core.pool(tokens, np.array([0, 9]), 2, 1, 256, 1)
    assert 1 < offsets[-1] <= 5 <= len(pooled)
    assert groups.max() == offsets[-1] - 1
