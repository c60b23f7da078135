"""The real step for devices that need not exist here: traced, lowered, and compiled where that is possible.

Nothing is allocated: parameters, state and inputs are shapes. XLA compiles for TPUs with libtpu (extra
`tpu-aot`), for GPUs with its plugin for CUDA (extra `cuda-aot`); see `compilers.py`. Without them the step is
lowered with an abstract mesh, which applies every lowering rule of the platform but runs no compiler.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, use_abstract_mesh

from ...model.config import ModelConfig
from ...model.kernels.registry import choose
from ...model.parameters import Quantization
from ...model.sharding import AXIS
from ...model.target import Target
from ...model.transformer import Skeleton
from ..device.buckets import Bucket, Shapes
from ..device.executables import Executables
from ..device.steps import create_state
from .chips import Chip, Topology
from .compilers import compile_absent, compiler_of, described_mesh
from .hlo import collectives_of, kernels_of, traffic_of
from .report import Program


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramSpec:
    """The program to build: a model for a mesh, with the sizes of an engine there.

    Attributes:
      pages: of the pool, the trash page not counted.
    """

    config: ModelConfig
    chip: Chip
    topology: Topology
    dtype: str
    quantization: Quantization | None
    int8_cache: bool
    shapes: Shapes
    pages: int


def _abstract_mesh(chip: Chip, topology: Topology) -> AbstractMesh:
    device = AbstractDevice(device_kind=chip.kind, num_cores=1, platform=_lowered_for(chip))
    return AbstractMesh((topology.size,), (AXIS,), axis_types=(AxisType.Auto,), abstract_device=device)


def _lowered_for(chip: Chip) -> str:
    return "cuda" if chip.platform == "gpu" else chip.platform


class ProgramBuilder:
    """Builds the steps of a specification."""

    def __init__(self, spec: ProgramSpec, *, compiles: bool) -> None:
        """`compiles` needs the chip's compiler (see `compilers.can_compile`)."""
        chip, topology = spec.chip, spec.topology
        self._spec = spec
        self._compiles = compiles
        self.mesh = described_mesh(chip, topology) if compiles else _abstract_mesh(chip, topology)
        target = Target(kernels=choose(chip.platform), shards=topology.size, quantization=spec.quantization)
        self.kernels = target.kernels.names
        self._skeleton = Skeleton.of(spec.config, target)
        self._executables = Executables(self._skeleton, spec.shapes, self.mesh)

    @property
    def leaves(self) -> tuple[Any, ...]:
        """The shapes and types of the parameters."""
        return self._skeleton.abstract(jnp.dtype(self._spec.dtype))

    def trace(self, bucket: Bucket) -> jax.stages.Traced:
        """A bucket's step, from abstract shapes."""
        dtype = jnp.dtype(self._spec.dtype)
        shapes, pages = self._spec.shapes, self._spec.pages + 1
        cached = jnp.dtype("int8") if self._spec.int8_cache else dtype
        state = jax.eval_shape(lambda: create_state(self._skeleton, shapes, pages, cached))
        with self._known_mesh():
            return self._executables.trace(bucket, self.leaves, state)

    def lower(self, traced: jax.stages.Traced) -> jax.stages.Lowered:
        """Lowers a step for the platform, on a machine that need not have such a device."""
        if self._compiles and self._spec.chip.platform == "tpu":
            with self._known_mesh():
                return traced.lower()
        with self._known_mesh():
            return traced.lower(lowering_platforms=(_lowered_for(self._spec.chip),))

    def compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        """Compiles a lowered step for devices that need not be here."""
        return compile_absent(lowered, self._spec.chip)

    def _known_mesh(self) -> AbstractContextManager[Any]:
        """Sets the mesh, from which Pallas reads the kind of device."""
        if isinstance(self.mesh, Mesh):
            return jax.set_mesh(self.mesh)
        return use_abstract_mesh(self.mesh)

    def build(self, bucket: Bucket) -> Program:
        """Everything that is known about a bucket's step on this machine.

        Raises:
          jax.errors.JaxRuntimeError: the compiled step does not fit into the devices' memory.
        """
        started = time.monotonic()
        traced = self.trace(bucket)
        kernels, loops = _kernels_and_loops(traced)
        lowered = self.lower(traced)
        if not self._compiles:
            costs = lowered.cost_analysis() or {}
            return Program(
                step=str(bucket),
                how=f"lowered for {_lowered_for(self._spec.chip)}, not compiled",
                seconds=time.monotonic() - started,
                operations=costs.get("flops"),
                accessed=costs.get("bytes accessed"),
                collectives=_traced_collectives(traced),
                kernels=kernels,
                loops=loops,
            )
        compiled = self.compile(lowered)
        text, memory = compiled.as_text() or "", compiled.memory_analysis()
        costs = compiled.cost_analysis() or {}  # XLA has none for a GPU that is not here
        assert isinstance(costs, dict) and memory is not None
        on_tpu = self._spec.chip.platform == "tpu"
        return Program(
            step=str(bucket),
            how=f"compiled by {compiler_of(self._spec.chip)}",
            seconds=time.monotonic() - started,
            arguments=memory.argument_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
            aliased=memory.alias_size_in_bytes,
            code=memory.generated_code_size_in_bytes,
            operations=costs.get("flops"),
            accessed=costs.get("bytes accessed"),
            collectives=collectives_of(text),
            kernels=kernels_of(text) if on_tpu else kernels,
            loops=loops,
            traffic=traffic_of(text) if on_tpu else None,
        )


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a trace; those of called functions once per call, those inside kernels never."""
    for equation in jaxpr.eqns:
        yield equation
        for called in _called(equation):
            yield from _equations(called)


def _called(equation: Any) -> Iterator[Any]:
    """The traces that an equation calls, or selects from."""
    if equation.primitive.name == "pallas_call":
        return
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner


def _kernels_and_loops(traced: jax.stages.Traced) -> tuple[dict[str, int], int]:
    """Custom kernels by name and the number of dynamic loops, which a cost analysis does not include."""
    kernels: Counter[str] = Counter()
    loops = 0
    for equation in _equations(traced.jaxpr.jaxpr):
        if equation.primitive.name == "pallas_call":
            kernels[str(equation.params.get("name") or "pallas_call")] += 1
        loops += equation.primitive.name == "while"
    return dict(kernels), loops


_COLLECTIVES = {
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "ppermute": "collective-permute",
}


def _traced_collectives(traced: jax.stages.Traced) -> tuple[tuple[str, int, int], ...]:
    """`(kind, count, bytes of one result)` in the traced step; of several branches, the smallest counts."""
    found = Counter(_sent(traced.jaxpr.jaxpr))
    return tuple((kind, count, size) for (kind, size), count in found.items())


def _sent(jaxpr: Any) -> Iterator[tuple[str, int]]:
    """The kind and the bytes of each collective in a trace and in the traces that it calls."""
    for equation in jaxpr.eqns:
        if kind := _COLLECTIVES.get(equation.primitive.name):
            yield kind, sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars)
        called = [list(_sent(inner)) for inner in _called(equation)]
        if equation.primitive.name == "cond":
            called = [min(called, key=len)]
        for sent in called:
            yield from sent
