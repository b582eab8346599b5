"""The program on each page of docs/integrations runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "integrations"
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = {page.stem: found[1] for page in sorted(PAGES.glob("*.md")) if (found := PROGRAM.search(page.read_text()))}


@pytest.mark.parametrize("page", PROGRAMS)
def test_program(page, tmp_path):
    command = [sys.executable, "-I", "-c", PROGRAMS[page]]
    environment = {**os.environ, "HAYSTACK_TELEMETRY_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    missing = re.search(r"^(?:ModuleNotFound|Import)Error: (.*(?:No module named|pip install).*)$", done.stderr, re.MULTILINE)
    if missing:
        pytest.skip(missing[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "the program prints nothing"
