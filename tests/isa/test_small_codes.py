"""Small codes: decoded by every instruction set to the same rows, and scored as NumPy scores what they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from lemur_ann import _core

# Whole bytes, and components that do not fill the last ones; a stride beyond that of dim.
DIMS = [1, 8, 24, 96, 100, 128, 130, 257, 384]
# Of a normal distribution, the largest 127.
LEVELS = {1: [1], 2: [38, 127], 3: [14, 45, 79, 127], 4: [6, 18, 31, 44, 58, 75, 96, 127]}


def unit(rng, count, dim):
    rows = (rng.normal(size=(count, dim)) + 0.5).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def codec_of(rng, dim, bits, num_centroids=40):
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0].astype(np.float32)
    centroids = unit(rng, num_centroids, dim)
    step = float(np.abs(centroids @ rotation.T).max() * 1.3 / 127)
    return _core.Codec(centroids, rotation, rotation, step, bits), centroids, rotation, step


def packed(codes, bits, dim):
    """Whole numbers of so many bits."""
    parts = [(codes >> (part * bits)) & (2**bits - 1) for part in range(8 // bits)]
    assert len(parts) * codes.shape[1] >= dim
    return np.concatenate(parts, axis=1)[:, :dim]


def decoded_by_numpy(codes, ids, scales, centroids, rotation, step, bits):
    """What codes stand for, by their definition, in whole numbers and then float64."""
    dim = rotation.shape[0]
    half = np.array(LEVELS[bits]) if bits > 1 else np.array([127])
    levels = 8 * np.concatenate([-half[::-1], half])
    if bits == 3:  # codes of two bits, and after them those of the third
        low = _core.small_bytes(dim, 2)
        chosen = packed(codes[:, :low], 2, dim) + 4 * packed(codes[:, low:], 1, dim)
    else:
        chosen = packed(codes, bits, dim)
    steps = np.clip((levels[chosen].astype(np.int64) * scales[:, None].astype(np.int64) + 2**14) >> 15, -128, 127)
    turned = np.floor((centroids @ rotation.T).astype(np.float32) / np.float32(step) + np.float32(0.5)).clip(-127, 127)
    rows = np.clip(turned[ids].astype(np.int64) + steps, -128, 127)
    return rows.astype(np.float64) * np.float64(np.float32(step)) @ rotation.astype(np.float64)


@pytest.fixture(params=[1, 2, 3, 4])
def bits(request):
    return request.param


@pytest.mark.parametrize("dim", DIMS)
def test_codes_stand_for_what_they_are_defined_as(rng, dim, bits):
    codec, centroids, rotation, step = codec_of(rng, dim, bits)
    tokens = unit(rng, 300, dim)
    ids = _core.Centroids(centroids).nearest(tokens, 2)
    codes, scales, lengths = codec.encode(tokens, ids, 2)
    assert codes.shape == (300, codec.num_bytes)
    assert codec.num_bytes % 16 == 0
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)
    found = codec.decode(codes, ids, scales, None)
    # a turned centroid near a half may be rounded to either side by other sums than the core's
    expected = decoded_by_numpy(codes, ids, scales, centroids, rotation, step, bits)
    assert np.median(np.abs(found - expected)) < 1e-6
    assert np.abs(found - expected).max() < 3 * step


def test_any_map_of_tokens_that_queries_match(rng, bits):
    """Products stay what they are where tokens go through a map, and queries through its inverse transposed."""
    _, centroids, rotation, _ = codec_of(rng, 48, bits)
    token_map = (rotation * rng.uniform(0.3, 3, size=48)).astype(np.float32)
    query_map = np.ascontiguousarray(np.linalg.inv(token_map.astype(np.float64)).T, np.float32)
    tokens, offsets = unit(rng, 400, 48), np.arange(0, 401, 20)
    step = float(max(np.abs(tokens @ token_map.T).max(), np.abs(centroids @ token_map.T).max()) / 127)
    codec = _core.Codec(centroids, token_map, query_map, step, bits)
    ids = _core.Centroids(centroids).nearest(tokens, 1)
    codes, scales, _ = codec.encode(tokens, ids, 1)
    decoded = codec.decode(codes, ids, scales, None)
    left, error = (tokens - centroids[ids]) @ token_map.T, (decoded - tokens) @ token_map.T  # where codes have their levels
    assert (error**2).sum() < 0.5 * (left**2).sum()
    small = _core.SmallDocuments(codec, [(codes, ids, scales, None, offsets)])
    queries, ends = unit(rng, 32, 48), np.array([0, 16, 32])
    found = _core.scores(queries, ends, _core.Documents([], [], small), 1)
    np.testing.assert_allclose(found, _core.scores(queries, ends, _core.Documents([(decoded, offsets)]), 1), rtol=1e-4)


def test_errors_are_those_of_the_levels(rng, bits):
    codec, centroids, _, _ = codec_of(rng, 128, bits, num_centroids=200)
    tokens = unit(rng, 2000, 128)
    ids = _core.Centroids(centroids).nearest(tokens, 2)
    codes, scales, _ = codec.encode(tokens, ids, 2)
    left = tokens - centroids[ids]
    error = codec.decode(codes, ids, scales, None) - tokens
    share = np.sqrt((error**2).sum() / (left**2).sum())
    # of a normal distribution .603, .343, .186 and .098 (J. Max, 1960)
    assert share < {1: 0.62, 2: 0.36, 3: 0.2, 4: 0.11}[bits]


@pytest.mark.parametrize("dim", DIMS)
def test_scores_are_those_of_the_decoded_tokens(rng, dim, bits):
    codec, centroids, _, _ = codec_of(rng, dim, bits)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 30, size=40))]).astype(np.int64)
    lengths = rng.uniform(0.2, 3, size=offsets[-1]).astype(np.float32)
    tokens = unit(rng, int(offsets[-1]), dim) * lengths[:, None]
    ids = _core.Centroids(centroids).nearest(tokens, 1)
    codes, scales, found = codec.encode(tokens, ids, 1)
    np.testing.assert_allclose(found, lengths, rtol=1e-5)
    small = _core.SmallDocuments(codec, [(codes, ids, scales, lengths, offsets)])
    stands_for = codec.decode(codes, ids, scales, lengths)
    queries, ends = unit(rng, 3 * 17, dim), np.array([0, 17, 34, 51])
    alone, whole = _core.Documents([], [], small), _core.Documents([(stands_for, offsets)])
    scores = _core.scores(queries, ends, alone, 2)
    np.testing.assert_allclose(scores, _core.scores(queries, ends, whole, 2), rtol=1e-4, atol=1e-4)
    candidates = np.tile(np.arange(40), 3)
    own = _core.candidate_scores(queries, ends, alone, candidates, np.array([0, 40, 80, 120]), 2)
    np.testing.assert_array_equal(own.reshape(3, 40), scores)
    maxima = _core.token_maxima(queries, alone, 2, "float32", True)
    np.testing.assert_allclose(maxima, _core.token_maxima(queries, whole, 2, "float32", True), atol=1e-4)


@pytest.mark.parametrize("keeps_tokens", [True, False])
@pytest.mark.parametrize("dim", [24, 100, 128, 130])
def test_a_rerank_finds_the_best_exact_scores(rng, dim, bits, keeps_tokens):
    codec, centroids, _, _ = codec_of(rng, dim, bits)
    offsets = np.arange(0, 200 * 20 + 1, 20)
    tokens = unit(rng, 200 * 20, dim)
    ids = _core.Centroids(centroids).nearest(tokens, 1)
    codes, scales, _ = codec.encode(tokens, ids, 1)
    cut = 60 * 20  # two parts
    parts = [
        (codes[:cut], ids[:cut], scales[:cut], None, offsets[:61]),
        (codes[cut:], ids[cut:], scales[cut:], None, offsets[60:] - cut),
    ]
    small = _core.SmallDocuments(codec, parts)
    documents = _core.Documents([(tokens, offsets)] if keeps_tokens else [], [], small)
    queries, ends = unit(rng, 2 * 32, dim), np.array([0, 32, 64])
    scores = _core.scores(queries, ends, documents, 1)
    candidates = np.sort([rng.choice(200, 150, replace=False) for _ in range(2)])
    for threads in (1, 2):
        found, own, counts = _core.rerank(
            queries, ends, documents, candidates.reshape(-1), np.array([0, 150, 300]), 10, threads
        )
        for i in range(2):
            best = _core.top_k(scores[i][candidates[i]], 10)
            assert counts[i] == 10
            np.testing.assert_array_equal(found[i], candidates[i][best])
            np.testing.assert_array_equal(own[i], scores[i][found[i]])


def test_the_same_bits_everywhere(rng, bits):
    """On all instruction sets of this machine: whole numbers are the same, whatever the order of sums."""
    codec, centroids, _, _ = codec_of(rng, 128, bits)
    tokens = unit(rng, 777, 128)
    isas, before = _core.supported_isas(), _core.active_isa()
    made, decoded = {}, {}
    try:
        for isa in isas:
            _core.force_isa(isa)
            ids = _core.Centroids(centroids).nearest(tokens, 1)
            made[isa] = ids, *codec.encode(tokens, ids, 1)
        ids, codes, scales, _ = made[isas[0]]
        for isa in isas:
            _core.force_isa(isa)
            decoded[isa] = codec.decode(codes, ids, scales, None)
    finally:
        _core.force_isa(before)
    for isa in isas:
        np.testing.assert_allclose(decoded[isa], decoded[isas[0]], atol=1e-6)
        if isa != "scalar":  # which rounds products and sums apart
            np.testing.assert_array_equal(decoded[isa], decoded[isas[0]])
            for one, other in zip(made[isa], made[isas[0]], strict=True):
                np.testing.assert_array_equal(one, other)


def test_it_is_the_same_alone_or_among_others(rng, bits):
    codec, centroids, _, _ = codec_of(rng, 96, bits)
    tokens = unit(rng, 600, 96)
    ids = _core.Centroids(centroids).nearest(tokens, 1)
    whole = codec.encode(tokens, ids, 2)
    for begin, end in ((0, 1), (1, 300), (300, 600)):
        for array, part in zip(whole, codec.encode(tokens[begin:end], ids[begin:end], 1), strict=True):
            np.testing.assert_array_equal(array[begin:end], part)
    halves = codec.encode(tokens.astype(np.float16), ids, 1)
    again = codec.encode(tokens.astype(np.float16).astype(np.float32), ids, 1)
    for one, other in zip(halves, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_zeros_and_extremes(rng, bits):
    codec, *_ = codec_of(rng, 24, bits)
    tokens = np.zeros((4, 24), np.float32)
    tokens[1], tokens[2], tokens[3] = 1e-20, 1e18, np.nan
    codes, scales, lengths = codec.encode(tokens, np.zeros(4, np.uint16), 1)
    assert lengths[0] == 0
    assert (scales >= 0).all()
    decoded = codec.decode(codes, np.zeros(4, np.uint16), scales, np.array([0, 0, 1, 1], np.float32))
    assert np.isfinite(decoded).all()
    assert (decoded[0] == 0).all()


def test_what_does_not_fit_is_refused(rng):
    codec, centroids, rotation, step = codec_of(rng, 24, 4)
    tokens = unit(rng, 10, 24)
    ids = np.zeros(10, np.uint16)
    codes, scales, _ = codec.encode(tokens, ids, 1)
    offsets = np.array([0, 5, 10])
    for bad in (0, 5, 8, -1):
        with pytest.raises(ValueError, match="1 to 4 bits"):
            _core.Codec(centroids, rotation, rotation, step, bad)
    for unit_of_codes in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="unit"):
            _core.Codec(centroids, rotation, rotation, unit_of_codes, 4)
    with pytest.raises(ValueError, match=r"\(dim, dim\)"):
        _core.Codec(centroids, rotation, rotation[:12], step, 4)
    with pytest.raises(ValueError, match="not that of a centroid"):
        codec.encode(tokens, np.full(10, 40, np.uint16), 1)
    with pytest.raises(ValueError, match="a centroid for each token"):
        codec.encode(tokens, ids[:5], 1)
    for part in (
        (codes[:9], ids, scales, None, offsets),
        (codes, ids[:9], scales, None, offsets),
        (codes, ids, scales[:9], None, offsets),
        (codes, ids, scales, np.ones(9, np.float32), offsets),
        (np.ascontiguousarray(codes[:, :8]), ids, scales, None, offsets),
        (codes, ids, scales, None, np.array([0, 11])),
        (codes, ids, scales, None, np.array([5, 0])),
    ):
        with pytest.raises(ValueError, match=r"codes|offsets"):
            _core.SmallDocuments(codec, [part])
    small = _core.SmallDocuments(codec, [(codes, np.full(10, 40, np.uint16), scales, None, offsets)])
    with pytest.raises(ValueError, match="not that of a centroid"):
        _core.scores(tokens[:3], np.array([0, 3]), _core.Documents([], [], small), 1)
    with pytest.raises(ValueError, match="same documents"):
        _core.Documents([(tokens, np.array([0, 10]))], [], small)
