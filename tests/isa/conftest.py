"""Compiles and runs the C++ core's own test programs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = ["kernel_test", "amx_model_test", "thread_test"]

# The sources and flags of CMakeLists.txt; Clang does not know all of GCC's warnings.
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wno-unknown-warning-option", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
CORE = [
    *(
        "checks.cpp",
        "codec.cpp",
        "cpu.cpp",
        "features.cpp",
        "graph.cpp",
        "int8.cpp",
        "links.cpp",
        "look.cpp",
        "maxsim.cpp",
        "pooling.cpp",
        "products.cpp",
        "read_ahead.cpp",
        "rerank.cpp",
        "scorer.cpp",
    ),
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


def compile_programs(compiler, kernels, flags, folder, programs=PROGRAMS):
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
        own = ["-ffp-contract=off"] if source in ("codec.cpp", "look.cpp", "pooling.cpp") else kernels.get(source, [])
        subprocess.run([*command, *own, "-c", str(ROOT / "cpp/src" / source), "-o", objects[-1]], check=True)
    for name in programs:
        test = str(ROOT / "tests/cpp" / f"{name}.cpp")
        subprocess.run([*command, test, *objects, "-pthread", "-o", str(folder / name)], check=True)
    return folder


def run(*command, **environment):
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith(" 0 failures\n")
    return result.stdout


def for_this_machine():
    """The compiler, the kernels and their flags."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on the path")
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    kernels, flags = (X86, ["-DLEMUR_ANN_X86"]) if on_x86 else (ARM, ["-DLEMUR_ANN_ARM64"])
    return compiler, kernels, flags


@pytest.fixture(scope="session")
def cpp():
    """What this file has, for tests, which cannot import it."""
    return SimpleNamespace(
        ROOT=ROOT,
        PROGRAMS=PROGRAMS,
        SOURCES={*CORE, *X86, *ARM},
        ARM=ARM,
        compile_programs=compile_programs,
        for_this_machine=for_this_machine,
        run=run,
    )
