"""A program written for the reference implementation runs with only its imports changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lemur_ann.adapters.lemur import Lemur, MaxSim

from lemur_ann import NotFitted, reference


@pytest.fixture
def data(make_matrices):
    def flat(matrices):
        return np.concatenate(matrices), np.array([len(m) for m in matrices])

    return {
        name: (matrices, *flat(matrices))
        for name, matrices in {
            "train": make_matrices(120),
            "learn": make_matrices(80),
            "test": make_matrices(10),
            "new": make_matrices(5),
        }.items()
    }


COUNTS = {
    "int32": lambda c: c.astype(np.int32),
    "uint64": lambda c: c.astype(np.uint64),
    "torch int64": lambda c: torch.from_numpy(c.astype(np.int64)),
    "torch int32": lambda c: torch.from_numpy(c.astype(np.int32)),
}


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("epochs", [0, 2])
def test_the_program(data, tmp_path, monkeypatch, counts, epochs):
    monkeypatch.chdir(tmp_path)
    as_counts = COUNTS[counts]
    as_tokens = torch.from_numpy if counts.startswith("torch") else np.asarray
    documents, train, train_counts = data["train"]
    queries, test, test_counts = data["test"]
    train, test, learn, new_docs = (as_tokens(data[name][1]) for name in ("train", "test", "learn", "new"))
    train_counts, test_counts, learn_counts, new_docs_counts = (
        as_counts(data[n][2]) for n in ("train", "test", "learn", "new")
    )

    lemur = Lemur(index="lemur_index", device="cpu")
    lemur.fit(
        train=train,
        train_counts=train_counts,
        learn=learn,
        learn_counts=learn_counts,
        epochs=epochs,
        final_hidden_dim=128,
        verbose=True,
    )
    feats = lemur.compute_features((test, test_counts))
    topk = torch.topk(feats @ lemur.W.T, 60, dim=1)
    cand_np = np.ascontiguousarray(topk.indices.cpu().numpy().astype(np.int32))
    reranked = MaxSim(train, train_counts).rerank_subset(test, test_counts, 10, cand_np)
    new_W = lemur.compute_weights(new_docs, new_docs_counts)

    assert feats.shape == (10, 128)
    assert new_W.shape == (5, 128)
    assert reranked.shape == (10, 10)
    assert reranked.dtype == np.int32
    shares = []
    for row, candidates, query in zip(reranked, cand_np, queries, strict=True):
        scores = reference.maxsim(query, documents)
        np.testing.assert_array_equal(row, candidates[reference.top_k(scores[candidates], 10)])
        shares.append(len(set(row.tolist()) & set(reference.top_k(scores, 10).tolist())) / 10)
    assert np.mean(shares) > 0.75  # half of the documents were candidates
    assert sorted(p.name for p in (tmp_path / "lemur_index").iterdir()) == ["mlp.pt", "w.pt"]


def test_checkpoints_are_used_instead_of_training(data, tmp_path):
    _, train, counts = data["train"]
    first = Lemur(index=tmp_path).fit(
        train, counts, epochs=1, final_hidden_dim=32, num_layers=2, hidden_dim=16, activation="relu"
    )
    again = Lemur(index=tmp_path).fit(train, counts, epochs=50)
    torch.testing.assert_close(again.W, first.W, rtol=0, atol=0)
    query = data["test"][1][:4][None]
    torch.testing.assert_close(again.compute_features(query), first.compute_features(query), rtol=0, atol=0)
    retrained = Lemur(index=tmp_path).fit(train, counts, epochs=1, final_hidden_dim=16, force_retrain=True)
    assert retrained.W.shape == (120, 16)


def test_new_weights_do_not_depend_on_when_they_are_asked_for(data):
    _, train, counts = data["train"]
    lemur = Lemur().fit(train, counts, epochs=0, final_hidden_dim=32)
    first = lemur.compute_weights(*data["new"][1:])
    torch.testing.assert_close(lemur.compute_weights(*data["new"][1:]), first, rtol=0, atol=0)
    torch.testing.assert_close(lemur.compute_weights(train, counts), lemur.W, rtol=1e-3, atol=1e-3)


def test_features_of_equal_length_queries_are_means(data):
    _, train, counts = data["train"]
    lemur = Lemur().fit(train, counts, epochs=0, final_hidden_dim=32)
    cube = train[:24].reshape(3, 8, 16)
    means = lemur.compute_features(cube)
    sums = lemur.compute_features((cube.reshape(-1, 16), np.array([8, 8, 8])))
    torch.testing.assert_close(means * 8, sums * 32)


def test_rerank_subset_fixed_and_short_rows(data):
    documents, train, counts = data["train"]
    maxsim = MaxSim(train, counts)
    cube = train[:12].reshape(2, 6, 16)
    candidates = np.array([[3, 1, 2], [9, 8, 7]])
    found = maxsim.rerank_subset_fixed(cube, 5, candidates)
    assert (found[:, 3:] == -1).all()
    for row, own, query in zip(found, candidates, cube, strict=True):
        np.testing.assert_array_equal(row[:3], own[reference.top_k(reference.maxsim(query, [documents[i] for i in own]), 3)])
    flat = maxsim.rerank_subset(cube.reshape(-1), np.array([6, 6]), 5, torch.from_numpy(candidates), num_threads=1)
    np.testing.assert_array_equal(flat, found)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train_counts": np.array([1, 2])}, ValueError, "train_counts sum to 3, train has"),
        ({"train_counts": np.array([0.5])}, TypeError, "train_counts must be integers, got float64"),
        ({"train_counts": None}, ValueError, "train and train_counts must be given together"),
        ({"epochs": -1}, ValueError, "epochs must be at least 0"),
        ({"activation": "tanh"}, ValueError, "activation must be one of"),
    ],
)
def test_bad_arguments(data, change, error, message):
    _, train, counts = data["train"]
    with pytest.raises(error, match=message):
        Lemur().fit(**{"train": train, "train_counts": counts, "epochs": 0, **change})


def test_checkpoints_of_other_data_are_refused(data, tmp_path):
    _, train, counts = data["train"]
    Lemur(index=tmp_path).fit(train, counts, epochs=0, final_hidden_dim=16)
    fewer = counts[:30]
    with pytest.raises(ValueError, match=r"weights of shape \(120, 16\), expected \(30, 16\)"):
        Lemur(index=tmp_path).fit(train[: fewer.sum()], fewer)
    with pytest.raises(ValueError, match="is for tokens of dim 16, train has dim 8"):
        Lemur(index=tmp_path).fit(train[:, :8], counts)
    with pytest.raises(ValueError, match="learn has dim 8, train has dim 16"):
        Lemur().fit(train, counts, learn=train[:, :8], learn_counts=counts, epochs=0)


def test_before_fit():
    with pytest.raises(NotFitted):
        Lemur().compute_features((np.ones((1, 4), np.float32), np.array([1])))
    with pytest.raises(NotFitted):
        Lemur().compute_weights(np.ones((1, 4), np.float32), np.array([1]))


def test_bad_candidates(data):
    _, train, counts = data["train"]
    maxsim = MaxSim(train, counts)
    with pytest.raises(IndexError, match="outside 0 .. 119"):
        maxsim.rerank_subset(train[:3], np.array([3]), 1, np.array([[120]]))
    with pytest.raises(ValueError, match="indices must have shape"):
        maxsim.rerank_subset(train[:3], np.array([3]), 1, np.array([1, 2]))


def test_a_checkpoint_that_fails_leaves_the_one_before(data, tmp_path, monkeypatch):
    _, tokens, counts = data["train"]
    lemur = Lemur(index=tmp_path).fit(tokens, counts, epochs=0, final_hidden_dim=16, verbose=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(payload, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    for save in (lemur.save_mlp, lemur.save_w):
        with pytest.raises(OSError, match="no space left"):
            save()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    torch.save({"weights": torch.ones(3)}, tmp_path / "mlp.pt")
    with pytest.raises(ValueError, match=r"mlp.pt is not a network of LEMUR"):
        Lemur(index=tmp_path).fit(tokens, counts, epochs=0, final_hidden_dim=16, verbose=False)
