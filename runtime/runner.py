"""What the engine's thread does on the device: holds parameters and state, launches plans, reads samples.

Launching returns before the step has run; reading waits for it. Not thread-safe: after `warm_up` all calls
come from the engine's thread, but for `compile_rest`, which may work beside it: what it has compiled lies
ready for `adopt`.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ..model.transformer import Skeleton
from .buckets import Bucket, Shapes, choose
from .cluster import meet
from .executables import Executables, Progress
from .ledger import Sampled
from .packing import pack, sampling_lines
from .request import TokenLogprobs
from .sampling import Samples
from .sequence import Plan, Row
from .steps import STATE, DeviceState, create_state


@dataclass(frozen=True, slots=True)
class Flight:
    """A step on its way: what was planned, in which bucket, when (`time.monotonic`), and what will come."""

    plan: Plan
    bucket: Bucket
    launched: float
    samples: Samples

    @property
    def done(self) -> bool:
        """Whether the device has finished it."""
        # Every array of JAX's has the method; `jax.Array` does not declare it.
        return bool(self.samples.token_B.is_ready())  # type: ignore[attr-defined]


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
      ready: the buckets that can be launched, with the seconds of a trial run on padding.
      slowest_step: seconds of the slowest step so far on padding alone.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        mesh: Mesh,
        parameters: Mapping[str, jax.Array],
        shapes: Shapes,
        pages: int,
        cache_dtype: jnp.dtype,
        followers: Followers | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          parameters: placed on the mesh as `model.sharding.placements` says.
          pages: those to hand out; the trash page comes on top. cache_dtype: of keys and values in them.
          followers: other processes that run the same steps on their shares.
        """
        self._followers = followers
        self._together = mesh.is_multi_process
        self._leaves = skeleton.flatten(parameters)
        self.shapes = shapes
        self._buckets = shapes.buckets()
        self._create_state = jax.jit(
            lambda: create_state(skeleton, shapes, pages + 1, cache_dtype),
            out_shardings=state_shardings(mesh),
        )
        self._executables = Executables(skeleton, shapes, mesh)
        self.pages = pages
        self.kernels = skeleton.target.kernels.names
        self.ready: dict[Bucket, float] = {}
        self.slowest_step = 0.0
        self._compiled: queue.SimpleQueue[Bucket] = queue.SimpleQueue()

    def warm_up(self, progress: Progress) -> None:
        """Allocates the pool, compiles the step that suffices for any request and runs it.

        Several processes compile all of them, for they must launch the same ones.
        """
        count = len(self._buckets) if self._together else 1
        allocation = _Background(self._create_state)
        self._abstract_state = jax.eval_shape(self._create_state)
        self._executables.compile(self._buckets[:count], self._leaves, self._abstract_state, progress)
        self._state: DeviceState = allocation.result()
        meet()  # so that a step's time is not that of another process's compilation
        for bucket in self._buckets[:count]:
            self._try(bucket)
        self.forget(0)

    def compile_rest(self, stop: threading.Event) -> None:
        """Compiles what `warm_up` has left out, for `adopt`, until it is told to stop.

        In the end all steps are to be tried again: a trial takes longer while another step is compiled.
        """
        missing = [bucket for bucket in self._buckets if bucket not in self.ready]
        for bucket in missing:
            if stop.is_set():
                return
            self._executables.compile([bucket], self._leaves, self._abstract_state, lambda *_: None)
            self._compiled.put(bucket)
        for bucket in self._buckets if missing else []:
            self._compiled.put(bucket)

    @property
    def has_news(self) -> bool:
        """Whether there is something to `adopt`."""
        return not self._compiled.empty()

    def adopt(self) -> tuple[Bucket, float]:
        """Makes a compiled step ready, having tried it on padding; returns its seconds."""
        bucket = self._compiled.get()
        return bucket, self._try(bucket)

    def _try(self, bucket: Bucket) -> float:
        """Seconds of a step of padding alone, and the bucket is ready. Where it is the only trial, the second
        run counts: the first one takes longer."""
        buffer = pack(Plan([]), bucket, self._executables.layouts[bucket], self.shapes)
        if self._together:
            self._dispatch(bucket, buffer).token_B.block_until_ready()
        begun = time.monotonic()
        self._dispatch(bucket, buffer).token_B.block_until_ready()
        seconds = time.monotonic() - begun
        self.slowest_step = max(self.slowest_step, seconds)
        self.ready[bucket] = seconds
        return seconds

    def launch(self, plan: Plan) -> Flight:
        """Dispatches a step; the device runs it after those launched before."""
        for row in plan.rows:
            if row.first and row.sequence.has_penalties:
                if self._followers:
                    self._followers.forget(row.slot)
                self.forget(row.slot)
        kind = "decode" if plan.is_decode or self.shapes.single else "mixed"
        bucket = choose(self.ready, kind, plan.tokens)
        buffer = pack(plan, bucket, self._executables.layouts[bucket], self.shapes)
        if self._followers:
            self._followers.launch(self._buckets.index(bucket), buffer)
        return Flight(plan, bucket, time.monotonic(), self._dispatch(bucket, buffer))

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

    def read(self, flight: Flight) -> list[tuple[Row, Sampled]]:
        """Waits for a step; each row that samples, with its samples."""
        tokens = np.asarray(flight.samples.token_B)
        if self._followers:
            self._followers.settle(tokens)
        lines = sampling_lines(flight.plan, flight.bucket)
        rows = [(row, at) for row, at in zip(flight.plan.rows, lines, strict=True) if row.samples]
        reports: dict[int, TokenLogprobs] = {}
        if any(row.sequence.request.params.logprobs is not None for row, _ in rows):
            reports = _reports(rows, np.asarray(flight.samples.logprob_BX), np.asarray(flight.samples.top_BX))
        return [(row, [(int(tokens[line]), reports.get(line)) for line in at]) for row, at in rows]


def state_shardings(mesh: Mesh) -> DeviceState:
    """How the state lies on a mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), STATE)


def _reports(
    rows: list[tuple[Row, range]], logprob_BX: np.ndarray, top_BX: np.ndarray
) -> dict[int, TokenLogprobs]:
    """By line, what the rows that want log-probabilities hear."""
    reports = {}
    for row, lines in rows:
        wanted = row.sequence.request.params.logprobs
        if wanted is None:
            continue
        for line in lines:
            pairs = zip(
                top_BX[line, :wanted].tolist(), logprob_BX[line, 1 : 1 + wanted].tolist(), strict=True
            )
            reports[line] = TokenLogprobs(chosen=float(logprob_BX[line, 0]), top=tuple(pairs))
    return reports


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
