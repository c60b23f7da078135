"""The engine's work on the device: holds parameters and state, launches plans, reads samples.

Launching returns before the step has run; reading waits for it. Not thread-safe: after `warm_up` all calls
come from the engine's thread, except `compile_rest`, which can run in another thread. The engine's thread
adds its results with `add_compiled`.
"""

import queue
import threading
import time
from dataclasses import replace
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ...model.lora import AdapterShapes, Stacks, create_stacks
from ...model.transformer import Skeleton
from ..policy.adapters import HostAdapter
from ..policy.host_pages import HostPages
from ..policy.output_processor import Sampled
from ..policy.sequence import Plan, Row
from ..threads import Background, wait_for
from .buckets import Bucket, Shapes, choose
from .executables import Executables, Progress
from .loading import Loading
from .packing import adjustments_of, pack, pack_masked, sampling_lines
from .page_copies import PageCopies
from .processes import barrier
from .readout import InFlightStep, read_chunks, read_samples
from .sampling import Samples
from .steps import DeviceState, Outcome, create_state, state_shardings
from .trials import trial_rows

_PATIENCE_SECONDS = 2.0
"""How long the compilation of a step waits at most for a moment without prompts."""


class Followers(Protocol):
    """Receives every launch before it is dispatched here, and its samples; see `lockstep.py`."""

    def launch(self, bucket: int, buffer: np.ndarray) -> None: ...

    def prepare(self, slot: int, counts_V: np.ndarray, bias_V: np.ndarray, marks_V: np.ndarray) -> None: ...

    def record_samples(self, token_B: np.ndarray) -> None: ...

    def close(self) -> None: ...


class Runner:
    """A model on a mesh of devices, with its KV pool and its compiled steps.

    Attributes:
      skeleton, leaves, mesh, cache_dtype: what a `Scorer` of the same model needs. dtype: of the computation.
      shapes, pages: the sizes it is compiled for; the trash page not counted.
      kernels: the `(operation, backend)` pairs in use. adapters: the sizes of adapters; None without.
      host_pages: the copies of pages in host memory; None without.
      ready: the buckets that can be launched, with the seconds of a trial.
      slowest_step: seconds of the slowest trial so far. No trial scores its tokens, which takes longer.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        mesh: Mesh,
        parameters: Loading,
        shapes: Shapes,
        pages: int,
        cache_dtype: jnp.dtype,
        followers: Followers | None = None,
        host_pages: HostPages | None = None,
        adapters: AdapterShapes | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          parameters: placed on the mesh as in `model.sharding.placements`; `warm_up` waits for them.
          pages: without the trash page, which is added. cache_dtype: of keys and values.
          followers: other processes that run the same steps on their shares.
          host_pages: keeps copies of pages; None without. Several processes have none.
          adapters: the sizes of adapters on the device; None without. Several processes have none.
        """
        assert not ((host_pages or adapters) and mesh.is_multi_process)
        self._followers = followers
        self.host_pages = host_pages
        self._multi_process = mesh.is_multi_process
        self.skeleton, self.mesh, self.cache_dtype = skeleton, mesh, cache_dtype
        self._parameters, self.dtype = parameters, parameters.dtype
        self.leaves = skeleton.abstract(parameters.dtype)
        self._vocabulary = skeleton.config.vocabulary
        self.shapes = shapes
        self._buckets = shapes.buckets()
        self._create_state = jax.jit(
            lambda: create_state(skeleton, shapes, pages + 1, cache_dtype),
            out_shardings=state_shardings(mesh),
        )
        self._executables = Executables(skeleton, shapes, mesh, adapters)
        self.adapters = adapters
        self.pages = pages
        self.kernels = skeleton.target.kernels.names
        self.ready: dict[Bucket, float] = {}
        self.slowest_step = 0.0
        self._compiled: queue.SimpleQueue[Bucket] = queue.SimpleQueue()

    def warm_up(self, progress: Progress) -> None:
        """Allocates the pool, compiles the steps that are enough for any request, waits for the parameters,
        and runs the steps.

        Several processes compile all steps, because they must launch the same ones.
        """
        buckets = self._buckets if self._multi_process else self.shapes.essential()
        allocation = Background("allocation", lambda: jax.block_until_ready(self._create_state()))
        # Several processes must launch their programs in one order: packing after the allocation.
        state = allocation.result() if self._multi_process else None
        placing = Background("placing", lambda: self._parameters.leaves(self.skeleton))
        self._abstract_state = jax.eval_shape(self._create_state)
        self._executables.compile(buckets, self.leaves, self._abstract_state, progress)
        if self.host_pages:
            self._copies = PageCopies(self.host_pages, self._abstract_state, self.mesh)
        self._state: DeviceState = allocation.result() if state is None else state
        self.leaves = placing.result()
        self._stacks: Stacks = create_stacks(self.adapters, self.mesh) if self.adapters else {}
        barrier()  # so that a trial does not include the compilation in another process
        for bucket in buckets:
            self._run_trial(bucket)
        self.prepare(0, *(np.zeros(self._vocabulary, kind) for kind in (np.int32, np.float32, np.uint8)))

    def compile_rest(self, stop: threading.Event, quiet: threading.Event) -> None:
        """Compiles the steps that `warm_up` has not compiled, for `add_compiled`, until `stop` is set.

        Compilation takes cores and the interpreter from the steps. So each one waits for `quiet` for a short
        time: after a restart the sequences of the engine before are computed first. At the end all steps get
        another trial, because a trial takes longer during a compilation.
        """
        missing = [bucket for bucket in self._buckets if bucket not in self.ready]
        for bucket in missing:
            wait_for(quiet, stop, _PATIENCE_SECONDS)
            if stop.is_set():
                return
            self._executables.compile([bucket], self.leaves, self._abstract_state, lambda *_: None)
            self._compiled.put(bucket)
        for bucket in self._buckets if missing else []:
            self._compiled.put(bucket)

    def compile_all(self, progress: Progress) -> None:
        """Compiles the steps that `warm_up` has not compiled, without running them."""
        missing = [bucket for bucket in self._buckets if bucket not in self.ready]
        self._executables.compile(missing, self.leaves, self._abstract_state, progress)

    @property
    def has_compiled(self) -> bool:
        """Whether there is a step for `add_compiled`."""
        return not self._compiled.empty()

    def add_compiled(self) -> tuple[Bucket, float]:
        """Runs a trial of a compiled step and makes it ready; returns its seconds."""
        bucket = self._compiled.get()
        return bucket, self._run_trial(bucket)

    def _run_trial(self, bucket: Bucket) -> float:
        """Measures a step of full rows and makes its bucket ready; returns its seconds.

        These are of a second run if there will be no other trial, because the first run takes longer.
        """
        buffer, _ = self._pack(bucket, trial_rows(bucket, self.shapes, self._vocabulary))
        if self._multi_process:
            self._dispatch(bucket, buffer)[0].token_B.block_until_ready()
        started = time.monotonic()
        self._dispatch(bucket, buffer)[0].token_B.block_until_ready()
        seconds = time.monotonic() - started
        self.slowest_step = max(self.slowest_step, seconds)
        self.ready = {**self.ready, bucket: seconds}  # a new mapping: other threads iterate over the old one
        return seconds

    def launch(self, plan: Plan) -> InFlightStep:
        """Dispatches a step; the device runs it after all earlier ones.

        Raises:
          SequenceFault: a row cannot be packed; the step has not been dispatched.
        """
        if plan.copies:
            self._state = self._copies.restore(self._state, plan.copies.restored)
        for row in plan.rows:
            if row.first and row.sequence.request.params.adjusts:
                self._prepare(row)
        for place, adapter in plan.loads:
            self._load(place, adapter)
        bucket = choose(self.ready, self._kind(plan), plan.tokens, plain=plan.plain, adapted=plan.adapted)
        buffer, _ = self._pack(bucket, plan.rows)
        self._notify_followers(bucket, buffer)
        in_flight = InFlightStep(plan, bucket, time.monotonic(), *self._dispatch(bucket, buffer))
        if plan.copies:
            in_flight.saved.extend(self._copies.read(self._state, plan.copies.saved))
        return in_flight

    def sample_masked(self, in_flight: InFlightStep) -> InFlightStep:
        """Samples the rows of a step that wait for a mask; all earlier steps must have been read."""
        rows = [row for row in in_flight.plan.rows if row.awaits_mask and not row.sequence.finished]
        if not rows:
            return in_flight
        bucket = choose(self.ready, "sample", len(rows))
        buffer, faults = self._pack(bucket, rows)
        self._notify_followers(bucket, buffer)
        return replace(in_flight, masked=(rows, self._dispatch(bucket, buffer)[0]), faults=faults)

    def replay(self, bucket: int, buffer: np.ndarray) -> Samples:
        """Dispatches a step that another process has launched: the bucket's number and its packed inputs."""
        return self._dispatch(self._buckets[bucket], buffer)[0]

    def prepare(self, slot: int, counts_V: np.ndarray, bias_V: np.ndarray, marks_V: np.ndarray) -> None:
        """Prepares a slot for a sequence that adjusts logits; see `sampling.Adjustments`."""
        self._state = self._executables.prepare(self._state, slot, counts_V, bias_V, marks_V)

    def close(self) -> None:
        """Ends the session of the followers; nothing is launched after this. Idempotent."""
        if self._followers:
            self._followers.close()

    def _kind(self, plan: Plan) -> str:
        return "decode" if self.shapes.single or (plan.is_decode and not plan.scored) else "mixed"

    def _pack(self, bucket: Bucket, rows: list[Row]) -> tuple[np.ndarray, dict[Row, Exception]]:
        layout = self._executables.layouts[bucket]
        if bucket.kind == "sample":
            return pack_masked(rows, layout, self.shapes)
        return pack(rows, bucket, layout, self.shapes), {}

    def _prepare(self, row: Row) -> None:
        tables = adjustments_of(row, self._vocabulary)
        if self._followers:
            self._followers.prepare(row.slot, *tables)
        self.prepare(row.slot, *tables)

    def _notify_followers(self, bucket: Bucket, buffer: np.ndarray) -> None:
        """Sends a step to the followers before it is dispatched here."""
        if self._followers:
            self._followers.launch(self._buckets.index(bucket), buffer)

    def _load(self, place: int, adapter: HostAdapter) -> None:
        """Puts an adapter into a place; the steps that are in flight have read the former one."""
        assert self.adapters is not None
        own = self.adapters.put(adapter.factors, adapter.names, self.mesh)
        self._stacks = self._executables.put(self._stacks, place, own)

    def _dispatch(self, bucket: Bucket, buffer: np.ndarray) -> Outcome:
        leaves = (self.leaves, self._stacks) if bucket.adapted else self.leaves
        self._state, outcome = self._executables.step(bucket)(leaves, self._state, buffer)
        outcome[0].token_B.copy_to_host_async()
        return outcome

    def read(self, in_flight: InFlightStep) -> list[tuple[Row, Sampled | Exception]]:
        """Waits for a step; returns each row that samples with its samples, or with its error.

        Results for prompt tokens are added to their sequences.
        """
        rows, lines = in_flight.plan.rows, sampling_lines(in_flight.plan, in_flight.bucket)
        free = [(row, at) for row, at in zip(rows, lines, strict=True) if row.samples and not row.awaits_mask]
        results = self._read_samples(free, in_flight.samples)
        faults = dict(in_flight.faults)
        if in_flight.scores and in_flight.plan.scored:
            faults |= read_chunks(rows, in_flight.scores)
        masked, samples = in_flight.masked or ([], None)
        drawn: dict[Row, Sampled | Exception] = {}
        if samples:
            drawn = dict(
                self._read_samples([(row, range(n, n + 1)) for n, row in enumerate(masked)], samples)
            )
        results += [(row, drawn.get(row, [])) for row in rows if row.awaits_mask]
        return [(row, faults.pop(row, sampled)) for row, sampled in results] + list(faults.items())

    def keep_copies(self, in_flight: InFlightStep) -> None:
        """Keeps the pages that were copied after a step."""
        for reading in in_flight.saved:
            self._copies.keep(reading)

    def _read_samples(
        self, rows: list[tuple[Row, range]], samples: Samples
    ) -> list[tuple[Row, Sampled | Exception]]:
        if self._followers:
            self._followers.record_samples(np.asarray(samples.token_B))
        return read_samples(rows, samples)
