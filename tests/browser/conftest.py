"""A headless Chromium for the tests of pages."""

from __future__ import annotations

import os
import shutil

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with playwright.sync_playwright() as started:
        named = os.environ.get("LEMUR_ANN_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        path = named or started.chromium.executable_path
        if not os.path.exists(path):
            pytest.skip("no Chromium: 'playwright install chromium', or Debian's package chromium-headless-shell")
        browser = started.chromium.launch(executable_path=path)
        yield browser
        browser.close()
