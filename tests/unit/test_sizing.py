"""What an index will take, against what indexes do take."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

import lemur_ann
from lemur_ann import LemurIndex
from lemur_ann.cli import app

SMALL = {"num_features": 64, "epochs": 0, "rank": 31, "num_sample_tokens": 500}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"token_codes": None},
        {"token_codes": "int4"},
        {"token_codes": "int2", "keep_tokens": "none"},
        {"token_codes": "int1", "keep_tokens": "none"},
        {"num_centroids": 0},
        {"candidates": "exact", "epochs": 1},
    ],
    ids=str,
)
def test_a_plan_is_what_is_built(rng, tmp_path, options):
    """All parts on disk, each within a tenth: of enough documents for a graph."""
    documents = [rng.normal(size=(rng.integers(5, 20), 48)).astype(np.float16) for _ in range(2500)]
    queries = [rng.normal(size=(8, 48)).astype(np.float32) for _ in range(100)]
    chosen = {**SMALL, **options}
    index = LemurIndex(**chosen).fit(documents, queries)
    index.save(tmp_path / "index")
    planned = lemur_ann.plan(2500, index.num_tokens / 2500, 48, id_bytes=8, num_query_tokens=800, unit_length=False, **chosen)
    assert planned.num_tokens == index.num_tokens
    sizes = {}
    for file in (tmp_path / "index").iterdir():
        kind = file.name.split("-")[0]
        sizes[kind] = sizes.get(kind, 0) + file.stat().st_size
    total = sum(sizes.values())
    assert planned.size == pytest.approx(total, rel=0.1)
    parts = planned.parts
    assert parts.get("tokens", 0) + (parts["token codes"] if index.options.keeps_int8 else 0) == pytest.approx(
        sizes.get("tokens", 0), rel=0.1
    )
    beside = parts.get("token centroids", 0) + (0 if index.options.keeps_int8 else parts.get("token codes", 0))
    assert beside == pytest.approx(sizes.get("centroids", 0), rel=0.1)
    candidates = sum(sizes.get(kind, 0) for kind in ("graph", "links", "vectors"))
    assert parts["candidates"] == pytest.approx(candidates, rel=0.1)
    assert parts["learned map"] == pytest.approx(sizes["learned"], rel=0.1)
    measured = index.stats()
    sizes = {name: part.size for name, part in measured.parts.items()}
    searched = sum(sizes.values()) - (sizes.get("tokens", 0) if index.options.token_codes else 0)
    assert planned.searched_bytes < 1.1 * searched
    assert planned.fit_bytes == pytest.approx(index.encoder.training["expected_peak_bytes"], rel=0.01)


def test_it_says_so():
    planned = lemur_ann.plan(1_000_000, 80, 128, token_codes="int2", keep_tokens="none")
    assert "tokens" not in planned.parts
    assert 36 < planned.bytes_per_token < 75
    assert "bytes a token" in str(planned)
    assert planned.temporary_bytes > 80_000_000 * 256
    assert lemur_ann.plan(1_000_000, 80, 128).size > 5 * planned.size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 80, 128, {}), "num_documents"),
        ((10, 0, 128, {}), "tokens_per_document must be above 0"),
        ((10, True, 128, {}), "tokens_per_document"),
        ((10, 80, 0, {}), "dim"),
        ((10, 80, 128, {"token_dtype": "int8"}), "float16 or float32"),
        ((10, 80, 128, {"keep_tokens": "none"}), "small codes alone"),
        ((10, 80, 128, {"rnk": 3}), "rnk"),
    ],
)
def test_what_it_refuses(arguments, message):
    *sizes, options = arguments
    with pytest.raises((TypeError, ValueError), match=message):
        lemur_ann.plan(*sizes, **options)


def test_the_command_line():
    found = CliRunner().invoke(app, ["plan", "1000000", "80", "128", "--token-codes", "int4", "--keep-tokens", "none"])
    assert found.exit_code == 0, found.output
    assert "bytes a token" in found.output
    assert CliRunner().invoke(app, ["plan", "1000000", "80", "128", "--keep-tokens", "none"]).exit_code != 0
