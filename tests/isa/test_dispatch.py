"""The choice of an instruction set, as a user makes it: by environment variable, in a new process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lemur_ann import _core, maxsim

ALL = ["amx", "avx512_vnni", "avx512", "avx2", "neon_dotprod", "neon", "scalar"]
PROGRAM = "import lemur_ann.maxsim as m; print(m.active_isa(), m.scores([[1.0, 2.0]], [[3.0, 4.0]], [0, 1])[0])"


def run(isa):
    environment = {**os.environ, "LEMUR_ANN_ISA": isa}
    # -I keeps a source tree in the working directory from standing in for the installed package
    command = [sys.executable, "-I", "-c", PROGRAM]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", _core.supported_isas())
def test_forced(name):
    result = run(name)
    assert result.stdout.split() == [name, "11.0"], result.stderr


def test_default_is_the_fastest():
    assert run("").stdout.split()[0] == maxsim.supported_isas()[0]


def test_unknown_is_an_error():
    result = run("avx1024")
    assert result.returncode != 0
    assert "LEMUR_ANN_ISA is 'avx1024', which is not an instruction set; expected one of: " in result.stderr


@pytest.mark.parametrize("name", [name for name in ALL if name not in _core.supported_isas()])
def test_unsupported_is_an_error(name):
    result = run(name)
    assert result.returncode != 0
    assert f"LEMUR_ANN_ISA is '{name}', which this machine does not support" in result.stderr


def test_fastest_first():
    assert _core.supported_isas() == [name for name in ALL if name in _core.supported_isas()]


def test_every_machine_has_scalar():
    assert maxsim.supported_isas()[-1] == "scalar"
