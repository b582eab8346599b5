"""The package as installed: what importing it does, its stub, its docs."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from importlib.metadata import metadata, version
from pathlib import Path

import pytest

import lemur_ann
import lemur_ann.index
import lemur_ann.maxsim

ROOT = Path(__file__).parent.parent.parent
PACKAGE = Path(lemur_ann.__file__).parent
WITH_EXAMPLES = sorted(f"lemur_ann.{file.stem}" for file in PACKAGE.glob("*.py") if ">>>" in file.read_text())


def python(program):
    return subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True).stdout


def test_it_is_the_installed_package_that_is_tested():
    assert PACKAGE != ROOT / "lemur_ann", "install the package and run pytest, not python -m pytest"


def test_import_is_light():
    program = (
        "import time, sys; t = time.perf_counter(); import lemur_ann; s = time.perf_counter() - t;"
        "print(s, 'torch' in sys.modules, 'hnswlib' in sys.modules, 'rich' in sys.modules)"
    )
    seconds, *loaded = python(program).split()
    assert loaded == ["False", "False", "False"]
    assert float(seconds) < 2  # about 0.2 on an idle machine; CI machines are not idle


def test_exact_search_does_not_import_torch():
    program = (
        "import sys, numpy, lemur_ann; i = lemur_ann.LemurIndex().add([numpy.ones((2, 3))]);"
        "i.search(numpy.ones((1, 3))); print('torch' in sys.modules)"
    )
    assert python(program).strip() == "False"


def test_adding_twice_without_ids_in_a_fresh_process():
    program = (
        "import numpy, lemur_ann; m = numpy.ones((2, 3)); i = lemur_ann.LemurIndex().add([m]).add([m, m]);"
        "print(sorted(i.search(m).ids.tolist()))"
    )
    assert python(program).strip() == "[0, 1, 2]"


def test_versions_agree():
    assert lemur_ann.__version__ == version("lemur_ann") == metadata("lemur_ann")["Version"]
    assert f'version = "{lemur_ann.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {lemur_ann.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_typed_and_complete():
    for name in ("py.typed", "_core.pyi", "data/demo_documents.parquet", "adapters/lemur.py"):
        assert (PACKAGE / name).is_file(), name


def test_stub_is_what_nanobind_generates(tmp_path):
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "lemur_ann._core", "--exclude-values"]
    subprocess.run([*command, "-o", str(tmp_path / "_core.pyi")], check=True, cwd=tmp_path)
    assert (tmp_path / "_core.pyi").read_text() == (ROOT / "lemur_ann/_core.pyi").read_text()


def test_only_these_modules_import_torch():
    allowed = {
        "learning/features.py",
        "learning/training.py",
        "learning/distillation.py",
        "learning/weights.py",
        "learning/reduction.py",
        "learning/targets.py",
        "learning/threads.py",
        "learning/torch_targets.py",
        "encoder.py",
        "formats.py",
        "learning/query_features.py",
        "searching/device.py",
        "learning/second_look.py",
        "learning/fitting.py",
    }
    package = ROOT / "lemur_ann"
    importing = {
        p.relative_to(package).as_posix()
        for p in package.rglob("*.py")
        if re.search(r"^\s*(import|from) torch", p.read_text(), re.M)
    }
    assert importing == allowed


def test_only_the_bindings_include_nanobind():
    for file in [*(ROOT / "cpp/src").rglob("*.cpp"), *(ROOT / "cpp/include").rglob("*.hpp")]:
        assert "nanobind" not in file.read_text(), file


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_readme_quickstart_runs(capsys):
    """As it is pasted; and it prints what README says."""
    (program, printed) = re.findall(r"```(?:python|text)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(program, {})
    assert capsys.readouterr().out == printed
