"""Random sequences of operations on an index, beside a plain dictionary and brute force."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lemur_ann import LemurIndex

DIM = 8
IDS = st.sampled_from([f"id{i}" for i in range(40)])
SEEDS = st.integers(0, 2**31)


def matrix_of(seed):
    random = np.random.default_rng(seed)
    return random.normal(size=(int(random.integers(1, 5)), DIM)).astype(np.float32)


class LivingIndex(RuleBasedStateMachine):
    """``self.model`` is what the index should hold: tokens and a number by id, oldest first."""

    folder: Path | None = None

    @initialize(
        seed=SEEDS, candidates=st.sampled_from(["hnsw", "exact"]), codes=st.sampled_from(["int8", None]), fitted=st.booleans()
    )
    def begin(self, seed, candidates, codes, fitted):
        options = {"num_features": 16, "epochs": 0, "rank": 7, "candidates": candidates, "token_codes": codes}
        self.options = {**options, "num_candidates": 15, "ef_search": 20, "M": 4, "ef_construction": 20, "compact_at": 0.5}
        self.model: dict[str, tuple[np.ndarray, int]] = {}
        self.seed = seed
        self.index = self.make()
        if fitted:
            self.upsert([f"id{i}" for i in range(5, 30)], seed)
            self.fit(seed)

    def make(self):
        return LemurIndex(**self.options)

    def table(self, ids, seed):
        matrices = [matrix_of(seed + i) for i in range(len(ids))]
        values = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(matrices).reshape(-1)), DIM)
        offsets = np.cumsum([0, *map(len, matrices)])
        numbers = [(seed + i) % 10 for i in range(len(ids))]
        tokens = pa.LargeListArray.from_arrays(pa.array(offsets), values)
        table = pa.table({"id": pa.array(ids, pa.large_string()), "tokens": tokens, "number": pa.array(numbers)})
        return table, dict(zip(ids, zip(matrices, numbers, strict=True), strict=True))

    @rule(ids=st.lists(IDS, min_size=1, max_size=12, unique=True), seed=SEEDS)
    def upsert(self, ids, seed):
        table, new = self.table(ids, seed)
        self.index.upsert(table)
        for doc_id in ids:
            self.model.pop(doc_id, None)
        self.model |= new

    @rule(ids=st.lists(IDS, min_size=1, max_size=12, unique=True), seed=SEEDS)
    def add(self, ids, seed):
        table, new = self.table(ids, seed)
        if set(ids) & set(self.model):
            with pytest.raises(ValueError, match="names a document of the index already"):
                self.index.add(table)
        else:
            self.index.add(table)
            self.model |= new

    @rule(ids=st.lists(IDS, min_size=1, max_size=6))
    def delete(self, ids):
        if set(ids) <= set(self.model):
            assert self.index.delete(ids) == len(set(ids))
            for doc_id in set(ids):
                del self.model[doc_id]
        else:
            with pytest.raises(KeyError, match="no document has the id"):
                self.index.delete(ids)

    @rule(number=st.integers(0, 9))
    def delete_by_filter(self, number):
        if not self.model and self.index.snapshot.metadata is None:
            return
        gone = [doc_id for doc_id, (_, n) in self.model.items() if n == number]
        assert self.index.delete(filter=pc.field("number") == number) == len(gone)
        for doc_id in gone:
            del self.model[doc_id]

    @precondition(lambda self: self.model)
    @rule(seed=SEEDS)
    def fit(self, seed):
        self.index.fit(queries=[matrix_of(seed + i) for i in range(12)])

    @precondition(lambda self: self.model and self.index.is_fitted)
    @rule(seed=SEEDS, rank=st.integers(3, 9))
    def refit(self, seed, rank):
        self.index.refit([matrix_of(seed + i) for i in range(12)], rank=rank)

    @rule()
    def compact(self):
        self.index.compact()
        assert self.index.stats().num_deleted == 0

    @rule()
    def save_and_load(self):
        path = Path(tempfile.mkdtemp())
        try:
            self.index.save(path / "i")
            self.index.close()
            self.index = LemurIndex.load(path / "i")
            self.index.check()
        finally:
            shutil.rmtree(path)  # which the loaded index does not mind

    @rule(seed=SEEDS, k=st.integers(1, 50))
    def search(self, seed, k):
        query = matrix_of(seed)
        hits = self.index.search(query, k=k, exact=True)
        self.compare(query, hits, self.model, k)
        self.subset(query, self.index.search(query, k=k), self.model, min(k, len(self.model)))

    @rule(seed=SEEDS, k=st.integers(1, 20), number=st.integers(0, 9), ids=st.sets(IDS, max_size=20))
    def filtered_search(self, seed, k, number, ids):
        query = matrix_of(seed)
        for allowed, filter in (
            ({i: m for i, m in self.model.items() if i in ids}, ids),
            ({i: m for i, m in self.model.items() if m[1] < number}, [n < number for _, n in self.model.values()]),
            ({i: m for i, m in self.model.items() if m[1] < number}, pc.field("number") < number),
        ):
            if self.index.snapshot.metadata is None and isinstance(filter, pc.Expression):
                continue
            self.compare(query, self.index.search(query, k=k, filter=filter, exact=True), allowed, k)
            self.subset(query, self.index.search(query, k=k, filter=filter), allowed, min(k, len(allowed)))

    def scores(self, query, documents):
        return {doc_id: float((query @ tokens.T).max(1).sum()) for doc_id, (tokens, _) in documents.items()}

    def compare(self, query, hits, documents, k):
        """The exact answer, but for the order of equal scores."""
        scores = self.scores(query, documents)
        expected = sorted(scores.values(), reverse=True)[:k]
        np.testing.assert_allclose(hits.scores, expected, atol=1e-4)
        np.testing.assert_allclose([scores[doc_id] for doc_id in hits.ids], expected, atol=1e-4)

    def subset(self, query, hits, documents, count):
        """As many as were asked for, each with its exact score, best first."""
        assert len(hits) == count == len(set(hits.ids.tolist()))
        scores = self.scores(query, documents)
        np.testing.assert_allclose(hits.scores, [scores[doc_id] for doc_id in hits.ids], atol=1e-4)
        assert np.all(np.diff(hits.scores) <= 1e-6)

    @invariant()
    def holds_what_the_model_holds(self):
        if not hasattr(self, "model"):
            return
        assert self.index.ids().to_pylist() == list(self.model)
        assert len(self.index) == len(self.model)
        if self.model:
            got = self.index.get(list(self.model))
            for tokens, (expected, _) in zip(got.column("tokens").to_pylist(), self.model.values(), strict=True):
                np.testing.assert_array_equal(np.array(tokens, np.float32), expected)
            assert got.column("number").to_pylist() == [number for _, number in self.model.values()]

    def teardown(self):
        if hasattr(self, "index"):
            self.index.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class DurableIndex(LivingIndex):
    """The same, open on a directory, which is closed and opened again in between."""

    def make(self):
        self.folder = Path(tempfile.mkdtemp())
        return LemurIndex.open(self.folder / "index", **self.options)

    def save_and_load(self):
        pass

    @rule()
    def reopen(self):
        self.index.close()
        self.index = LemurIndex.open(self.folder / "index", verify=True)
        self.index.check()

    @rule()
    def read_beside(self):
        reader = LemurIndex.open(self.folder / "index", read_only=True)
        assert reader.ids().equals(self.index.ids())


EXAMPLES = int(os.environ.get("LEMUR_ANN_EXAMPLES", "40"))
SETTINGS = settings(
    max_examples=EXAMPLES, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """So that graphs are made, chunks are merged and indexes compact themselves with few documents."""
    monkeypatch.setattr("lemur_ann.candidates.MIN_SCANNED", 8)
    monkeypatch.setattr("lemur_ann.changes.MIN_DELETED", 10)
    monkeypatch.setattr("lemur_ann.documents.tokens.BYTES_TO_MERGE", 600)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LivingIndex, DurableIndex])
@pytest.mark.filterwarnings("ignore")
def test_like_a_dictionary(kind, small_limits):
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(kind, settings=SETTINGS)
