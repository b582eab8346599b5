"""The plan of the house: few rooms, short files, short functions, and imports without a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "lemur_ann"
FILES = sorted(path for folder in (PACKAGE, ROOT / "adapters") for path in folder.rglob("*.py"))
MAX_ROOMS, MAX_LINES, MAX_BODY = 28, 1000, 60


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_rooms_of_the_package():
    rooms = {path.name for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert len(rooms) <= MAX_ROOMS, f"{len(rooms)} rooms in lemur_ann/, {MAX_ROOMS} at most: {sorted(rooms)}"


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    long = {name: length for name, length in lengths.items() if length > MAX_LINES}
    assert not long, f"files over {MAX_LINES} lines: {long}"


def body_length(function):
    """Lines from the first statement that is no docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_a_screen_at_most():
    long = {}
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_length(node) > MAX_BODY:
                long[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = body_length(node)
    assert not long, f"function bodies over {MAX_BODY} lines: {long}"


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, modules):
    """The files that a file imports anywhere in it: in functions and for types too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            wholes = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [whole if whole in modules else node.module for whole in wholes]
        else:
            continue
        yield from (name for name in names if name in modules)


def test_files_import_in_one_direction():
    """Between the files themselves, a folder's ``__init__`` among them; lint-imports compares the folders with their order."""
    modules = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))} | {"lemur_ann._core": None}
    graph = {name: {*imports(path, modules)} for name, path in modules.items() if path is not None}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}")


def test_the_library_does_not_import_its_adapters():
    adapters = {"lemur_ann.adapters", *(f"lemur_ann.{module_of(path)}" for path in FILES if PACKAGE not in path.parents)}
    for path in sorted(PACKAGE.rglob("*.py")):
        assert not [*imports(path, adapters)], path.name
