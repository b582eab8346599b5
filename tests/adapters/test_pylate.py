"""The PyLate adapter, in an environment of its own: PyLate pins one version of sentence-transformers, and other hosts another.

PyLate itself pins an old torch too, through fast-plaid, which only its PLAID index imports: it is installed without
dependencies, beside what the rest of it needs.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import lemur_ann

HERE = Path(__file__).parent
CONSTRAINTS = (HERE.parents[1] / ".ci" / "constraints.txt").read_text()
HOST = ["sentence-transformers==5.3.0", "transformers<=5.3.0", "datasets", "accelerate", "pandas", "voyager<2.2"]
TOOLS = ["pytest", "pytest-asyncio", "pytest-timeout"]


@pytest.mark.timeout(1200)
def test_the_contract_in_an_environment_of_its_own():
    ours = [requirement for requirement in importlib.metadata.requires("lemur_ann") if "extra ==" not in requirement]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(
            Path(lemur_ann.__file__).parent, f"{folder}/ours/lemur_ann", ignore=shutil.ignore_patterns("__pycache__")
        )
        python = f"{folder}/venv/{'Scripts' if os.name == 'nt' else 'bin'}/python"
        run(sys.executable, "-m", "venv", f"{folder}/venv")
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        torch = next(line for line in CONSTRAINTS.splitlines() if line.startswith("torch=="))  # the others are not for PyLate
        run(*pip, torch, *ours, *HOST, *TOOLS)
        run(*pip, "--no-deps", "pylate==1.6.0")
        environment = {**os.environ, "PYTHONPATH": f"{folder}/ours", "HF_HUB_OFFLINE": "1"}
        contract = [str(HERE / "pylate_contract.py"), "-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider"]
        output = run(python, "-m", "pytest", *contract, cwd=folder, env=environment)
    print(output)
    assert " passed" in output
    assert "skipped" not in output


def run(*command: str, **how) -> str:
    """What a command prints; the test ends where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)
    if done.returncode:
        if "pip" in command and "(from versions: none)" in done.stdout:
            pytest.skip(f"pip reaches no package index: {done.stdout.strip().splitlines()[-1]}")
        pytest.fail(f"{' '.join(command)}\n{done.stdout}", pytrace=False)
    return done.stdout
