"""The compiled steps; no request ever waits for a compilation.

Steps are lowered from abstract shapes and kept as `Compiled` objects: a call with other shapes is an error,
never a silent compilation. The first few steps are enough for any request; the others can be compiled while
those serve. `CompilationCounter` checks that the engine's thread compiles nothing.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ...model.lora import AdapterShapes, Stacks
from ...model.sharding import REPLICATED, over_shares
from ...model.transformer import Skeleton
from .buckets import Bucket, Layout, Shapes
from .steps import STATE, DeviceState, make_step, prepare_slot, put_adapter

Progress = Callable[[int, int], None]
"""Called with `(done, total)` after each executable."""

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Executables:
    """The compiled steps of an engine, by bucket, and the small program that prepares a slot."""

    def __init__(
        self,
        skeleton: Skeleton,
        shapes: Shapes,
        mesh: Mesh | AbstractMesh,
        adapters: AdapterShapes | None = None,
    ) -> None:
        """Compiles nothing yet; `adapters`: of the adapted buckets."""
        self._skeleton, self._adapters = skeleton, adapters
        self._shapes = shapes
        self._mesh = mesh
        self._steps: dict[Bucket, jax.stages.Compiled] = {}
        self._prepare: jax.stages.Compiled | None = None
        self._put: jax.stages.Compiled | None = None
        self.layouts = {bucket: Layout(bucket, shapes) for bucket in shapes.buckets()}

    def compile(
        self, buckets: Sequence[Bucket], leaves: tuple[Any, ...], state: DeviceState, progress: Progress
    ) -> None:
        """Compiles the steps of some buckets for parameters and a state of these shapes, or abstract ones."""
        if self._prepare is None:
            self._prepare = self._trace_prepare(state).lower().compile()
            self._put = self._trace_put(self._adapters).lower().compile() if self._adapters else None
        for done, bucket in enumerate(buckets, start=1):
            self._steps[bucket] = self.lower(bucket, leaves, state).compile()
            progress(done, len(buckets))

    def lower(self, bucket: Bucket, leaves: tuple[Any, ...], state: DeviceState) -> jax.stages.Lowered:
        """A bucket's step, lowered for parameters and a state of these shapes."""
        return self.trace(bucket, leaves, state).lower()

    def trace(self, bucket: Bucket, leaves: tuple[Any, ...], state: DeviceState) -> jax.stages.Traced:
        """A bucket's step as a JAX trace; the mesh can be an abstract one."""
        step = make_step(self._skeleton, bucket, self._shapes)
        buffer = jax.ShapeDtypeStruct((self.layouts[bucket].size,), jnp.int32)
        arguments, specs = leaves, self._skeleton.specs()
        if bucket.adapted:
            assert self._adapters is not None, "a bucket with adapters, but no sizes of them"
            arguments, specs = (leaves, self._adapters.abstract()), (specs, self._adapters.specs())
        every = specs, STATE, REPLICATED
        return trace(step, self._mesh, (arguments, state, buffer), every, (STATE, REPLICATED), 1)

    def _trace_prepare(self, state: DeviceState) -> jax.stages.Traced:
        size = self._skeleton.config.vocabulary
        slot = jax.ShapeDtypeStruct((), jnp.int32)
        tables = [jax.ShapeDtypeStruct((size,), kind) for kind in (jnp.int32, jnp.float32, jnp.uint8)]
        specs = (STATE, *[REPLICATED] * 4)
        return trace(prepare_slot, self._mesh, (state, slot, *tables), specs, STATE, 0)

    def _trace_put(self, adapters: AdapterShapes) -> jax.stages.Traced:
        stacks, specs = adapters.abstract(), adapters.specs()
        one = jax.tree.map(lambda stack: jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype), stacks)
        without = jax.tree.map(lambda spec: PartitionSpec(*spec[1:]), specs)
        place = jax.ShapeDtypeStruct((), jnp.int32)
        return trace(put_adapter, self._mesh, (stacks, place, one), (specs, REPLICATED, without), specs, 0)

    def put(self, stacks: Stacks, place: int, adapter: Any) -> Stacks:
        """The stacks with another adapter in a place; consumes them."""
        assert self._put is not None, "not compiled yet, or without adapters"
        return self._put(stacks, np.int32(place), adapter)

    def step(self, bucket: Bucket) -> jax.stages.Compiled:
        """The executable of a bucket."""
        return self._steps[bucket]

    def prepare(
        self,
        state: DeviceState,
        slot: int,
        counts_V: np.ndarray,
        bias_V: np.ndarray,
        marks_V: np.ndarray,
    ) -> DeviceState:
        """Prepares a slot for a sequence that adjusts logits."""
        assert self._prepare is not None, "not compiled yet"
        return self._prepare(state, np.int32(slot), counts_V, bias_V, marks_V)


def trace(
    function: Callable[..., Any],
    mesh: Mesh | AbstractMesh,
    arguments: Any,
    specs: Any,
    out_specs: Any,
    donated: int | tuple[()] = (),
) -> jax.stages.Traced:
    """Traces a function of one device's share, mapped over the mesh; argument `donated` is donated."""
    mapped = over_shares(function, mesh, specs, out_specs)
    return jax.jit(mapped, donate_argnums=donated).trace(*_abstract(arguments, specs, mesh))


def _abstract(tree: Any, specs: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Shapes and types of a tree's arrays, with shardings from `specs`, a tree or a prefix of one."""

    def place(spec: PartitionSpec, part: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part)

    return jax.tree.map(place, specs, tree)


class CompilationCounter:
    """Counts what XLA compiles (or loads from its cache) on one thread, from `start` on."""

    def __init__(self) -> None:
        self.count = 0
        self._counting = False
        self._thread: threading.Thread | None = None

    def start(self, thread: threading.Thread) -> None:
        """Starts to count compilations on this thread."""
        self._counting, self._thread = True, thread
        jax.monitoring.register_event_duration_secs_listener(self._count_compilation)

    def stop(self) -> None:
        """Stops counting and unregisters the listener. Idempotent."""
        if self._counting:
            self._counting = False
            jax.monitoring.unregister_event_duration_listener(self._count_compilation)

    def _count_compilation(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILED and threading.current_thread() is self._thread:
            self.count += 1
