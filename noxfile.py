"""What people run here, by name.

`nox -l` lists it, `nox -s quick` runs one, `nox -s tests -- -k storage` passes on what follows `--`. All share one environment,
.venv, the one that README's command makes: nox makes it where it is missing, and puts the package into it anew before tests.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "quick"]

ENVIRONMENT = Path(".venv").resolve()
PROGRAMS = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
PROJECT = nox.project.load_toml("pyproject.toml")["project"]
CPP = [str(path) for folder in ("cpp", "tests/cpp") for path in sorted(Path(folder).rglob("*.[ch]pp"))]


@nox.session
def tests(session: nox.Session) -> None:
    """Every test, in parallel."""
    install(session, ".[test]")
    run(session, "pytest", *session.posargs)


@nox.session
def quick(session: nox.Session) -> None:
    """Unit and property tests but for slow ones, under two minutes on two cores: for while one works."""
    install(session, ".[test]")
    run(session, "pytest", "tests/unit", "tests/property", "-m", "not slow", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, directions of imports, and the format of Python and C++."""
    install(session, *PROJECT["dependencies"], *PROJECT["optional-dependencies"]["lint"])  # mypy reads the types of the former
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    run(session, "mypy")
    run(session, "lint-imports")
    run(session, "clang-format", "--dry-run", "--Werror", *CPP)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation as a site, in docs/_build/html."""
    install(session, ".[docs]")
    run(session, "sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """One benchmark, such as `nox -s bench -- benchmarks/candidates.py --help`; each says at its top what it measures."""
    if not session.posargs:
        session.error("which one? nox -s bench -- benchmarks/NAME.py ARGUMENTS; benchmarks/README.md has them all")
    install(session, ".[test]")
    run(session, "python", *session.posargs)


def install(session: nox.Session, *requirements: str) -> None:
    if not PROGRAMS.exists():
        session.run(sys.executable, "-m", "venv", str(ENVIRONMENT), external=True)
    run(session, "python", "-m", "pip", "install", "-q", "-c", ".ci/constraints.txt", *requirements)


def run(session: nox.Session, program: str, *arguments: str) -> None:
    session.run(str(PROGRAMS / program), *arguments, external=True)
