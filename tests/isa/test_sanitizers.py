"""The C++ core's own test programs under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import subprocess

import pytest

MEMORY = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREADS = ["-fsanitize=thread"]
# Sanitized code gives false warnings; frame pointers and lines are for the report.
FLAGS = ["-O1", "-g1", "-fno-omit-frame-pointer", "-Wno-error"]


@pytest.fixture(scope="module")
def sanitized(cpp, tmp_path_factory):
    """(flags) -> the folder of the test programs, compiled with them when first asked for."""
    compiler, kernels, flags = cpp.for_this_machine()
    known = {}

    def folder_of(sanitizer, programs):
        name = sanitizer[0]
        if name not in known:
            folder = tmp_path_factory.mktemp("sanitized")
            check_sanitizer(compiler, sanitizer, folder)
            known[name] = cpp.compile_programs(compiler, kernels, [*flags, *FLAGS, *sanitizer], folder, programs)
        return known[name]

    return folder_of


def check_sanitizer(compiler, sanitizer, folder):
    """Skips where the compiler has no such sanitizer, or it does not work on this machine."""
    source, program = folder / "try.cpp", folder / "try"
    source.write_text("#include <thread>\nint main() { std::thread([] {}).join(); }\n")
    for command in ([compiler, *sanitizer, str(source), "-pthread", "-o", str(program)], [str(program)]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            pytest.skip(f"{sanitizer[0]} does not work here: {(result.stderr.strip() or 'no message').splitlines()[-1]}")


@pytest.mark.parametrize("program", ["kernel_test", "amx_model_test", "thread_test"])
def test_memory_and_undefined_behaviour(cpp, sanitized, program):
    cpp.run(sanitized(MEMORY, cpp.PROGRAMS) / program, UBSAN_OPTIONS="print_stacktrace=1")


@pytest.mark.parametrize("program", ["kernel_test", "thread_test"])
def test_races(cpp, sanitized, program):
    cpp.run(sanitized(THREADS, ["kernel_test", "thread_test"]) / program, TSAN_OPTIONS="halt_on_error=1")
