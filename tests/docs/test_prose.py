"""Prose has lines of at most 128 characters, as code has, and README has short sentences.

Not prose: blocks of code, tables, and what cannot be broken: an image with its description, or a single word, such as a link.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *DOCS]
WIDTH = 128

NOT_PROSE = re.compile(
    r"^[ ]*```.*?^[ ]*```$"  # fenced code
    r"|(?<=\n\n)(?:[ ]{4}[^\n]*\n+)+"  # indented code
    r"|^[ ]*\|[^\n]*$"  # a row of a table
    r"|!\[[^\]]*\]\([^)]*\)",  # an image
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def prose(page: Path) -> str:
    """The text of a page, with as many lines."""
    return NOT_PROSE.sub(lambda found: "\n" * found[0].count("\n"), page.read_text())


def sentences(page: Path) -> list[str]:
    """Of its paragraphs and the items of its lists, without headings."""
    text = re.sub(r"^#.*$", "", prose(page), flags=re.MULTILINE)
    blocks = re.split(r"\n\s*\n|\n(?= *(?:-|\d+\.) )", LINK.sub(r"\1", text))
    return [one for block in blocks for one in re.split(r"(?<=[.?!])\**\s+", block.strip().removeprefix("- ")) if one]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lines_are_short(page):
    lines = enumerate(prose(page).splitlines(), 1)
    long = [f"{page.name}:{number}: {line}" for number, line in lines if len(line) > WIDTH and " " in line.strip()]
    assert not long


def test_sentences_of_readme_are_short():
    words = {sentence: len(sentence.split()) for sentence in sentences(ROOT / "README.md")}
    assert len(words) > 20
    assert sum(words.values()) / len(words) < 19
    assert not [sentence for sentence, count in words.items() if count > 35]
