"""Keeps what compilers for absent devices make of a step, because that takes half a minute and more.

The files are beside JAX's compilation cache, under a digest of everything that determines them: the step with
its names and source lines, the topology, the versions and the compiler's flags. It is compiled again only if
one of them changes.
"""

import gzip
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax

from distaff.runtime.capacity.compilers import compiler_of, compiler_options
from distaff.runtime.capacity.program import ProgramBuilder, ProgramSpec

from ...kept import kept

LOCATIONS = {"jax_hlo_source_file_canonicalization_regex": ".*/", "jax_traceback_in_locations_limit": 2}
"""JAX's settings for the source locations of a lowered step: files without their folders, and so few callers
of an operation that no test is among them. So equal code has equal digests, whoever traces it."""
SIZES = tuple(f"{name}_size_in_bytes" for name in ("argument", "temp", "alias", "generated_code"))


class KeptStep:
    """A lowered step. `compile` reads its result from a file if the same step has been compiled before.

    Attributes:
      assembled: for a GPU, the report of ptxas on each of XLA's files of kernels, by their names.
    """

    assembled: dict[str, str]

    def __init__(self, lowered: jax.stages.Lowered, spec: ProgramSpec, options: Mapping[str, bool]) -> None:
        versions = version("jax"), version("jaxlib"), compiler_of(spec.chip)
        flags = (os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))
        further = [f"{name}={value}" for name, value in options.items()]
        self._parts = (lowered.as_text(debug_info=True), str(spec.topology), *versions, *flags, *further)
        self._lowered, self._options = lowered, options
        self._chip = spec.chip
        self._content: dict[str, Any] = {}

    def compile(self, compiler_options: dict[str, str | bool] | None = None) -> "KeptStep":
        """Compiles if there is no file, and reads it."""

        def write(path: Path) -> None:
            content = self._compiled(compiler_options)
            path.write_bytes(gzip.compress(json.dumps(content).encode(), 1))

        path = kept("absent-devices", ".json.gz", (part.encode() for part in self._parts), write)
        self._content = json.loads(gzip.decompress(path.read_bytes()))
        self.assembled = self._content["assembled"]
        return self

    def _compiled(self, options: dict[str, str | bool] | None) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            if options is not None:  # only the options for GPUs are given
                options = options | self._options | {"xla_dump_to": folder, "xla_gpu_dump_llvmir": True}
            compiled = self._lowered.compile(compiler_options=options)
            assembled = dict(map(self._assembled, Path(folder).glob("*.ptx")))
        memory = compiled.memory_analysis()
        return {
            "text": compiled.as_text(),
            "costs": compiled.cost_analysis(),
            "sizes": {name: getattr(memory, name) for name in SIZES},
            "assembled": assembled,
        }

    def _assembled(self, path: Path) -> tuple[str, str]:
        """The names of the kernels in a file of PTX, and what ptxas reports of them."""
        options, text = compiler_options(self._chip), path.read_text()
        target = re.search(r"^\.target (\w+)", text, re.MULTILINE)
        assert options is not None and target is not None
        ptxas = Path(str(options["xla_gpu_cuda_data_dir"])) / "bin" / "ptxas"
        command = [ptxas, f"-arch={target[1]}", "-v", path, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return " ".join(re.findall(r"\.entry (\w+)", text)), done.stdout + done.stderr

    def as_text(self) -> str:
        return self._content["text"]

    def cost_analysis(self) -> dict[str, float]:
        return self._content["costs"]

    def memory_analysis(self) -> SimpleNamespace:
        return SimpleNamespace(**self._content["sizes"])


class KeepingBuilder(ProgramBuilder):
    """A builder that keeps what the compiler returns; `options` are further ones of XLA, for a GPU."""

    options: Mapping[str, bool] = {}

    def lower(self, traced: jax.stages.Traced) -> Any:
        """Lowers with LOCATIONS."""
        before = {name: jax.config.values[name] for name in LOCATIONS}
        _configure(LOCATIONS)
        try:
            return KeptStep(super().lower(traced), self._spec, self.options)
        finally:
            _configure(before)


def _configure(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
