"""The C++ core's own test program, compiled here; and for 64-bit Arm, run under qemu-user."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CORE = ["cpu.cpp", "maxsim.cpp", "products.cpp", "kernels/scalar.cpp"]


def compile_and_run(compiler, kernels, flags, tmp_path, runner=()):
    """One source at a time, each with its own flags, as CMakeLists.txt does."""
    objects = []
    for source in [*CORE, *kernels]:
        objects.append(tmp_path / (source.replace("/", "_") + ".o"))
        own = kernels.get(source, [])
        command = [
            compiler,
            "-std=c++17",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-uninitialized",
            "-Wno-maybe-uninitialized",
            f"-I{ROOT}/cpp/include",
            *flags,
            *own,
        ]
        subprocess.run([*command, "-c", str(ROOT / "cpp/src" / source), "-o", str(objects[-1])], check=True)
    program = tmp_path / "kernel_test"
    test = ROOT / "tests/cpp/kernel_test.cpp"
    command = [compiler, "-std=c++17", "-O2", f"-I{ROOT}/cpp/include", *flags, str(test), *map(str, objects)]
    subprocess.run([*command, "-pthread", "-o", str(program)], check=True)
    result = subprocess.run([*runner, str(program)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_native(tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on the path")
    if platform.machine() in ("x86_64", "AMD64"):
        avx512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]
        kernels = {"kernels/avx2.cpp": ["-mavx2", "-mfma", "-mf16c"], "kernels/avx512.cpp": avx512}
        flags = ["-DLEMUR_ANN_X86"]
    else:
        kernels, flags = {"kernels/neon.cpp": []}, ["-DLEMUR_ANN_ARM64"]
    output = compile_and_run(compiler, kernels, flags, tmp_path)
    assert "scalar" in output
    assert output.endswith("0 failures\n")


def test_neon_under_qemu(tmp_path):
    compiler, qemu = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or qemu is None:
        pytest.skip("needs Debian's g++-aarch64-linux-gnu and qemu-user (.ci/run installs them)")
    flags = ["-DLEMUR_ANN_ARM64", "-static"]
    output = compile_and_run(compiler, {"kernels/neon.cpp": []}, flags, tmp_path, [qemu])
    assert output.startswith("neon scalar ")
    assert output.endswith("0 failures\n")
