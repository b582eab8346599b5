"""The memory that learning plans for, and memory_limit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lemur_ann import LemurIndex
from lemur_ann.learning.memory import DOCUMENTS_PER_BLOCK, NUM_KEPT_DOCUMENTS, parse_bytes, plan
from lemur_ann.options import Options


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), (5, 5), ("3GB", 3 * 10**9), ("1.5 gib", 3 * 2**29), (" 512 MiB ", 2**29), ("100", 100), ("2kb", 2000)],
)
def test_parse_bytes(value, expected):
    assert parse_bytes(value) == expected


@pytest.mark.parametrize("value", ["lots", "3 gigs", "", "-1GB", 0, -5, 1.5, True, "GB"])
def test_what_is_not_a_number_of_bytes(value):
    with pytest.raises((TypeError, ValueError), match="memory_limit"):
        parse_bytes(value)


def test_a_plan_keeps_within_the_limit_by_giving_up_little_by_little():
    options = Options(num_training_documents=8192, num_training_tokens=100_000)

    def sizes(limit):
        return plan(options, 128, 60_000, 320_000, limit)

    free = sizes(None)
    assert (free.documents_per_block, free.num_kept_documents, free.targets_on_disk) == (
        DOCUMENTS_PER_BLOCK,
        NUM_KEPT_DOCUMENTS,
        False,
    )
    assert sizes(free.peak_bytes) == free
    before = free
    for share in (0.9, 0.7, 0.6):
        tighter = sizes(int(free.peak_bytes * share))
        assert tighter.peak_bytes <= free.peak_bytes * share
        assert tighter.documents_per_block <= before.documents_per_block
        assert tighter.num_kept_documents <= before.num_kept_documents
        before = tighter
    assert before.targets_on_disk
    with pytest.raises(ValueError, match=r"memory_limit is 100 MB, and learning with these options needs [0-9,]+ MB at least"):
        sizes(100 * 10**6)


def test_learning_does_not_grow_with_the_documents_but_for_the_graph():
    options = Options()
    large, larger = (plan(options, 128, n, 320_000, None).peak_bytes for n in (200_000, 600_000))
    assert larger <= large * 1.1
    assert plan(options, 128, 10**7, 320_000, None).peak_bytes > 10**10  # ten gigabytes of graph
    assert plan(replace(options, num_sample_tokens=65_536), 128, 200_000, 320_000, None).peak_bytes > large


def test_fit_honours_the_limit(make_matrices):
    documents, queries = make_matrices(120), make_matrices(60)
    options = {"num_features": 64, "epochs": 1, "rank": 15, "num_sample_tokens": 200}
    index = LemurIndex(**options)
    with pytest.raises(ValueError, match="memory_limit is 1 MB"):
        index.fit(documents, queries, memory_limit="1MB")
    assert len(index) == 0
    with pytest.raises(ValueError, match="memory_limit must be bytes or a string"):
        index.fit(documents, queries, memory_limit="plenty")
    limit = plan(index.options, 16, 120, sum(map(len, queries)), None).peak_bytes - 1
    index.fit(documents, queries, memory_limit=limit)
    assert index.encoder.training["expected_peak_bytes"] <= limit
    other = LemurIndex(**options).fit(documents, queries)
    for query in queries[:5]:  # smaller blocks change no result
        np.testing.assert_array_equal(index.search(query, k=5).ids, other.search(query, k=5).ids)
