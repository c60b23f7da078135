"""The native kernels under the address and undefined-behaviour sanitizers, a program per instruction set.

The programs run in every run of the tests, and are compiled again if the kernels, the compiler or its flags
change.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from distaff.model.kernels.native_library import instruction_sets

from ..kept import kept

SOURCES = Path(__file__).parents[2] / "model" / "kernels" / "native"
FLAGS = {
    "portable": ("kPortable", []),
    "avx2": ("kAvx2", ["-mavx2", "-mfma", "-mf16c"]),
    "avxvnni": ("kAvxVnni", ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"]),
    "avx512": ("kAvx512", ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"]),
    "neon_dotprod": ("kNeonDotprod", ["-march=armv8.2-a+dotprod"]),
}
COMPILER = shutil.which("g++")


@pytest.mark.skipif(COMPILER is None, reason="there is no g++")
def test_a_compiler_is_enough_to_have_the_kernels() -> None:
    """So that tests of the native kernels are not skipped where they could run."""
    assert instruction_sets()


@pytest.mark.skipif(COMPILER is None, reason="there is no g++")
@pytest.mark.parametrize("name", instruction_sets())
def test_kernels_touch_nothing_but_their_buffers(name: str) -> None:
    done = subprocess.run([built(name)], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}\n", "")


def built(name: str) -> Path:
    """The program that checks an instruction set's kernels."""
    table, flags = FLAGS[name]
    files = Path(__file__).with_name("native_check.cc"), SOURCES / "sets" / f"{name}.cc"
    common = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    build = [COMPILER, *common, *flags, f"-I{SOURCES}", f"-DTABLE={table}", *files]
    compiler = subprocess.run([COMPILER, "--version"], capture_output=True, check=True).stdout
    sources = [path.read_bytes() for path in (files[0], *sorted(SOURCES.rglob("*.*")))]
    parts = [repr(build).encode(), compiler, *sources]
    return kept(
        "sanitized", "", parts, lambda path: subprocess.run([*build, "-o", path], check=True, timeout=200)
    )
