"""What the engine's thread does on the device: holds parameters and state, launches plans, reads samples.

Launching returns before the step has run; reading waits for it. Not thread-safe: after `warm_up` all calls
come from the engine's thread.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ..model.transformer import Skeleton
from .buckets import Bucket, Shapes
from .cluster import meet
from .executables import Executables, Progress
from .packing import has_penalties, pack
from .request import TokenLogprobs
from .sampling import Samples
from .scheduler import Plan, Row, Sequence
from .steps import STATE, DeviceState, create_state


@dataclass(frozen=True, slots=True)
class Flight:
    """A step on its way: what was planned, and the samples that will come."""

    plan: Plan
    samples: Samples


class Followers(Protocol):
    """Hears what is launched here, before it is, and what came of it; see `lockstep.py`."""

    def launch(self, bucket: int, buffer: np.ndarray) -> None: ...

    def forget(self, slot: int) -> None: ...

    def settle(self, token_B: np.ndarray) -> None: ...

    def farewell(self) -> None: ...


class Runner:
    """A model on a mesh of devices, with its KV pool and its compiled steps.

    Attributes:
      shapes, pages: the sizes it is compiled for; the trash page not counted.
      kernels: `(operation, way)` of those that compute.
      slowest_step: seconds of the slowest step during warm-up.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        mesh: Mesh,
        parameters: Mapping[str, jax.Array],
        shapes: Shapes,
        pages: int,
        followers: Followers | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          parameters: placed on the mesh as `model.sharding.placements` says.
          pages: those to hand out; the trash page comes on top.
          followers: other processes that run the same steps on their shares.
        """
        self._followers = followers
        dtype = parameters["embed"].dtype
        self._leaves = skeleton.flatten(parameters)
        self.shapes = shapes
        self._buckets = shapes.buckets()
        self._create_state = jax.jit(
            lambda: create_state(skeleton, shapes, pages + 1, dtype), out_shardings=state_shardings(mesh)
        )
        self._executables = Executables(skeleton, shapes, mesh)
        self.pages = pages
        self.kernels = skeleton.target.kernels.names
        self.slowest_step = 0.0

    def warm_up(self, progress: Progress) -> None:
        """Allocates the pool, compiles every step and runs each once, on padding alone."""
        allocation = _Background(self._create_state)
        self._executables.compile(self._leaves, jax.eval_shape(self._create_state), progress)
        self._state: DeviceState = allocation.result()
        meet()  # so that a step's time is not that of another process's compilation
        for bucket in self._buckets:
            begun = time.monotonic()
            buffer = pack(Plan([]), bucket, self._executables.layouts[bucket], self.shapes)
            self._dispatch(bucket, buffer).token_B.block_until_ready()
            self.slowest_step = max(self.slowest_step, time.monotonic() - begun)
        self.forget(0)

    def launch(self, plan: Plan) -> Flight:
        """Dispatches a step; the device runs it after those launched before."""
        for row in plan.rows:
            if row.start == 0 and has_penalties(row.sequence):
                if self._followers:
                    self._followers.forget(row.slot)
                self.forget(row.slot)
        bucket = self.shapes.choose("decode" if plan.is_decode else "mixed", plan.tokens)
        buffer = pack(plan, bucket, self._executables.layouts[bucket], self.shapes)
        if self._followers:
            self._followers.launch(self._buckets.index(bucket), buffer)
        return Flight(plan, self._dispatch(bucket, buffer))

    def replay(self, bucket: int, buffer: np.ndarray) -> Samples:
        """Dispatches what another process has launched: the bucket's number and its packed inputs."""
        return self._dispatch(self._buckets[bucket], buffer)

    def forget(self, slot: int) -> None:
        """Clears a slot's counts."""
        self._state = self._executables.forget(self._state, slot)

    def close(self) -> None:
        """Lets the followers go; nothing is launched after this. Idempotent."""
        if self._followers:
            self._followers.farewell()

    def _dispatch(self, bucket: Bucket, buffer: np.ndarray) -> Samples:
        self._state, samples = self._executables.step(bucket)(self._leaves, self._state, buffer)
        samples.token_B.copy_to_host_async()
        return samples

    def read(self, flight: Flight) -> Iterator[tuple[Row, int, TokenLogprobs | None]]:
        """Waits for a step; yields each row that samples, its token (-1: not finite) and its logprobs."""
        rows = [(line, row) for line, row in enumerate(flight.plan.rows) if row.samples]
        tokens = np.asarray(flight.samples.token_B)
        if self._followers:
            self._followers.settle(tokens)
        logprob_BX = top_BX = None
        if any(_wanted(row.sequence) is not None for _, row in rows):
            logprob_BX, top_BX = np.asarray(flight.samples.logprob_BX), np.asarray(flight.samples.top_BX)
        for line, row in rows:
            report, wanted = None, _wanted(row.sequence)
            if wanted is not None and logprob_BX is not None and top_BX is not None:
                report = _report(logprob_BX[line], top_BX[line], wanted)
            yield row, int(tokens[line]), report


def state_shardings(mesh: Mesh) -> DeviceState:
    """How the state lies on a mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), STATE)


def _wanted(sequence: Sequence) -> int | None:
    return sequence.request.params.logprobs


def _report(logprob_X: np.ndarray, top_X: np.ndarray, wanted: int) -> TokenLogprobs:
    pairs = zip(top_X[:wanted].tolist(), logprob_X[1 : 1 + wanted].tolist(), strict=True)
    return TokenLogprobs(chosen=float(logprob_X[0]), top=tuple(pairs))


class _Background:
    """A computation in a thread of its own; its result or its exception is collected once."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._outcome: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(compute,), daemon=True).start()

    def _run(self, compute: Callable[[], Any]) -> None:
        try:
            self._outcome.put((jax.block_until_ready(compute()), None))
        except Exception as error:
            self._outcome.put((None, error))

    def result(self) -> Any:
        """Waits for the outcome."""
        value, error = self._outcome.get()
        if error is not None:
            raise error
        return value
