"""The documentation site, from the Markdown that people read on GitHub too.

python -m sphinx -W --keep-going -b html docs docs/_build/html
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike
from sphinx.util import inspect
from sphinx.util.typing import stringify_annotation

DOCS = Path(__file__).parent
# python -m sphinx puts the working directory first, and in it the source tree, which has no compiled extension.
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != DOCS.parent]

import lemur_ann  # noqa: E402

project = "lemur_ann"
author = "The lemur_ann authors"
project_copyright = author
version = release = lemur_ann.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3  # the anchors that GitHub makes

html_theme = "furo"
html_title = f"lemur_ann {release}"
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = ">>> "
copybutton_only_copy_prompt_lines = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

autodoc_member_order = "bysource"
viewcode_follow_imported_members = False  # see followed()
autodoc_preserve_defaults = True
autodoc_type_aliases = {"Show": "lemur_ann.progress.Show"}
autodoc_typehints_format = "short"
maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_param = False  # several names may share one description
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style"), ("Rarely", "params_style")]

# Adapters, and what they import of their hosts, which is mocked, installed or not: the pages are the same everywhere.
ADAPTERS = {
    ".".join(file.relative_to(DOCS.parent).with_suffix("").parts): ast.parse(file.read_text())
    for file in sorted((DOCS.parent / "adapters").rglob("*.py"))
    if file.stem != "__init__"
}
NODES = [node for tree in ADAPTERS.values() for node in ast.walk(tree)]
IMPORTED = [name.name for node in NODES if isinstance(node, ast.Import) for name in node.names]
IMPORTED += [node.module for node in NODES if isinstance(node, ast.ImportFrom) and node.module and not node.level]
OWN = {"lemur_ann", "numpy", "pyarrow", "torch", "ann_benchmarks"}  # the last: its adapter does without
autodoc_mock_imports = sorted({name.partition(".")[0] for name in [*IMPORTED, "matplotlib"]} - OWN - sys.stdlib_module_names)
MOCKED_DECORATOR = {"adapters.haystack": "LemurRetriever"}  # what it gives has a docstring and no members

ARRAY_LIKE = stringify_annotation(ArrayLike, "smart")
ARRAY = re.compile(r"~?numpy\.ndarray\[tuple\[~?typing\.Any, \.\.\.\], ~?numpy\.dtype\[([^\[\]]+)\]\]")

# The sidebar. On GitHub a toctree would be shown as code, so these are put in here, at the end of the page that lists others.
# Pages of a folder that are not named here follow those that are.
SECTIONS = {
    "Start": ["quickstart", "concepts"],
    "Guides": [
        "guides/text",
        "guides/visual-documents",
        "guides/no-query-log",
        "guides/tuning",
        "guides/filters",
        "guides/memory",
        "guides/small-codes",
        "guides/upgrades",
        "guides/explain",
        "guides/report",
        "guides/progress",
    ],
    "Inside other systems": ["integrations", "databases"],
    "Reference": ["api", "format"],
    "How it works, what it costs": ["architecture", "learning", "performance", "scaling", "reliability"],
}
API = ["api/lemur_index", "api/text_index", "api/lemur_encoder", "api/results", "api/maxsim", "api/adapters"]


def others(folder: str, named: list[str]) -> list[str]:
    """The pages of a folder of docs that are not named."""
    pages = (file.relative_to(DOCS).with_suffix("").as_posix() for file in (DOCS / folder).glob("*.md"))
    return sorted({*pages} - {*named, "index"})


def toctree(pages: list[str], caption: str = "") -> str:
    """A hidden one: it is shown in the sidebar alone."""
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", "", "```{toctree}", *options, "", *pages, "```", ""])


def complete(app: Any, page: str, source: list[str]) -> None:
    """Put in what GitHub would show as code; called with the text of each page when it is read."""
    if page == "index":
        more = {"Guides": "guides", "How it works, what it costs": "."}
        named = [name for pages in SECTIONS.values() for name in pages]
        for caption, pages in SECTIONS.items():
            found = others(more[caption], named) if caption in more else []
            source[0] += toctree([*pages, *found], caption)
    elif page == "integrations":
        source[0] += toctree(others("integrations", []))
    elif page == "api":
        source[0] += toctree([*API, *others("api", API)])
    elif page == "api/adapters":
        source[0] += "".join(map(reference, ADAPTERS))


def reference(module: str) -> str:
    """The section of an adapter."""
    options, more = ["   :members:"], []
    imported = [node.module for node in ast.walk(ADAPTERS[module]) if isinstance(node, ast.ImportFrom)]
    if any(name and name.endswith("_two_stages") for name in imported):  # add, upsert and delete are said there
        options.append("   :inherited-members:")
    if module in MOCKED_DECORATOR:
        options.append(f"   :exclude-members: {MOCKED_DECORATOR[module]}")
        more = ["", f".. autoclass:: lemur_ann.{module}.{MOCKED_DECORATOR[module]}"]
    lines = [f"## lemur_ann.{module}", "", "```{eval-rst}", f".. automodule:: lemur_ann.{module}", *options, *more, "```"]
    return "\n".join(["", "", *lines, ""])


def signatures(app: Any, what: str, name: str, of: Any, options: Any, signature: str | None, returned: str | None) -> Any:
    """Array types as the source spells them; and a class with a mocked base has the arguments of its own constructor."""
    if what == "class" and "__init__" in vars(of) and any(getattr(base, "__sphinx_mock__", False) for base in of.__mro__):
        own = inspect.signature(of.__init__, bound_method=True)
        signature = inspect.stringify_signature(own, show_return_annotation=False, unqualified_typehints=True)
    return tuple(text and ARRAY.sub(r"NDArray[\1]", text.replace(ARRAY_LIKE, "ArrayLike")) for text in (signature, returned))


def followed(app: Any, module: str, name: str) -> str | None:
    """The module whose source a name's link leads to: where it was written, but for methods that an adapter inherits.

    Pages of source link back by the module of the first name that led to them, which is another's for those.
    """
    if module.startswith("lemur_ann.adapters."):
        return None
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part, None)
    return getattr(value, "__module__", None)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", complete)
    app.connect("autodoc-process-signature", signatures)
    app.connect("viewcode-follow-imported", followed)
