"""The C++ core's own test programs, compiled here; and for 64-bit Arm, run under qemu-user."""

from __future__ import annotations

import re
import shutil

import pytest


@pytest.fixture(scope="module")
def native(cpp, tmp_path_factory):
    """The folder of the test programs, for this machine."""
    return cpp.compile_programs(*cpp.for_this_machine(), tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def arm(cpp, tmp_path_factory):
    """The folder of the test programs, for 64-bit Arm; qemu-aarch64 runs them."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None or shutil.which("qemu-aarch64") is None:
        pytest.skip("needs Debian's g++-aarch64-linux-gnu and qemu-user (.ci/run installs them)")
    return cpp.compile_programs(compiler, cpp.ARM, ["-DLEMUR_ANN_ARM64", "-static"], tmp_path_factory.mktemp("arm"))


def test_every_source_is_compiled(cpp):
    sources = {path.relative_to(cpp.ROOT / "cpp/src").as_posix() for path in (cpp.ROOT / "cpp/src").rglob("*.cpp")}
    assert sources == cpp.SOURCES
    assert {path.stem for path in (cpp.ROOT / "tests/cpp").glob("*.cpp")} == set(cpp.PROGRAMS)


def int8_digest(output):
    return re.search(r"int8 digest ([0-9a-f]{16}), ", output).group(1)


def test_native(cpp, native):
    output = cpp.run(native / "kernel_test")
    assert "scalar " in output
    assert int8_digest(output)


def test_amx_kernel_on_a_model_of_its_tiles(cpp, native):
    cpp.run(native / "amx_model_test")


def test_many_threads(cpp, native):
    assert "scalar " in cpp.run(native / "thread_test")


@pytest.mark.parametrize(
    ("cpu", "isas"),
    [("max", "neon_dotprod neon scalar "), ("cortex-a53", "neon scalar ")],  # the Cortex-A53 has no dot products
)
def test_neon_under_qemu(cpp, native, arm, cpu, isas):
    output = cpp.run("qemu-aarch64", "-cpu", cpu, arm / "kernel_test")
    assert output.startswith(isas + "int8 digest ")
    assert int8_digest(output) == int8_digest(cpp.run(native / "kernel_test"))  # int8 has the same bits on every processor


def test_amx_kernel_on_a_model_of_its_tiles_under_qemu(cpp, arm):
    cpp.run("qemu-aarch64", arm / "amx_model_test")


def test_many_threads_under_qemu(cpp, arm):
    cpp.run("qemu-aarch64", "-cpu", "max", arm / "thread_test")
