"""The site builds from docs without a warning, holds every page and every public name, and no link in it is broken."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import lemur_ann

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
NEEDED = ("sphinx", "myst_parser", "furo", "sphinx_copybutton")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


class Page(HTMLParser):
    """What a built page links to and can be linked at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.text = ""  # without code
        self.code: list[str] = []  # open tags whose text is none to read
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id" and value:
                self.anchors.add(value)
            elif value and ((name == "href" and tag == "a") or (name == "src" and tag == "img")):
                self.links.add(value)

        if tag in ("code", "pre", "script", "style"):
            self.code.append(tag)

    def handle_endtag(self, tag):
        if self.code and tag == self.code[-1]:
            self.code.pop()

    def handle_data(self, data):
        if not self.code:
            self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(folder, page by its path) of the site."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: pip install lemur_ann[docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(folder / "doctrees"), "docs", str(folder / "html")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    html = folder / "html"
    return html, {path: Page(path.read_text()) for path in html.rglob("*.html")}


def targets(path, page):
    """(file, anchor, link) of all links of a page that stay on the site."""
    for link in page.links:
        parts = urlsplit(link)
        if not parts.scheme and not parts.netloc:
            yield (path.parent / unquote(parts.path)).resolve() if parts.path else path, unquote(parts.fragment), link


def test_every_page_is_reachable(site):
    html, pages = site
    seen, waiting = set(), [html / "index.html"]
    while waiting:
        path = waiting.pop()
        if path in pages and path not in seen:
            seen.add(path)
            waiting += [file for file, _, _ in targets(path, pages[path])]
    wanted = {html / page.relative_to(DOCS).with_suffix(".html") for page in PAGES}
    assert wanted <= seen, sorted(wanted - seen)


def test_every_public_name_is_in_the_reference(site):
    html, pages = site
    reference = [html / "api.html", *(html / "api").glob("*.html")]
    anchors = set().union(*(pages[path].anchors for path in reference))
    named = {f"lemur_ann.{name}" for name in lemur_ann.__all__} | {
        f"lemur_ann.maxsim.{name}" for name in lemur_ann.maxsim.__all__
    }
    missing = [name for name in sorted(named) if name not in anchors and f"module-{name}" not in anchors]
    assert not missing


def test_no_link_is_broken(site):
    _, pages = site
    broken = []
    for path, page in pages.items():
        for file, anchor, link in targets(path, page):
            is_there = file.is_file() if file not in pages else not anchor or anchor in pages[file].anchors
            if not is_there:
                broken.append(f"{path.name}: {link}")
    assert not broken, broken


def test_no_markup_is_left_in_the_text(site):
    _, pages = site
    left = re.compile(r":(?:meth|class|func|attr|mod):`|``|\]\(")
    for path, page in pages.items():
        found = left.search(page.text)
        assert found is None, f"{path.name}: {page.text[max(found.start() - 80, 0) : found.end() + 40]!r}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_files(page):
    """As they are followed where the Markdown is read as it is."""
    links = [urlsplit(link) for link in LINK.findall(CODE.sub("", page.read_text()))]
    own = [link.path for link in links if not link.scheme and link.path]
    missing = [path for path in own if not (page.parent / path).exists()]
    assert not missing
