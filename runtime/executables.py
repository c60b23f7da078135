"""Every step, compiled before the first request.

Steps are lowered from abstract shapes and kept as `Compiled` objects: calling one with anything but its exact
shapes is an error, never a silent compilation. `CompilationCounter` holds the promise to account.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ..model.transformer import Skeleton
from .buckets import Bucket, Layout, Shapes
from .steps import DeviceState, forget_counts, make_step

Progress = Callable[[int, int], None]
"""Told `(done, total)` after each executable."""

_Tree = TypeVar("_Tree")
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Executables:
    """The compiled steps of an engine, by bucket, and the small one that clears a slot's counts."""

    def __init__(self, skeleton: Skeleton, shapes: Shapes) -> None:
        self._skeleton = skeleton
        self._shapes = shapes
        self._steps: dict[Bucket, jax.stages.Compiled] = {}
        self._forget: jax.stages.Compiled | None = None
        self.layouts = {bucket: Layout(bucket, shapes) for bucket in shapes.buckets()}

    def compile(self, leaves: tuple[jax.Array, ...], state: DeviceState, progress: Progress) -> None:
        """Compiles everything for parameters and a state of these shapes (arrays or abstract)."""
        leaves, state = _abstract(leaves), _abstract(state)
        slot = jax.ShapeDtypeStruct((), jnp.int32)
        self._forget = jax.jit(forget_counts, donate_argnums=0).lower(state, slot).compile()
        for done, (bucket, layout) in enumerate(self.layouts.items(), start=1):
            step = jax.jit(make_step(self._skeleton, bucket, self._shapes), donate_argnums=1)
            buffer = jax.ShapeDtypeStruct((layout.size,), jnp.int32)
            self._steps[bucket] = step.lower(leaves, state, buffer).compile()
            progress(done, len(self.layouts))

    def step(self, bucket: Bucket) -> jax.stages.Compiled:
        """The executable of a bucket."""
        return self._steps[bucket]

    def forget(self, state: DeviceState, slot: int) -> DeviceState:
        """Clears a slot's counts."""
        assert self._forget is not None, "not compiled yet"
        return self._forget(state, np.int32(slot))


def _abstract(tree: _Tree) -> _Tree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


class CompilationCounter:
    """Counts what XLA compiles (or loads from its cache) in this process from `start` on."""

    def __init__(self) -> None:
        self.count = 0
        self._counting = False

    def start(self) -> None:
        """Begins to count."""
        self._counting = True
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def stop(self) -> None:
        """Counts no more, and is forgotten by JAX. Idempotent."""
        if self._counting:
            self._counting = False
            jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILED:
            self.count += 1
