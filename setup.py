"""Builds the native CPU kernels where there is a C++ compiler; everything else is in pyproject.toml.

Without a compiler, or without jaxlib's headers, the installation succeeds without them, and XLA's kernels
serve. Each file of kernels is compiled for its own instruction set, so the library runs on other CPUs than
the one that built it: the CPU's best set is chosen at run time.
"""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("model/kernels/native")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno"]
HANDLERS = (
    "handlers",
    "fp8_linear",
    "grouped_linear",
    "row_handlers",
    "draw",
    "experts",
    "zeros",
    "adapters",
)
"""The files of calls, which are the same for every instruction set."""
SETS = {
    "x86_64": {
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avxvnni": ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"],
        "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"],
    },
    "aarch64": {"neon_dotprod": ["-march=armv8.2-a+dotprod"]},
}
"""Machine -> file of kernels -> the compiler's flags for it."""
NEW = ("avxvnni",)
"""Instruction sets that the compiler need not know."""


def headers() -> str:
    """The folder of the headers of XLA's foreign function interface."""
    found = find_spec("jaxlib")
    if found is None or found.origin is None:
        raise CompileError("the native kernels need jaxlib's headers; expected jaxlib to be installed")
    return str(Path(found.origin).parent / "include")


class BuildKernels(build_ext):
    """Compiles each source with its own flags."""

    def build_extension(self, extension: Extension) -> None:
        """Compiles and links the library; the files are compiled in parallel."""
        sets = {"portable": [], **SETS.get(platform.machine(), {})}
        files = {name: [f"-isystem{headers()}"] for name in HANDLERS}
        files |= {f"sets/{name}": flags for name, flags in sets.items()}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = pool.map(self._compile, *zip(*files.items(), strict=True))
            objects = [file for files in compiled for file in files]
        target = self.get_ext_fullpath(extension.name)
        self.compiler.link_shared_object(objects, target, extra_postargs=["-pthread"], target_lang="c++")

    def _compile(self, name: str, flags: list[str]) -> list[str]:
        """The object file of a source, or none if the compiler does not know a new instruction set."""
        try:
            return self.compiler.compile(
                [str(SOURCES / f"{name}.cc")],
                output_dir=self.build_temp,
                extra_postargs=[*FLAGS, *flags],
                depends=[str(path) for path in SOURCES.rglob("*.*")],
            )
        except CompileError:
            if Path(name).name not in NEW:
                raise
            return []


setup(
    ext_modules=[
        Extension(
            "distaff.model.kernels._native",
            sources=sorted(str(path) for path in SOURCES.rglob("*.cc")),
            depends=sorted(str(path) for path in SOURCES.rglob("*.[hi]*")),
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
