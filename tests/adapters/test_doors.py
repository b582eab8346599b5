"""Adapters are built over the public interface alone, as docs/integrations.md says."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ADAPTERS = sorted((ROOT / "adapters").rglob("*.py"))
DOORS = {
    "lemur_ann",
    "lemur_ann.client",
    "lemur_ann.documents",
    "lemur_ann.encoders",
    "lemur_ann.events",
    "lemur_ann.insight",
    "lemur_ann.maxsim",
    "lemur_ann.options",
    "lemur_ann.progress",
    "lemur_ann.saved",
    "lemur_ann.searching",
    "lemur_ann.validate",
}
# The reference implementation's interface has the pieces of learning as its arguments.
LEARNING = {f"lemur_ann.learning.{name}" for name in ("features", "targets", "training", "weights")}


def is_module(name):
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(path):
    """(module, name or None) of every import from this library, deferred ones and those for types alone too."""
    package = ".".join(["lemur_ann", *path.relative_to(ROOT).parent.parts])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "lemur_ann")
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if module.split(".")[0] == "lemur_ann":
                wholes = [(f"{module}.{alias.name}", alias.name) for alias in node.names]
                yield from ((whole, None) if is_module(whole) else (module, name) for whole, name in wholes)


@pytest.mark.parametrize("path", ADAPTERS, ids=[str(path.relative_to(ROOT)) for path in ADAPTERS])
def test_adapters_use_public_doors(path):
    doors = DOORS | (LEARNING if path == ROOT / "adapters/lemur.py" else set())
    found = [(module, name) for module, name in imported(path) if not f"{module}.".startswith("lemur_ann.adapters.")]
    behind = {module for module, _ in found if module not in doors}
    behind |= {f"{module}.{name}" for module, name in found if name is not None and name.startswith("_")}
    assert not behind, f"{path.name} imports {sorted(behind)}, which are private; the doors are {sorted(doors)}"


def test_every_door_is_in_the_reference():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    missing = {door for door in DOORS | LEARNING if not re.search(rf"\b{re.escape(door)}\b", pages)}
    assert not missing, f"no page of docs/api names {sorted(missing)}"
