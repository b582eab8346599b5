"""Whatever is in a file, in Arrow data or in a filter: refused in our words or taken, and the process lives. See fuzz.py.

LEMUR_ANN_FUZZ says how many are tried, 80 where it is not set, which takes 20 seconds. LEMUR_ANN_FUZZ_SEED is the seed of the
first; what fails is reported with its seed. Hours of it:

LEMUR_ANN_FUZZ=100000 LEMUR_ANN_FUZZ_SEED=1000 pytest --timeout 0 tests/durability/test_fuzz.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "fuzz.py"
AMOUNT = int(os.environ.get("LEMUR_ANN_FUZZ", "80"))
FIRST = int(os.environ.get("LEMUR_ANN_FUZZ_SEED", "0"))
MAX_KINDS = 40  # of failures, after which it ends

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs limits of a process that Windows does not have")


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes")
    subprocess.run([sys.executable, str(PROGRAM), "make", str(folder)], check=True)
    return folder


def batch(kind, folder, first, count, errors):
    """What a process says: one dict a line, and last of all one of its end where that was not meant."""
    command = [sys.executable, str(PROGRAM), kind, str(folder), str(first), str(count)]
    said = {}
    with errors.open("w") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            for line in process.stdout:
                said = json.loads(line)
                yield said
            code = process.wait()
        finally:
            process.kill()
    if "done" not in said:
        text = errors.read_text(errors="replace")
        place = re.search(r'lemur_ann/([\w/]+\.py)", line (\d+)', text)
        what = f"ended by signal {-code}" if code < 0 else "took too long" if "Timeout" in text else f"ended with {code}"
        yield {"wrong": what + (f" in {place[1]}:{place[2]}" if place else ""), "details": text[-3000:], "died": True}


def fuzz(kind, folder, count, errors):
    """How often each outcome came; AssertionError with one example of each failure."""
    outcomes, failures = {}, {}
    seed = FIRST
    while seed < FIRST + count and len(failures) < MAX_KINDS:
        trying, next_seed = "to start", FIRST + count
        for said in batch(kind, folder, seed, FIRST + count - seed, errors):
            seed = said.get("seed", seed)
            trying = said.get("trying", trying)
            if "outcome" in said:
                outcomes[said["outcome"]] = outcomes.get(said["outcome"], 0) + 1
            elif "wrong" in said:
                failures.setdefault(said["wrong"], []).append(f"seed {seed}: {trying}\n{said['details']}")
                next_seed = seed + 1 if said.get("died") else next_seed
        seed = next_seed
    report = [f"{len(examples)} times {what}, as with {examples[0]}" for what, examples in failures.items()]
    assert not report, "\n\n".join([f"outcomes {outcomes}", *report])
    return outcomes


def test_damaged_files(indexes, tmp_path):
    outcomes = fuzz("files", indexes, AMOUNT, tmp_path / "errors")
    assert outcomes.get("refused"), "the damage reaches what reads the files"


def test_folders_of_strangers(indexes, tmp_path):
    outcomes = fuzz("hostile", indexes, AMOUNT, tmp_path / "errors")
    assert outcomes.get("refused"), "the changes reach what reads the files"


def test_changes_stay_within_their_folder(indexes, tmp_path):
    assert set(fuzz("changes", indexes, AMOUNT, tmp_path / "errors")) == {"within"}


def test_damage_under_checksums(indexes, tmp_path):
    outcomes = fuzz("unsigned", indexes, AMOUNT, tmp_path / "errors")
    assert set(outcomes) <= {"refused", "the same"}


def test_arrow_data(indexes, tmp_path):
    outcomes = fuzz("arrow", indexes, AMOUNT, tmp_path / "errors")
    assert outcomes.get("taken")
    assert outcomes.get("refused")


def test_filters(indexes, tmp_path):
    outcomes = fuzz("filters", indexes, 3 * AMOUNT, tmp_path / "errors")
    assert outcomes.get("right")
    assert outcomes.get("refused")
