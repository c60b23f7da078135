"""The real step for devices that need not exist here: traced, lowered, and for TPUs compiled.

Nothing is allocated: parameters, state and inputs are shapes. With libtpu installed (extra `tpu-aot`) XLA
compiles for a TPU topology without a TPU. For other platforms the step is lowered with an abstract mesh,
which applies every lowering rule of the platform but does not run its compiler.
"""

import importlib.util
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
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
from .hlo import collectives_of, kernels_of, traffic_of
from .report import Program

_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
"""libtpu contacts no metadata server, allows another copy of itself on the host, and logs nothing."""


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


def can_compile(chip: Chip) -> bool:
    """Whether the compiler for this chip is installed."""
    return chip.platform == "tpu" and importlib.util.find_spec("libtpu") is not None


def topology_mesh(topology: Topology) -> Mesh:
    """The devices of a TPU topology, as libtpu describes them, in one row."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": (1, 1, 1)} if topology.size == 1 else {}
    with _own_signals():
        found = topologies.get_topology_desc(platform="tpu", topology_name=str(topology), **options)
    return Mesh(np.array(found.devices), (AXIS,), axis_types=(AxisType.Auto,))


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restores the handler of SIGTERM: libtpu sets one that prints a stack trace when it is loaded."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _abstract_mesh(chip: Chip, topology: Topology) -> AbstractMesh:
    device = AbstractDevice(device_kind=chip.kind, num_cores=1, platform=_lowered_for(chip))
    return AbstractMesh((topology.size,), (AXIS,), axis_types=(AxisType.Auto,), abstract_device=device)


def _lowered_for(chip: Chip) -> str:
    return "cuda" if chip.platform == "gpu" else chip.platform


class ProgramBuilder:
    """Builds the steps of a specification."""

    def __init__(self, spec: ProgramSpec, *, compiles: bool) -> None:
        """`compiles` needs libtpu (see `can_compile`)."""
        chip, topology = spec.chip, spec.topology
        self._spec = spec
        self._compiles = compiles
        self.mesh = topology_mesh(topology) if compiles else _abstract_mesh(chip, topology)
        target = Target(kernels=choose(chip.platform), shards=topology.size, quantization=spec.quantization)
        self.kernels = target.kernels.names
        self._skeleton = Skeleton.of(spec.config, target)
        self._executables = Executables(self._skeleton, spec.shapes, self.mesh)

    def trace(self, bucket: Bucket) -> jax.stages.Traced:
        """A bucket's step, from abstract shapes."""
        dtype = jnp.dtype(self._spec.dtype)
        shapes, pages = self._spec.shapes, self._spec.pages + 1
        cached = jnp.dtype("int8") if self._spec.int8_cache else dtype
        state = jax.eval_shape(lambda: create_state(self._skeleton, shapes, pages, cached))
        with self._known_mesh():
            return self._executables.trace(bucket, self._skeleton.abstract(dtype), state)

    def lower(self, traced: jax.stages.Traced) -> jax.stages.Lowered:
        """Lowers a step for the platform, on a machine that need not have such a device."""
        if self._compiles:
            with self._known_mesh():
                return traced.lower()
        with self._known_mesh():
            return traced.lower(lowering_platforms=(_lowered_for(self._spec.chip),))

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
        with _uncached():
            compiled = lowered.compile()
        text, costs, memory = compiled.as_text() or "", compiled.cost_analysis(), compiled.memory_analysis()
        assert isinstance(costs, dict) and memory is not None
        return Program(
            step=str(bucket),
            how=f"compiled by libtpu {version('libtpu')}",
            seconds=time.monotonic() - started,
            arguments=memory.argument_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
            aliased=memory.alias_size_in_bytes,
            code=memory.generated_code_size_in_bytes,
            operations=costs.get("flops"),
            accessed=costs.get("bytes accessed"),
            collectives=collectives_of(text),
            kernels=kernels_of(text),
            loops=loops,
            traffic=traffic_of(text),
        )


@contextmanager
def _uncached() -> Iterator[None]:
    """Turns JAX's cache off, because it could not load programs for devices that are not here."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


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
