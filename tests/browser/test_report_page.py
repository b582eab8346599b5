"""The report's page in headless Chromium: on a screen and a phone, in light and dark, on paper."""

from __future__ import annotations

import re
from itertools import combinations

import pytest

from lemur_ann import LemurIndex
from lemur_ann.report import report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

PHONE, SCREEN = 390, 1100
NASTY = "<script>document.title = 'run'</script> & <b>\"bold\"</b>"

# Each plot: its box, what is drawn in it, and where its words are, which must neither be cut off nor lie on each other
PLOTS = """
() => [...document.querySelectorAll("figure > svg")].map(svg => ({
  label: svg.getAttribute("aria-label"),
  box: svg.getBoundingClientRect().toJSON(),
  marks: [...svg.querySelectorAll("use, path")].filter(e => !e.closest("defs")).map(e => e.getBoundingClientRect().toJSON()),
  titles: svg.querySelectorAll("title").length,
  texts: [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect().toJSON()]),
}))
"""
# Words and their colour on what they stand on, as relative luminance (WCAG 2)
CONTRASTS = """
() => {
  const luminance = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = luminance(getComputedStyle(document.body).backgroundColor);
  const contrast = color => {
    const own = luminance(color);
    return (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05);
  };
  return [
    ...[...document.querySelectorAll("h1, p, td, th, dt, summary, .small")].map(e => contrast(getComputedStyle(e).color)),
    ...[...document.querySelectorAll("svg text")].map(e => contrast(getComputedStyle(e).fill)),
  ];
}
"""


@pytest.fixture(scope="module")
def page_of(browser, tmp_path_factory):
    """(html, width, scheme) -> the page; it must not say, ask or be given anything."""
    contexts, heard = [], []

    def show(html, width=SCREEN, scheme="light"):
        file = tmp_path_factory.mktemp("page") / "report.html"
        file.write_text(html, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: heard.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: None if request.url == file.as_uri() else heard.append(f"request: {request.url}"))
        page.goto(file.as_uri())
        page.wait_for_load_state("networkidle")
        assert heard == []
        return page

    yield show
    for context in contexts:
        context.close()
    assert heard == []


@pytest.fixture(scope="module")
def html(demo_index, demo_data):
    return report(demo_index, demo_data.queries, title="The demo").html


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def open_all(page):
    closed = page.locator("details:not([open]) > summary")
    while closed.count():
        closed.first.click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, PHONE, SCREEN])
def test_plots_are_whole(page_of, html, width, scheme):
    page = page_of(html, width, scheme)
    assert overflow(page) <= 0
    plots = page.evaluate(PLOTS)
    assert len(plots) >= 5
    for plot in plots:
        box = plot["box"]
        assert box["width"] > min(width, 400) * 0.8, plot["label"]
        assert box["height"] > 60
        assert plot["label"]
        assert plot["titles"] >= 2
        drawn = [mark for mark in plot["marks"] if mark["width"] + mark["height"] > 0]
        assert len(drawn) >= plot["titles"]
        for mark in drawn:
            assert mark["left"] >= box["left"] - 4, plot["label"]
            assert mark["right"] <= box["right"] + 4, plot["label"]
        for text, place in plot["texts"]:
            assert place["width"] > 0, text
            assert box["left"] - 1 <= place["left"], text
            assert place["right"] <= box["right"] + 1, text
            assert box["top"] - 1 <= place["top"], text
            assert place["bottom"] <= box["bottom"] + 1, text
        for (one, a), (other, b) in combinations(plot["texts"], 2):
            apart = a["right"] <= b["left"] or b["right"] <= a["left"] or a["bottom"] <= b["top"] or b["bottom"] <= a["top"]
            assert apart, f"{one!r} lies on {other!r}: {plot['label']}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read(page_of, html, scheme):
    page = page_of(html, SCREEN, scheme)
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 200
    assert min(contrasts) >= 4.5
    page = page_of(html, PHONE, scheme)
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].map(e => parseFloat(getComputedStyle(e).fontSize)"
        " * e.ownerSVGElement.getScreenCTM().a)"
    )
    assert min(sizes) >= 10, "CSS pixels, on a phone"


def test_plots_follow_the_scheme(page_of, html):
    def colors(page):
        marks = "[...document.querySelectorAll('figure > svg')].map(e => getComputedStyle(e.querySelector('text')).fill)"
        return page.evaluate(marks), page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = colors(page_of(html)), colors(page_of(html, scheme="dark"))
    assert all(a != b for a, b in zip(light[0], dark[0], strict=True))
    assert light[1] != dark[1]
    page = page_of(html, scheme="dark")
    page.emulate_media(media="print")
    assert colors(page) == (light[0], "rgb(255, 255, 255)"), "paper is white, whatever the screen"


def test_on_paper(page_of, html):
    page = page_of(html)
    pdf = page.pdf(format="A4", print_background=True)
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 7
    page.emulate_media(media="print")
    assert not page.locator("summary:visible", has_text="Seconds by stage").count(), "what is closed is not printed"


def test_numbers_open(page_of, html):
    page = page_of(html, PHONE)
    details = page.locator("#curve details")
    assert not details.locator("table").is_visible()
    details.locator("summary").press("Enter")
    assert details.locator("table").is_visible()
    assert details.locator("tbody tr").count() > 10
    open_all(page)
    assert overflow(page) <= 0, "wide tables scroll by themselves"


def test_texts_do_nothing(page_of, make_matrices):
    documents = make_matrices(60, dim=16)
    index = LemurIndex(num_features=32, epochs=0, rank=7, num_candidates=5, ef_search=None)
    index.fit(documents, queries=documents[:20], ids=[f"{NASTY}{'x' * 300}{i}" for i in range(60)])
    page = page_of(report(index, documents[:20], k=5, title=NASTY).html, PHONE)
    assert page.title() == NASTY
    assert page.locator("h1").text_content() == NASTY
    assert not page.locator("script, b").count()
    assert page.locator(".query").count()
    open_all(page)
    assert overflow(page) <= 0, "long ids are broken"


def test_an_index_that_has_learned_nothing(page_of, make_matrices):
    page = page_of(report(LemurIndex().add(make_matrices(30)), make_matrices(3)).html, PHONE)
    assert overflow(page) <= 0
    assert page.locator("figure > svg").count() == 1
    assert "no learned map" in page.locator(".notes").inner_text()
