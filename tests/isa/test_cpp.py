"""The C++ core's own test programs, compiled here; and for 64-bit Arm, run under qemu-user."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = ["kernel_test", "amx_model_test"]

# The sources and flags of CMakeLists.txt; Clang does not know all of GCC's warnings.
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wno-unknown-warning-option", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
CORE = [
    *("cpu.cpp", "features.cpp", "graph.cpp", "int8.cpp", "maxsim.cpp", "products.cpp", "rerank.cpp", "scorer.cpp"),
    "kernels/scalar.cpp",
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
X86 = {
    "kernels/avx2.cpp": AVX2,
    "kernels/avx512.cpp": AVX512,
    "kernels/avx512_vnni.cpp": [*AVX512, "-mavx512vnni"],
    "kernels/amx.cpp": [*AVX512, "-mavx512vnni", "-mamx-tile", "-mamx-int8"],
}
ARM = {"kernels/neon.cpp": [], "kernels/neon_dotprod.cpp": ["-march=armv8.2-a+dotprod"]}


def compile_programs(compiler, kernels, flags, folder):
    """One source at a time, each with its own flags, as CMakeLists.txt does."""
    command = [
        compiler,
        "-std=c++17",
        "-O3",
        "-fno-trapping-math",
        "-fno-math-errno",
        *WARNINGS,
        "-Werror",
        f"-I{ROOT}/cpp/include",
        *flags,
    ]
    objects = []
    for source in [*CORE, *kernels]:
        objects.append(str(folder / (source.replace("/", "_") + ".o")))
        own = kernels.get(source, [])
        subprocess.run([*command, *own, "-c", str(ROOT / "cpp/src" / source), "-o", objects[-1]], check=True)
    for name in PROGRAMS:
        test = str(ROOT / "tests/cpp" / f"{name}.cpp")
        subprocess.run([*command, test, *objects, "-pthread", "-o", str(folder / name)], check=True)
    return folder


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith(" 0 failures\n")
    return result.stdout


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """The folder of the test programs, for this machine."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on the path")
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    kernels, flags = (X86, ["-DLEMUR_ANN_X86"]) if on_x86 else (ARM, ["-DLEMUR_ANN_ARM64"])
    return compile_programs(compiler, kernels, flags, tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """The folder of the test programs, for 64-bit Arm; qemu-aarch64 runs them."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None or shutil.which("qemu-aarch64") is None:
        pytest.skip("needs Debian's g++-aarch64-linux-gnu and qemu-user (.ci/run installs them)")
    return compile_programs(compiler, ARM, ["-DLEMUR_ANN_ARM64", "-static"], tmp_path_factory.mktemp("arm"))


def test_every_source_is_compiled():
    sources = {path.relative_to(ROOT / "cpp/src").as_posix() for path in (ROOT / "cpp/src").rglob("*.cpp")}
    assert sources == {*CORE, *X86, *ARM}
    assert {path.stem for path in (ROOT / "tests/cpp").glob("*.cpp")} == set(PROGRAMS)


def int8_digest(output):
    return re.search(r"int8 digest ([0-9a-f]{16}), ", output).group(1)


def test_native(native):
    output = run(native / "kernel_test")
    assert "scalar " in output
    assert int8_digest(output)


def test_amx_kernel_on_a_model_of_its_tiles(native):
    run(native / "amx_model_test")


@pytest.mark.parametrize(
    ("cpu", "isas"),
    [("max", "neon_dotprod neon scalar "), ("cortex-a53", "neon scalar ")],  # the Cortex-A53 has no dot products
)
def test_neon_under_qemu(native, arm, cpu, isas):
    output = run("qemu-aarch64", "-cpu", cpu, arm / "kernel_test")
    assert output.startswith(isas + "int8 digest ")
    assert int8_digest(output) == int8_digest(run(native / "kernel_test"))  # int8 has the same bits on every processor


def test_amx_kernel_on_a_model_of_its_tiles_under_qemu(arm):
    run("qemu-aarch64", arm / "amx_model_test")
