"""The service's page for people, in headless Chromium."""

from __future__ import annotations

import json

import pytest

from lemur_ann import LemurIndex, TextIndex
from lemur_ann.encoders import Encoder
from lemur_ann.service.access import new_key
from lemur_ann.service.hosted import Hosted
from tests.service.serving import served, words_encoder

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

see = playwright.expect  # which waits; the page's policy lets nothing be evaluated in it
NASTY = "<img src=x onerror=\"document.title='run'\"> red fox"


def encoder():
    encode, _ = words_encoder()

    def split(texts):
        return [text.split() for text in texts]

    return Encoder(encode, encode, split, split)


@pytest.fixture
def animals(tmp_path):
    with LemurIndex.open(tmp_path / "animals") as index:
        TextIndex(encoder(), index).add(
            ["a red fox", "a blue whale", NASTY, "an old owl"], ids=["fox", "whale", "nasty", "owl"]
        )
    return tmp_path / "animals"


def test_people_ask_and_see_what_matched(browser, animals):
    with served(Hosted("animals", animals, encoder=encoder())) as address:
        page = browser.new_page()
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.goto(address)
        see(page.locator("#about")).to_contain_text("4 documents")
        page.fill("#query", "red fox")
        page.fill("#k", "3")
        page.press("#query", "Enter")
        see(page.locator("#hits li")).to_have_count(3)
        see(page.locator("#hits li").first.locator("mark").nth(1)).to_be_visible()
        first = page.locator("#hits li").first
        assert first.locator(".id").inner_text() in ("fox", "nasty")
        assert {mark.strip() for mark in first.locator("mark").all_inner_texts()} >= {"red", "fox"}
        assert "exact rank 1 of 4" in first.inner_text()
        assert "hits of version" in page.inner_text("#about")
        assert NASTY.split()[0] in page.inner_text("#hits")  # shown, and not run
        assert page.title() == "lemur_ann"
        page.fill("#filter", json.dumps({"nope": 1}))
        page.press("#query", "Enter")
        see(page.locator("#problem")).to_contain_text("no column 'nope'")
        assert [fault for fault in faults if "Failed to load resource" not in fault] == []  # the 400, and no icon
        page.close()


def test_with_keys_it_asks_for_one(browser, animals, tmp_path):
    secret = new_key(tmp_path / "keys.json", "person", ["animals"], "read")
    with served(Hosted("animals", animals, encoder=encoder()), keys=tmp_path / "keys.json") as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#key:not([hidden])")
        page.fill("#key", secret)
        page.press("#key", "Tab")
        see(page.locator("#about")).to_contain_text("4 documents")
        page.fill("#query", "old owl")
        page.press("#query", "Enter")
        see(page.locator("#hits li")).to_have_count(4)
        assert page.locator("#hits li .id").first.inner_text() == "owl"
        page.close()
