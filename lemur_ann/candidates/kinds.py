"""The kinds of candidates by their names, which are the values of the option ``candidates``."""

from __future__ import annotations

import importlib
import importlib.util

from lemur_ann.candidates import Kind

OWN_KINDS = ("hnsw", "exact")
LIBRARIES = {  # by the name of the file here: the module that it imports, and the package to install
    "faiss": ("faiss", "faiss-cpu"),
    "usearch": ("usearch", "usearch"),
    "svs": ("svs", "scalable-vs"),
}
KINDS = (*OWN_KINDS, *LIBRARIES)


def check_kind(name: str) -> None:
    """ValueError where there is no such kind, ImportError where its package is not installed."""
    if name not in KINDS:
        raise ValueError(f"candidates must be one of {', '.join(KINDS)}, got {name!r}")
    if name in LIBRARIES:
        module, package = LIBRARIES[name]
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"candidates={name!r} needs a package that is not installed: pip install {package}")


def kind_of(name: str) -> Kind:
    """What a value of the option ``candidates`` stands for; its library is imported here, at its first use."""
    check_kind(name)
    if name == "exact":
        from lemur_ann.candidates.exact import ExactKind

        return ExactKind()
    if name == "hnsw":
        from lemur_ann.candidates.hnsw import HnswKind

        return HnswKind()
    from lemur_ann.candidates.library import LibraryKind

    return LibraryKind(importlib.import_module(f"lemur_ann.candidates.{name}"))
