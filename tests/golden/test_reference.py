"""The reference implementation's own outputs, and its checkpoints, through our adapter for it.

The files beside this one are a subset that make_subset.py cut from the full outputs. LEMUR_ANN_GOLDEN names the folder of the
full ones; where it is set, they are compared too.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from lemur_ann.adapters.lemur import Lemur, MaxSim

HERE = Path(__file__).parent


def sources():
    for kind in ("official_mlp", "official_random_features"):
        yield pytest.param((HERE / kind / "outputs.npz", HERE / kind / "mlp.pt"), id=f"{kind}-subset")
        full = os.environ.get("LEMUR_ANN_GOLDEN")
        if full:
            yield pytest.param((Path(full) / f"{kind}.npz", Path(full) / kind / "mlp.pt"), id=f"{kind}-full")


@pytest.fixture(params=sources())
def golden(request, tmp_path):
    outputs, checkpoint = request.param
    data = dict(np.load(outputs))
    for name in ("doc_tokens", "query_tokens", "ols_tokens"):
        data[name] = data[name].astype(np.float32)
    shutil.copy(checkpoint, tmp_path / "mlp.pt")
    return data, tmp_path


def fitted(data, folder):
    learn = data["ols_tokens"]
    return Lemur(index=folder).fit(
        data["doc_tokens"], data["doc_counts"], learn=learn, learn_counts=np.array([len(learn)]), verbose=False
    )


def test_features(golden):
    data, folder = golden
    features = fitted(data, folder).compute_features((data["query_tokens"], data["query_counts"]))
    np.testing.assert_allclose(features.numpy(), data["query_features"], atol=1e-4)


def test_estimated_scores(golden):
    data, folder = golden
    lemur = fitted(data, folder)
    got = (lemur.compute_features((data["query_tokens"], data["query_counts"])) @ lemur.W.T).numpy()
    expected = data["query_features"] @ data["weights"].T
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.ptp(expected))
    again = (lemur.compute_features((data["query_tokens"], data["query_counts"])) @ Lemur(index=folder).load_w().T).numpy()
    np.testing.assert_array_equal(again, got)


def test_rerank(golden):
    data, _ = golden
    maxsim = MaxSim(data["doc_tokens"], data["doc_counts"])
    wanted = data["maxsim_top20"]
    every = np.tile(np.arange(len(data["doc_counts"]), dtype=np.int32), (len(wanted), 1))
    found = maxsim.rerank_subset(data["query_tokens"], data["query_counts"], len(data["doc_counts"]), every)
    assert found.dtype == np.int32
    for row, expected in zip(found, wanted, strict=True):
        expected = expected[expected >= 0]
        np.testing.assert_array_equal(row[: len(expected)], expected)


def test_checkpoints_are_written_in_the_same_form(golden):
    import torch

    data, folder = golden
    original = torch.load(folder / "mlp.pt", weights_only=True)
    lemur = fitted(data, folder)
    written = torch.load(lemur.save_mlp(folder / "copy.pt"), weights_only=True)
    assert written["config"] == original["config"]
    assert written["state_dict"].keys() == original["state_dict"].keys()
    for name, value in original["state_dict"].items():
        torch.testing.assert_close(written["state_dict"][name], value)
    assert written["output_mean"] == pytest.approx(original["output_mean"])
    assert torch.load(folder / "w.pt", weights_only=True)["W"].shape == lemur.W.shape
