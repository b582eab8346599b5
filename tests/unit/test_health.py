"""How well the map still fits: the measures, and what they say where documents change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lemur_ann import Health, LemurIndex, NotFitted, reference
from lemur_ann.documents.inputs import read_queries
from lemur_ann.insight import metrics
from lemur_ann.insight.health import MapFit, own_queries
from lemur_ann.saved import storage

DIM = 32


def test_ranks_with_ties_by_hand():
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3.5, 3.5: about the mean 2.5 products sum to 3.75 and squares to 4.5
    assert metrics.rank_correlation([10, 20, 20, 30], [1, 2, 5, 5]) == pytest.approx(3.75 / 4.5)
    assert metrics.rank_correlation([1, 2, 3], [-5, 0, 1e9]) == pytest.approx(1)
    assert metrics.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_rank_correlation_against_counting(rng, levels):
    """The mean rank of a value: how many are smaller, and half of the others that equal it."""
    for _ in range(20):
        a, b = rng.integers(0, levels, (2, 30)).astype(np.float32)
        ranks = [[sum(y < x for y in side) + (sum(y == x for y in side) - 1) / 2 for x in side] for side in (a, b)]
        assert metrics.rank_correlation(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1])
        assert metrics.rank_correlation(a, b) == metrics.rank_correlation(b, a)
        assert metrics.rank_correlation(np.exp(a / levels), b) == pytest.approx(metrics.rank_correlation(a, b))


def test_rank_correlation_that_is_not_defined():
    for a, b in (([], []), ([1], [2]), ([1, 1, 1], [1, 2, 3]), ([1, 2], [0, 0])):
        assert metrics.rank_correlation(a, b) is None
    with pytest.raises(ValueError, match="as many values on both sides, got 2 and 3"):
        metrics.rank_correlation([1, 2], [1, 2, 3])


def test_fitted_beside_polyfit(rng):
    values, goal = rng.normal(size=(2, 50)).astype(np.float32)
    np.testing.assert_allclose(metrics.fitted(values, goal), np.polyval(np.polyfit(values, goal, 1), values), rtol=1e-5)
    assert metrics.fitted([2, 2, 2], [1, 2, 6]).tolist() == [3, 3, 3]
    assert metrics.fitted([7], [4]).tolist() == [4]


def test_share_found_by_hand():
    share, low, high = metrics.share_found([1, 0], [1, 1])  # two trials, one found: Wilson's interval in closed form
    z = metrics.Z
    assert share == 0.5
    assert (low, high) == pytest.approx((0.5 - z / (2 * np.sqrt(1 + z**2)), 0.5 + z / (2 * np.sqrt(1 + z**2))))
    assert metrics.share_found([], []) is None
    assert metrics.share_found([0, 0], [0, 0]) is None
    assert metrics.share_found([3, 0, 1], [3, 0, 1])[0] == 1.0  # a query that wants nothing does not count
    share, low, high = metrics.share_found([10] * 20, [10] * 20)
    assert (share, high) == (1.0, 1.0)
    assert low == pytest.approx(20 / (20 + z**2))  # twenty trials, all found


@pytest.mark.parametrize(("share", "num_queries"), [(0.5, 30), (0.9, 50), (0.97, 200)])
@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_the_interval_contains_the_truth(rng, share, num_queries, spread):
    """Recall differs from query to query; 95% of intervals should hold the share they were drawn with."""
    held = []
    for _ in range(400):
        own = np.full(num_queries, share)
        if spread:
            concentration = 1 / spread - 1
            own = rng.beta(share * concentration, (1 - share) * concentration, num_queries)
        wanted = rng.integers(1, 11, num_queries)
        p, low, high = metrics.share_found(rng.binomial(wanted, own), wanted)
        assert 0 <= low <= p <= high <= 1
        held.append(low <= share <= high)
    assert np.mean(held) > 0.9


def test_more_queries_narrow_the_interval(rng):
    widths = []
    for count in (10, 100, 1000):
        _, low, high = metrics.share_found(rng.binomial(10, 0.9, count), np.full(count, 10))
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def topics(rng, *, of):
    """Forty directions in one half of the coordinates."""
    half = np.zeros((40, DIM))
    half[:, of * DIM // 2 : (of + 1) * DIM // 2] = rng.normal(size=(40, DIM // 2))
    return half / np.linalg.norm(half, axis=1, keepdims=True)


def about(rng, directions, count, num_tokens=None):
    """Matrices with tokens near two of the directions."""
    matrices = []
    for _ in range(count):
        length = num_tokens or int(rng.integers(4, 17))
        tokens = directions[rng.choice(rng.choice(len(directions), 2), length)] + 0.09 * rng.normal(size=(length, DIM))
        matrices.append((tokens / np.linalg.norm(tokens, axis=1, keepdims=True)).astype(np.float32))
    return matrices


@pytest.fixture
def changing(rng):
    """An index of 500 documents, and what draws documents and queries like them (0) or unlike them (1)."""
    directions = [topics(rng, of=half) for half in (0, 1)]

    def draw(half, count, num_tokens=None):
        return about(rng, directions[half], count, num_tokens)

    def make(**options):
        settings = {"num_features": 96, "epochs": 1, "rank": 31, "num_candidates": 40, "ef_search": 100, **options}
        return LemurIndex(**settings).fit(draw(0, 500), queries=draw(0, 300, 8))

    return make, draw


def test_a_map_that_fits(changing):
    make, draw = changing
    index = make()
    queries = draw(0, 60, 8)
    health = index.health(queries)
    assert isinstance(health, Health)
    assert health.verdict == "the map fits"
    assert not health.problems
    assert health.documents.correlation > 0.9
    assert health.documents == health.older
    assert health.recent == MapFit(0, None, 0, None, None, 0)
    assert (health.share_recent, health.queries, health.num_queries) == (0.0, "given", 60)
    assert (health.k, health.num_candidates, health.ef_search) == (10, 40, 100)
    assert health.documents.num_wanted == 600
    low, high = health.documents.recall_interval
    assert low <= health.documents.recall <= high
    assert str(health).startswith(
        "the map fits\n60 queries; k 10, num_candidates 40, ef_search 100, shortlist 2000\nall documents: 500, rank"
    )
    assert "recent" not in str(health)


@pytest.mark.parametrize("candidates", ["hnsw", "exact"])
def test_candidate_recall_is_the_recall_of_searches(changing, candidates):
    """The rerank is exact: one number, whatever the number of candidates."""
    make, draw = changing
    index = make(candidates=candidates)
    queries = draw(0, 40, 8)
    for arguments in ({"k": 5, "num_candidates": 6}, {"k": 10, "num_candidates": 20, "ef_search": 30}, {"num_candidates": 500}):
        expected = index.evaluate(queries, **arguments)
        health = index.health(queries, **arguments)
        assert health.documents.recall == pytest.approx(expected.recall)
        assert (health.num_candidates, health.ef_search) == (expected.num_candidates, expected.ef_search)
    assert health.documents.recall == 1.0  # every document was a candidate


def test_correlation_against_all_pairs(changing):
    """With samples no smaller than the index, the figure of the whole index."""
    make, draw = changing
    index = make(candidates="exact")
    queries = draw(0, 20, 8)
    batch = read_queries(queries)
    estimates = index.encoder.encode_batch(batch.tokens, batch.offsets) @ index.encoder.encode_store(index.snapshot.store).T
    documents = [index.snapshot.store[i] for i in range(500)]
    exact = [reference.maxsim(query, documents) for query in queries]
    each = [metrics.rank_correlation(a, b) for a, b in zip(estimates, exact, strict=True)]
    assert index.health(queries, num_documents=500).documents.correlation == pytest.approx(np.mean(each), abs=1e-4)
    assert index.health(queries, num_documents=200).documents.correlation == pytest.approx(np.mean(each), abs=0.05)


@pytest.mark.parametrize("candidates", ["hnsw", "exact"])
def test_more_documents_of_the_same_kind_do_no_harm(changing, candidates):
    make, draw = changing
    index = make(candidates=candidates)
    index.add(draw(0, 200))
    health = index.health(draw(0, 60, 8))
    assert health.verdict == "the map fits"
    assert health.share_recent == pytest.approx(200 / 700)
    assert (health.documents.num_documents, health.older.num_documents, health.recent.num_documents) == (700, 500, 200)
    assert health.older.num_wanted + health.recent.num_wanted == health.documents.num_wanted == 600
    assert health.recent.num_wanted > 60
    assert health.recent.correlation > 0.9
    assert "recent (28.6%): 200, rank correlation" in str(health)


@pytest.mark.parametrize("candidates", ["hnsw", "exact"])
def test_documents_of_another_kind_are_noticed(changing, candidates):
    make, draw = changing
    index = make(candidates=candidates)
    old = draw(0, 30, 8)
    before = index.health(old)
    index.add(draw(1, 150))
    queries = old + draw(1, 30, 8)
    health = index.health(queries)
    assert health.recent.recall < health.older.recall - 0.3
    assert health.recent.correlation < before.documents.correlation - 0.1
    assert health.documents.recall < before.documents.recall - 0.1
    lower = health.older.recall - health.recent.recall
    assert f"recall on recent documents is {lower:.2f} lower: refit" in health.verdict
    assert "recall is 0." in health.verdict
    index.refit(draw(0, 150, 8) + draw(1, 150, 8))
    assert index.health(queries).documents.recall > health.documents.recall + 0.1
    assert index.health(queries).recent.num_documents == 0


def test_queries_of_the_past_know_little_of_other_documents(changing):
    """They want none of them, so that only the ranks among them can tell."""
    make, draw = changing
    index = make()
    index.add(draw(1, 150))
    health = index.health(draw(0, 60, 8))
    assert health.recent.num_wanted < 30
    assert health.recent.correlation < health.older.correlation - 0.1
    (problem,) = health.problems
    assert problem.startswith("rank correlation on recent documents is 0.")
    assert "top 10: refit" in problem


def test_its_own_sample(changing):
    make, _ = changing
    index = make()
    health = index.health(num_queries=20)
    assert (health.queries, health.num_queries) == ("own sample", 20)
    assert health.documents.correlation > 0.9
    assert "20 queries made of tokens the map was learned from: optimistic" in str(health)
    assert index.health(num_queries=20) == health
    assert index.health(num_queries=20, num_threads=1) == health
    assert index.health(num_queries=20, seed=1) != health
    sample = index.encoder.targets.sample_tokens
    batch = own_queries(sample, 10_000, np.random.default_rng(0))
    assert len(batch) == len(sample) // 16
    assert set(np.diff(batch.offsets)) == {16}
    assert len(np.unique(batch.tokens, axis=0)) == len(batch.tokens)  # each token once
    few = own_queries(sample[:5], 3, np.random.default_rng(0))
    assert few.offsets.tolist() == [0, 5]


def test_given_queries_are_sampled(changing):
    make, draw = changing
    index, queries = make(), draw(0, 30, 8)
    assert index.health(queries, num_queries=7).num_queries == 7
    assert index.health(queries, num_queries=7) == index.health(queries, num_queries=7)
    assert index.health(queries[0]).num_queries == 1  # one query, as evaluate takes it
    assert index.health(np.stack(queries)).num_queries == 30


@pytest.mark.parametrize("candidates", ["hnsw", "exact"])
def test_deleted_documents_never_count(changing, candidates):
    make, draw = changing
    index = make(candidates=candidates)
    index.add(draw(1, 60))
    queries = draw(0, 20, 8) + draw(1, 20, 8)
    index.delete([*range(100), *range(500, 530)])
    health = index.health(queries)
    assert (health.older.num_documents, health.recent.num_documents) == (400, 30)
    index.delete(list(range(530, 560)))
    health = index.health(queries)
    assert (health.documents.num_documents, health.recent.num_documents, health.share_recent) == (400, 0, 0.0)
    index.delete(list(range(103, 500)))
    health = index.health(queries, k=10)
    assert health.documents.num_documents == 3
    assert health.documents.num_wanted == 3 * len(queries)
    index.delete([100, 101])
    assert index.health(queries).documents.correlation is None  # one document has no order
    index.delete([102])
    with pytest.raises(ValueError, match="health needs at least one document"):
        index.health(queries)


def test_only_recent_documents_are_left(changing):
    make, draw = changing
    index = make()
    index.add(draw(0, 30))
    index.delete(list(range(500)))
    health = index.health(draw(0, 20, 8))
    assert health.share_recent == 1.0
    assert health.older.recall is None
    assert health.recent == health.documents
    assert health.verdict == "the map fits"


@pytest.mark.parametrize("candidates", ["hnsw", "exact"])
def test_a_document_beyond_the_radius(changing, candidates):
    """One that is about everything, a little stronger than others: many queries want it, and find it."""
    make, draw = changing
    index = make(candidates=candidates)
    assert index.health(num_queries=5).documents.num_beyond_radius == 0
    index.add([1.1 * np.concatenate(draw(0, 60)), *draw(0, 9)])
    health = index.health(draw(0, 60, 8))
    assert (health.documents.num_beyond_radius, health.older.num_beyond_radius, health.recent.num_beyond_radius) == (1, 0, 1)
    assert "1 beyond the radius" in str(health)
    assert health.recent.num_wanted >= 60
    assert health.recent.recall > 0.9
    assert health.verdict == "the map fits"
    index.refit(draw(0, 300, 8))
    assert index.health(draw(0, 60, 8)).verdict == "the map fits"


def test_after_load(changing, tmp_path):
    make, draw = changing
    index = make()
    index.add(draw(1, 50))
    index.delete([3, 520])
    queries = draw(1, 20, 8)
    index.save(tmp_path / "i")
    loaded = LemurIndex.load(tmp_path / "i")
    assert loaded.health(queries) == index.health(queries)
    assert loaded.health() == index.health()
    loaded.add(draw(1, 10))
    assert loaded.health(queries).recent.num_documents == 59
    loaded.fit(queries=draw(0, 100, 8))  # learned anew: nothing is recent
    assert loaded.health(queries).recent.num_documents == 0


def test_an_older_index(changing, tmp_path):
    """It does not say how many rows it had when it learned: all that it holds count as older, all that comes as recent."""
    make, draw = changing
    index = make()
    index.add(draw(1, 50))
    index.save(tmp_path / "i")
    manifest = json.loads((tmp_path / "i/manifest.json").read_text())
    assert manifest["training"].pop("num_rows") == 500
    del manifest["manifest_sha256"]
    (tmp_path / "i/manifest.json").write_text(json.dumps({**manifest, "manifest_sha256": storage._digest(manifest)}))
    loaded = LemurIndex.load(tmp_path / "i")
    assert loaded.health().older.num_documents == 550
    loaded.add(draw(1, 5))
    loaded.save(tmp_path / "i")
    assert LemurIndex.load(tmp_path / "i").health().recent.num_documents == 5


def test_before_fit(make_matrices):
    for index in (LemurIndex(), LemurIndex().add(make_matrices(5))):
        with pytest.raises(NotFitted, match="no learned map yet: call fit"):
            index.health(make_matrices(5))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": []}, ValueError, "health needs at least one query, got none; queries=None takes"),
        ({"queries": [np.ones((2, 8), np.float32)]}, ValueError, "query 0 has dim 8, index has dim 16"),
        ({"queries": "queries"}, TypeError, "must be token embeddings, got str"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"num_documents": 1}, ValueError, "num_documents must be at least 2, got 1"),
        ({"num_queries": 0}, ValueError, "num_queries must be at least 1, got 0"),
        ({"num_candidates": 0}, ValueError, "num_candidates must be at least 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_bad_arguments(small_index, arguments, error, message):
    index, _, _ = small_index()
    with pytest.raises(error, match=message):
        index.health(**arguments)


def fit_of(recall=0.95, interval=(0.94, 0.96), correlation=0.95, wanted=1000, documents=500, beyond=0):
    return MapFit(documents, correlation, wanted, recall, interval, beyond)


@pytest.mark.parametrize(
    ("documents", "recent", "problems"),
    [
        (fit_of(), fit_of(0.9, (0.85, 0.94)), []),  # not lower by more than 0.05
        (fit_of(), fit_of(0.83, (0.8, 0.86)), ["recall on recent documents is 0.12 lower: refit"]),
        (fit_of(), fit_of(0.83, (0.6, 0.945), wanted=8), []),  # too few to tell
        (fit_of(), fit_of(correlation=0.5), []),  # recall tells that it does no harm
        (fit_of(), fit_of(correlation=0.5, wanted=29), ["rank correlation on recent documents is 0.45 lower, and few are in"]),
        (fit_of(), fit_of(None, None, None, 0), []),
        (fit_of(beyond=26), fit_of(beyond=26), ["documents beyond the radius, which every search scans: 26 of 500: refit"]),
        (fit_of(0.88, (0.85, 0.91)), fit_of(), []),
        (fit_of(0.88, (0.86, 0.89)), fit_of(), ["recall is 0.88: raise num_candidates or ef_search, or refit with queries"]),
    ],
)
def test_thresholds(documents, recent, problems):
    health = Health(documents, fit_of(), recent, "given", 100, 10, "hnsw", 100, 200)
    assert len(health.problems) == len(problems)
    assert all(found.startswith(expected) for found, expected in zip(health.problems, problems, strict=True))
    assert (health.verdict == "the map fits") == (not problems)


def test_progress(small_index, monkeypatch, capsys):
    index, _, queries = small_index()
    index.health(queries, progress=True)
    assert "queries" in capsys.readouterr().err
    index.health(queries, progress=False)
    assert not capsys.readouterr().err


def tokens_of(random, centres, low, high):
    count = int(random.integers(low, high))
    rows = centres[random.integers(0, len(centres), count)] + 0.5 * random.normal(size=(count, 32)) / np.sqrt(32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_documents_of_a_new_subject_are_told_of(tmp_path, caplog):
    random = np.random.default_rng(3)
    old, new = random.normal(size=(40, 32)), random.normal(size=(10, 32))
    old, new = (centres / np.linalg.norm(centres, axis=1, keepdims=True) for centres in (old, new))
    index = LemurIndex.open(tmp_path / "index", num_features=64, epochs=0, rank=31)
    queries = [tokens_of(random, old, 3, 8) for _ in range(200)]
    index.fit([tokens_of(random, old, 5, 20) for _ in range(600)], queries)
    index.add([tokens_of(random, old, 5, 20) for _ in range(100)])
    assert not caplog.records
    assert (index.stats().num_recent, index.stats().num_unfamiliar < 10) == (100, True)
    assert not any("unlike" in problem for problem in index.health().problems)
    known = index.stats().num_unfamiliar
    for number in range(30):  # one by one: told of each time that their number doubles
        index.add([tokens_of(random, new, 5, 20)], ids=[1000 + number])
    assert index.stats().num_unfamiliar == known + 30
    told = [int(record.message.split()[0]) for record in caplog.records]
    assert told in ([16], [16, 32])
    assert any("unlike those the map learned from" in problem for problem in index.health().problems)
    assert "unlike what it knows" in str(index.stats())
    index.close()
    again = LemurIndex.open(tmp_path / "index")
    assert again.stats().num_unfamiliar == known + 30
    again.delete(list(range(50)))
    again.compact()
    assert again.stats().num_unfamiliar == known + 30
    again.refit(queries + [tokens_of(random, new, 3, 8) for _ in range(50)])
    assert again.stats().num_unfamiliar == 0
    again.close()


def test_an_older_map_tells_of_the_length_of_query_tokens():
    """The map of format 4 was learned from tokens of other lengths than 1, and goes by them for ever."""
    index = LemurIndex.load(Path(__file__).parent.parent / "formats" / "format_4" / "index")
    queries = np.load(Path(__file__).parent.parent / "formats" / "format_4" / "expected.npz")["queries"]
    assert not any("as long" in problem for problem in index.health(queries).problems)
    assert any("2 times as long" in problem for problem in index.health(2 * queries).problems)
    index.refit(list(queries))
    assert index.health(2 * queries).relative_length == 1
