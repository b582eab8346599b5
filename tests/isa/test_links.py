"""The links that searches walk, against a slow choice of the same in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from lemur_ann import _core


def chosen(node, candidates, distances, degree, alpha):
    """Links of a node: nearest first, those that no chosen neighbour is nearer to; then those that none is by alpha."""
    order = sorted(set(candidates) - {node}, key=lambda other: (distances[node, other], other))
    links = []
    for factor in (1.0, alpha):
        for other in order:
            if len(links) == degree:
                break
            if other not in links and all(
                distances[node, other] <= np.float32(factor) * distances[own, other]
                for own in links
                if is_before(own, other, order)
            ):
                links.append(other)
    return links


def is_before(own, other, order):
    return order.index(own) < order.index(other)


def expected_links(codes, scales, degree, alpha):
    vectors = codes.astype(np.float64) * scales[:, None].astype(np.float64)
    distances = ((vectors[:, None] - vectors[None]) ** 2).sum(2)
    size = len(codes)
    first = [chosen(node, range(size), distances, degree, alpha) for node in range(size)]
    links = []
    for node in range(size):
        others = [other for other in range(size) if node in first[other] and other not in first[node]]
        own = first[node] + others
        links.append(chosen(node, own, distances, degree, alpha) if others and len(own) > degree else own)
    return [set(own) for own in links]


def ring(size):
    """A graph that leads everywhere."""
    return np.stack([(np.arange(size) + 1) % size, (np.arange(size) - 1) % size], axis=1).astype(np.int32)


def as_sets(links):
    return [set(own[own >= 0].tolist()) for own in links]


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_links_are_those_of_the_slow_choice(isa, rng, alpha):
    vectors = rng.normal(size=(150, 20)).astype(np.float32)
    codes, scales = _core.int8_codes(vectors, 1)
    entries = np.arange(5, dtype=np.int32)
    links = _core.better_links(20, codes, scales, ring(150), entries, 12, 150, alpha, 2)
    assert links.shape == (150, 12)
    expected = expected_links(codes[:, :20], scales, 12, alpha)
    differing = sum(own != other for own, other in zip(as_sets(links), expected, strict=True))
    assert differing <= 2  # where float32 and float64 decide a near tie differently


def test_the_same_on_any_number_of_threads(rng):
    codes, scales = _core.int8_codes(rng.normal(size=(1000, 16)).astype(np.float32), 1)
    given = 16, codes, scales, ring(1000), np.arange(30, dtype=np.int32), 16, 40, 1.2
    np.testing.assert_array_equal(_core.better_links(*given, 1), _core.better_links(*given, 3))
    given = 16, codes, scales, ring(300), *given[4:]  # the others join
    np.testing.assert_array_equal(_core.better_links(*given, 1), _core.better_links(*given, 3))


def test_those_that_join_have_the_links_of_the_slow_choice(isa, rng):
    """Where all others are candidates, so that it does not matter that some were there before."""
    codes, scales = _core.int8_codes(rng.normal(size=(150, 20)).astype(np.float32), 1)
    entries = np.arange(5, dtype=np.int32)
    links = _core.better_links(20, codes, scales, ring(149), entries, 12, 150, 1.2, 2)
    vectors = codes[:, :20].astype(np.float64) * scales[:, None].astype(np.float64)
    distances = ((vectors[:, None] - vectors[None]) ** 2).sum(2)
    assert set(links[149].tolist()) - {-1} == set(chosen(149, range(150), distances, 12, 1.2))
    assert all(149 in links[other] for other in links[149][links[149] >= 0])


def test_earlier_nodes_keep_their_links(rng):
    codes, scales = _core.int8_codes(rng.normal(size=(600, 16)).astype(np.float32), 1)
    entries = np.arange(20, dtype=np.int32)
    before = _core.better_links(16, codes[:500], scales[:500], ring(500), entries, 16, 40, 1.2, 1)
    after = _core.better_links(16, codes, scales, before, entries, 16, 40, 1.2, 1)
    back = as_sets(after)
    for node in range(500):
        old = set(before[node][before[node] >= 0].tolist())
        new = back[node] & set(range(500, 600))
        assert back[node] <= old | new  # less than that where newcomers had no room
        assert len(back[node]) <= 16
    assert sum(bool(own & set(range(500, 600))) for own in back[:500]) > 50  # they are linked back to
    assert all(back[500:])


def test_no_node_links_to_itself_or_twice(rng):
    vectors = np.repeat(rng.normal(size=(50, 16)).astype(np.float32), 4, axis=0)  # with duplicates, at distance 0
    codes, scales = _core.int8_codes(vectors, 1)
    links = _core.better_links(16, codes, scales, ring(200), np.arange(9, dtype=np.int32), 8, 60, 1.2, 2)
    for node, own in enumerate(links):
        there = own[own >= 0].tolist()
        assert node not in there
        assert len(set(there)) == len(there) > 0
        assert (own[len(there) :] == -1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"links": ring(5), "degree": 1}, "out of range"),
        ({"links": ring(5), "entries": np.array([5], np.int32)}, "is not a node"),
        ({"links": np.full((5, 2), 5, np.int32)}, "is not a node"),
        ({"degree": 0}, "out of range"),
        ({"alpha": 0.5}, "out of range"),
        ({"links": np.full((20, 2), 20, np.int32)}, "is not a node"),
        ({"links": np.zeros((21, 2), np.int32)}, "more rows than codes"),
        ({"entries": np.array([20], np.int32)}, "is not a node"),
    ],
)
def test_what_cannot_be(rng, change, message):
    codes, scales = _core.int8_codes(rng.normal(size=(20, 16)).astype(np.float32), 1)
    given = {"dim": 16, "codes": codes, "scales": scales, "links": ring(20), "entries": np.arange(3, dtype=np.int32)}
    given |= {"degree": 8, "beam": 10, "alpha": 1.2, "num_threads": 1, **change}
    with pytest.raises(ValueError, match=message):
        _core.better_links(**given)


def test_a_walk_finds_more_by_them(rng):
    centres = rng.normal(size=(60, 32))
    vectors = (centres[rng.integers(60, size=4000)] + 0.6 * rng.normal(size=(4000, 32))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = (vectors[rng.integers(4000, size=50)] + 0.1 * rng.normal(size=(50, 32))).astype(np.float32)
    codes, scales = _core.int8_codes(vectors, 1)
    near = np.argsort(-(vectors @ vectors.T), axis=1)[:, 1:9].astype(np.int32)  # nearest neighbours alone: a poor graph
    entries = rng.choice(4000, 60, replace=False).astype(np.int32)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    none = np.empty((0, codes.shape[1]), np.int8), np.empty(0, np.float32)

    def recall(links):
        found = _core.CodedGraph(32, codes, scales, links, entries, *none).search(queries, None, 0, 10, 20, 1)
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])

    better = _core.better_links(32, codes, scales, np.ascontiguousarray(near), entries, 24, 60, 1.2, 2)
    assert recall(better) > max(recall(near), 0.9)
