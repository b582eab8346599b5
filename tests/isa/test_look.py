"""The second look on every instruction set: the same bits, and what NumPy says in float64."""

from __future__ import annotations

import numpy as np
import pytest

from lemur_ann import _core

PLACES = 5  # the first differ little


def unit(rng, *shape):
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def made(rng, num_centroids, dim, num_documents, cuts=()):
    """Centroids, the ids of documents, their offsets, and both for searches, in parts that end at ``cuts``."""
    rows = unit(rng, num_centroids, dim)
    centroids = _core.Centroids(rows)
    lengths = rng.integers(0, 40, num_documents)
    lengths[::17] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # as tokens of texts are: a few centroids are common, most are rare
    ids = np.minimum(rng.zipf(1.3, offsets[-1]) - 1, num_centroids - 1).astype(np.uint16)
    parts = []
    for begin, end in zip([0, *cuts], [*cuts, num_documents], strict=True):
        own = ids[offsets[begin] : offsets[end]].copy()
        parts.append(_core.CentroidIds(own, offsets[begin : end + 1] - offsets[begin], num_centroids))
    return rows, ids, offsets, _core.SecondLook(centroids, parts)


@pytest.mark.parametrize("dim", [1, 16, 63, 128, 300])
@pytest.mark.parametrize("num_centroids", [1, 31, 32, 33, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nearest_centroid_by_codes(isa, dim, num_centroids, dtype, rng):
    centroids = unit(rng, num_centroids, dim)
    tokens = unit(rng, 513, dim).astype(dtype)
    tokens[3] = 0
    found = _core.Centroids(centroids).nearest(tokens, 2)
    codes, scales = _core.int8_codes(centroids, 1)
    own, _ = _core.int8_codes(np.ascontiguousarray(tokens, np.float32), 1)
    products = (own.astype(np.int64) @ codes.astype(np.int64).T).astype(np.float32) * scales
    np.testing.assert_array_equal(found, products.argmax(axis=1))


def known(rows, ids, offsets, query, shortlist, num_estimated):
    """What is known of a shortlist, in float64; see cpp/include/lemur/look.hpp."""
    codes, scales = _core.int8_codes(rows, 1)
    own, own_scales = _core.int8_codes(query, 1)
    products = codes.astype(np.float64) @ own.astype(np.float64).T * scales[:, None]
    table = np.floor(np.clip(products * own_scales * 255 / np.linalg.norm(query, axis=1).max(), 0, 255) + 0.5)
    lengths = np.array([offsets[row + 1] - offsets[row] for row in shortlist])
    maxima = np.array([table[ids[offsets[r] : offsets[r + 1]]].max(axis=0, initial=0) for r in shortlist])
    usual = maxima[:500]
    z = np.floor((maxima - usual.mean(0)) / (usual.std(0) + 4) * 64) / 64
    columns = [maxima.sum(1), z.sum(1), np.sqrt((np.maximum(z, 0) ** 2).sum(1)), np.log2(np.maximum(lengths, 1))]
    out = np.array([(c - c[:500].mean()) / c[:500].std() for c in columns]).T
    places = np.minimum(np.arange(len(shortlist)), num_estimated) + 1 + PLACES
    return np.concatenate([np.log2(places)[:, None], out], axis=1)


@pytest.mark.parametrize("num_tokens", [1, 5, 16, 17, 32, 40, 70])
def test_what_is_known(isa, num_tokens, rng):
    rows, ids, offsets, look = made(rng, 300, 64, 900, cuts=(200, 201, 650))
    queries = unit(rng, 2 * num_tokens, 64) * rng.uniform(0.5, 2, (2 * num_tokens, 1)).astype(np.float32)
    shortlists = [rng.permutation(900)[:700], rng.permutation(900)[:40]]
    bounds = np.array([0, 700, 740])
    found = look.features(queries, np.array([0, num_tokens, 2 * num_tokens]), np.concatenate(shortlists), bounds, 30, 2)
    for i, shortlist in enumerate(shortlists):
        own = queries[i * num_tokens : (i + 1) * num_tokens]
        expected = known(rows, ids, offsets, own, shortlist, 30)
        got = found[bounds[i] : bounds[i + 1]]
        assert np.abs(got[:, 0] - expected[:, 0]).max() < 0.1  # a line between powers of two stands for the logarithm
        for column in range(1, 5):
            # bytes and units of 1/64 are rounded on the way
            assert np.abs(got[:, column] - expected[:, column]).max() < 0.25
            assert np.corrcoef(got[:, column], expected[:, column])[0, 1] > 0.995


def test_same_bits_as_scalar_code(rng):
    _, _, _, look = made(rng, 500, 96, 2000)
    queries = unit(rng, 100, 96)
    offsets, rows = np.array([0, 32, 33, 100]), rng.integers(0, 2000, 3000)
    bounds, weights = np.array([0, 1000, 1010, 3000]), [rng.normal(size=s).astype(np.float32) for s in ((8, 5), 8, 8)]
    before = _core.active_isa()
    results = {}
    try:
        for name in _core.supported_isas():
            _core.force_isa(name)
            features = look.features(queries, offsets, rows, bounds, 500, 1)
            best = look.best(queries, offsets, rows, bounds, 100, None, tuple(weights), 50, 2)
            results[name] = [features, *best, *look.with_rare(queries, offsets, rows, bounds, 60, 1)]
    finally:
        _core.force_isa(before)
    for name, arrays in results.items():
        for array, expected in zip(arrays, results["scalar"], strict=True):
            np.testing.assert_array_equal(array, expected, err_msg=name)


def test_documents_of_rare_centroids(isa, rng):
    rows, ids, offsets, look = made(rng, 400, 32, 3000, cuts=(1000, 1100))
    holders = [set() for _ in rows]
    for i in range(3000):
        for centroid in ids[offsets[i] : offsets[i + 1]].tolist():
            holders[centroid].add(i)
    query, shortlist, most = unit(rng, 30, 32), rng.permutation(3000)[:200], 90
    codes, scales = _core.int8_codes(rows, 1)
    own, _ = _core.int8_codes(query, 1)
    nearest = {int((codes.astype(np.int64) @ o.astype(np.int64) * scales).argmax()) for o in own}
    left, expected = most, []
    for count, centroid in sorted((len(holders[c]), c) for c in nearest if holders[c]):
        if count > left:
            break
        left -= count
        expected += [row for row in sorted(holders[centroid]) if row not in {*shortlist.tolist(), *expected}]
    found, bounds = look.with_rare(query, np.array([0, 30]), shortlist, np.array([0, 200]), most, 1)
    assert bounds.tolist() == [0, 200 + len(expected)]
    assert expected
    np.testing.assert_array_equal(found, [*shortlist.tolist(), *expected])


def test_best_of_a_shortlist(isa, rng):
    _, _, _, look = made(rng, 200, 32, 500)
    query, shortlist = unit(rng, 20, 32), rng.permutation(500)[:300]
    weights = rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=8).astype(np.float32), np.ones(8, np.float32)
    where = query, np.array([0, 20])
    excluded = rng.random(500) < 0.5
    rows, _ = look.with_rare(*where, shortlist, np.array([0, 300]), 100, 1)
    rows = np.concatenate([shortlist, [row for row in rows[300:] if not excluded[row]]])
    values = look.features(*where, rows, np.array([0, len(rows)]), 300, 1)
    scores = np.maximum(values @ weights[0].T + weights[1], 0) @ weights[2]
    best, counts = look.best(*where, shortlist, np.array([0, 300]), 100, excluded, weights, 40, 1)
    assert counts.tolist() == [40]
    place = {row: i for i, row in enumerate(rows.tolist())}
    np.testing.assert_allclose(scores[[place[row] for row in best[0].tolist()]], np.sort(scores)[::-1][:40], rtol=1e-4)


def test_what_does_not_fit_is_refused(rng):
    _, ids, offsets, look = made(rng, 100, 16, 50)
    query, weights = unit(rng, 4, 16), tuple(np.zeros(s, np.float32) for s in ((2, 5), 2, 2))
    where = query, np.array([0, 4])
    with pytest.raises(ValueError, match="not that of a centroid"):
        _core.CentroidIds(np.full(3, 100, np.uint16), np.array([0, 3]), 100)
    with pytest.raises(ValueError, match="do not ascend"):
        _core.CentroidIds(ids, np.array([0, 5, 3]), 100)
    with pytest.raises(ValueError, match="do not ascend"):
        _core.CentroidIds(ids, np.array([0, len(ids) + 1]), 100)
    with pytest.raises(ValueError, match="other centroids"):
        _core.SecondLook(_core.Centroids(unit(rng, 99, 16)), [_core.CentroidIds(ids, offsets, 100)])
    with pytest.raises(IndexError):
        look.best(*where, np.array([50]), np.array([0, 1]), 0, None, weights, 1, 1)
    with pytest.raises(ValueError, match="bounds must ascend"):
        look.best(*where, np.array([1]), np.array([0, 2]), 0, None, weights, 1, 1)
    with pytest.raises(ValueError, match="weights"):
        look.best(*where, np.array([1]), np.array([0, 1]), 0, None, (weights[0][:1], *weights[1:]), 1, 1)
    with pytest.raises(ValueError, match="excluded"):
        look.best(*where, np.array([1]), np.array([0, 1]), 0, np.zeros(49, bool), weights, 1, 1)
    with pytest.raises(ValueError, match="dim"):
        look.best(unit(rng, 4, 17), np.array([0, 4]), np.array([1]), np.array([0, 1]), 0, None, weights, 1, 1)
    with pytest.raises(ValueError, match="expected 1 to 65536"):
        _core.Centroids(np.empty((0, 4), np.float32))


def test_a_walk_gives_what_it_looked_at(isa, rng):
    """With a narrow beam the rows beyond it are of those that the walk passed, the best of them first."""
    vectors = rng.normal(size=(3000, 16)).astype(np.float32)
    codes, scales = _core.int8_codes(vectors, 1)
    links = np.argsort(-(vectors @ vectors.T), axis=1)[:, 1:17].astype(np.int32)
    none = codes[:0], scales[:0]
    graph = _core.CodedGraph(16, codes, scales, links, np.arange(8, dtype=np.int32), *none)
    query = rng.normal(size=(1, 16)).astype(np.float32)
    own, _ = _core.int8_codes(query, 1)
    products = (codes.astype(np.int64) @ own[0].astype(np.int64)).astype(np.float32) * scales
    few, many = (graph.search(query, None, 0, count, 20, 1)[0] for count in (20, 150))
    np.testing.assert_array_equal(many[:20], few)
    assert len(set(many.tolist())) == 150
    assert np.all(np.diff(products[many]) <= 0)
    excluded = rng.random(3000) < 0.3
    (found,) = graph.search(query, excluded, int(excluded.sum()), 150, 20, 1)
    assert len(set(found.tolist())) == 150
    assert not excluded[found].any()
    assert np.all(np.diff(products[found]) <= 0)
    (everything,) = graph.search(query, None, 0, 3000, 20, 1)
    np.testing.assert_array_equal(everything, np.argsort(-products, kind="stable"))
