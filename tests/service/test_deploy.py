"""Files to run a service from fit what the package needs."""

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"

if sys.version_info >= (3, 11):
    import tomllib
else:
    pytest.skip("Python 3.10 has no tomllib", allow_module_level=True)


def test_the_image_has_all_but_what_learning_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    expected = {one for one in needed if not one.startswith(("torch", "hnswlib"))}
    line = next(line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if '"fastapi' in line)
    assert set(re.findall(r'"([^"]+)"', line)) == expected


def test_compose_and_systemd_name_commands_that_there_are():
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["lemur_ann"]
    assert (ROOT / composed["build"]["dockerfile"]).exists()
    unit = (DEPLOY / "lemur-ann.service").read_text()
    from typer.main import get_command

    from lemur_ann.cli import app

    options = {option for param in get_command(app).commands["serve"].params for option in param.opts}
    used = {word for word in [*composed["command"], *unit.split()] if word.startswith("--")}
    assert used
    assert used <= options
