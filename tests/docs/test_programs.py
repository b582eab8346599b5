"""The programs on the pages of docs run as they stand there, from top to bottom, and the commands of lemur-ann between them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = "import subprocess\nsubprocess.run({!r}, shell=True, check=True)\n"

# What the pieces on these pages take for granted.
BEFORE = {
    "guides/report": """\
import lemur_ann
from lemur_ann.demo import load_demo_data

data = load_demo_data()
queries = data.queries
index = lemur_ann.LemurIndex(num_features=256, epochs=0).fit(data.documents, queries=data.training_queries)
""",
    "reliability": """\
import pyarrow.compute as pc
import lemur_ann
from lemur_ann.demo import load_demo_data

data = load_demo_data()
years = [2015 + i % 10 for i in range(600)]
documents = data.documents.append_column("year", [years]).append_column("language", [["en", "fr"] * 300])
training_queries, query = data.training_queries, data.queries[:1]
changed = documents[:5]
with lemur_ann.LemurIndex.open("my_index", num_features=256, epochs=0):
    pass
""",
}

BEFORE["service"] = """\
import atexit, socket, subprocess, time, urllib.request

def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]

subprocess.run(["lemur-ann", "demo", "--epochs", "0", "--out", "packages"], check=True)
ports = free_port(), free_port()
command = ["lemur-ann", "serve", "packages", "--encoder", "demo", "--port", str(ports[0]), "--flight-port", str(ports[1])]
service = subprocess.Popen(command, stderr=subprocess.DEVNULL)
atexit.register(service.kill)
address, flight_address = f"http://localhost:{ports[0]}", f"grpc://localhost:{ports[1]}"
for _ in range(300):
    try:
        urllib.request.urlopen(address + "/readyz")
        break
    except OSError:
        time.sleep(0.1)
"""

# What must be so at the end.
AFTER = {
    "quickstart": """\
from pathlib import Path

assert Path("my_index/manifest.json").exists()
assert len(hits) == 10
""",
}


def program(page: str) -> str:
    """All that a page shows, in the order of the page; other commands than lemur-ann's, such as pip, are left out."""
    blocks = [BEFORE.get(page, "")]
    for language, block in BLOCK.findall((DOCS / f"{page}.md").read_text()):
        if language == "python":
            blocks.append(block)
        elif all(line.startswith("lemur-ann ") for line in block.splitlines()):
            blocks.append(COMMANDS.format(block))
    return "\n".join([*blocks, AFTER.get(page, "")]).strip()


PAGES = [page.relative_to(DOCS).with_suffix("").as_posix() for page in sorted([*DOCS.glob("*.md"), *DOCS.glob("guides/*.md")])]
PROGRAMS = {page: text for page in PAGES if (text := program(page))}


@pytest.mark.parametrize("page", PROGRAMS)
def test_program(page, tmp_path):
    scripts = Path(sys.executable).parent  # where lemur-ann is
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", PROGRAMS[page]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    missing = re.search(r"^(?:ModuleNotFound|Import)Error: (.*(?:No module named|pip install).*)$", done.stderr, re.MULTILINE)
    if missing:
        pytest.skip(missing[1])
    assert done.returncode == 0, done.stderr
