"""The engine's thread: receives requests, plans step n+1, dispatches it, and only then reads step n.

So host work and device work overlap. Step n is read first only if that gains more than the overlap: if there
are drafts, or if the step is long and other clients' requests should be in the next one. The thread owns the
device and every sequence. Other threads put actions into one inbox, and the loop runs them between two steps.
So only the acceptance of requests needs a lock.

An error on the host that concerns one sequence (in planning, packing or reading samples) ends only that
sequence. An error on the device ends the engine, because the contents of its memory are unknown.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable

from .device.buckets import Bucket
from .device.readout import InFlightStep
from .device.runner import Runner
from .phases import Phases
from .policy.accounts import used
from .policy.output_processor import OutputProcessor
from .policy.scheduler import Scheduler
from .policy.sequence import Plan, Sequence, SequenceFault, reason_of
from .request import InvalidRequest, NotReady, TokenEvent
from .threads import AwaitedThread

log = logging.getLogger(__name__)

Events = Callable[[list[TokenEvent]], None]
"""Receives all events of a step at once, on the engine's thread; must not block."""

_IDLE_SECONDS = 0.5


class Loop:
    """Runs step after step until it is stopped or the device fails.

    Attributes:
      runner, scheduler, outputs, phases: the parts that it uses.
      thread: the engine's thread.
      quiet: set while no prompt is computed; not set before the first step, or before it has been idle.
      beat: `time.monotonic()` of the last iteration; there is one at least every half second, unless a step
        takes longer.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler, on_events: Events) -> None:
        """Starts nothing yet; `on_events` receives every step's events."""
        self.runner = runner
        self.scheduler = scheduler
        self.outputs = OutputProcessor(self._drop)
        self.phases = Phases()
        self.thread = AwaitedThread("engine", self._run, self._end)
        self.quiet = threading.Event()
        self.beat = time.monotonic()
        self._on_events = on_events
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._active_ids: set[str] = set()
        self._sequences: dict[str, Sequence] = {}
        self._stopping = False
        self._idle = False
        self._free_since = 0.0

    def start(self) -> None:
        """Starts the thread."""
        for bucket, seconds in self.runner.ready.items():
            self._record_trial(bucket, seconds)
        self.thread.start()

    def stop(self) -> None:
        """Ends the thread; sequences in flight end with an error event. Idempotent."""
        self._end()
        if self.thread.is_alive():
            self.thread.join()

    def _end(self) -> None:
        """Makes the thread end after the step in flight."""
        self._stopping = True
        self.enqueue(lambda: None)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self.thread.is_alive()

    def enqueue(self, action: Callable[[], None]) -> None:
        """Queues an action, which the thread runs between two steps."""
        self._inbox.put(action)

    def submit(self, sequence: Sequence) -> None:
        """Queues a sequence for the scheduler.

        Raises:
          NotReady: the thread does not run. InvalidRequest: a request with its id is in flight.
        """
        id = sequence.request.id
        with self._lock:
            if not self.alive or self._stopping:
                raise NotReady("the engine does not run")
            if id in self._active_ids:
                raise InvalidRequest(f"request {id!r} is in flight; expected a new id", "id")
            self._active_ids.add(id)
            self.enqueue(lambda: self._add(sequence))

    def abort(self, request_id: str) -> None:
        """Ends a sequence, running or not; it receives no more events. Unknown ids are ignored."""
        self.enqueue(lambda: self._abort(request_id))

    def _add(self, sequence: Sequence) -> None:
        self._sequences[sequence.request.id] = sequence
        self.scheduler.clients.record(sequence.request.client, sequence.submitted)
        self.scheduler.add(sequence)

    def _abort(self, request_id: str) -> None:
        if request_id in self._sequences:
            self._active_ids.discard(request_id)
            self._drop(request_id)

    def _drop(self, request_id: str) -> None:
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self.scheduler.finish(sequence)

    def _report(self, events: list[TokenEvent]) -> None:
        """Sends events out; an id can be used again once its last event is sent, not earlier."""
        self._active_ids.difference_update(event.request_id for event in events if event.finish)
        self._on_events(events)

    def _run(self) -> None:
        reason = "the engine was stopped"
        try:
            in_flight: InFlightStep | None = None
            while not self._stopping:
                in_flight = self._run_once(in_flight)
        except Exception as error:
            log.exception("the engine thread failed")
            reason = reason_of(error)
        self._fail_all(reason)

    def _run_once(self, in_flight: InFlightStep | None) -> InFlightStep | None:
        """One iteration: takes the step in flight and returns the next one.

        After an iteration without work the next one waits for an action in the inbox, even if there are
        sequences: a plan that was not possible stays impossible until then.
        """
        self.beat = time.monotonic()
        was_busy = in_flight is not None
        if in_flight and self._should_read_first(in_flight):
            self._finish_step(in_flight)
            in_flight = None
        with self.phases.phase("receive"):
            self._process_inbox(idle=self._idle)
        now = time.monotonic()
        self.scheduler.pages.advance(now)
        self.scheduler.clients.advance(now)
        if self._idle:
            self._free_since = time.monotonic()
        if self.runner.has_compiled:
            self._add_compiled()
        following = self._plan_and_launch(in_flight)
        self._note_prompts(following)
        self._idle = not (following or was_busy)
        if in_flight:
            self._finish_step(in_flight)
        return self._sample_masked(following) if following else None

    def _note_prompts(self, following: InFlightStep | None) -> None:
        """Updates `quiet`. An idle wait must come before it is set: a restarted engine receives its sequences
        soon."""
        if following and not following.plan.is_decode:
            self.quiet.clear()
        elif following or self._idle:
            self.quiet.set()

    def _should_read_first(self, in_flight: InFlightStep) -> bool:
        if in_flight.plan.drafted or self.runner.has_compiled:
            return True
        try:
            return self.scheduler.should_read_first(in_flight.bucket.kind, in_flight.bucket.tokens)
        except SequenceFault as fault:
            self._fail(fault)
            return True

    def _plan_and_launch(self, in_flight: InFlightStep | None) -> InFlightStep | None:
        """Launches a step after the one in flight; None if there is nothing to compute.

        A sequence that cannot be planned or packed fails, and the others are planned again without it.
        """
        while True:
            plan: Plan | None = None
            try:
                with self.phases.phase("plan"):
                    plan = self.scheduler.plan()
                return self._launch(plan, in_flight) if plan else None
            except SequenceFault as fault:
                self.scheduler.revoke(plan.rows if plan else [])
                self._fail(fault)

    def _fail(self, fault: SequenceFault) -> None:
        """Ends a sequence after an error on the host, and reports the error to its client."""
        log.error("%s", fault, exc_info=fault)
        name, cause = fault.sequence.request.id, fault.__cause__ or fault
        self.scheduler.discard(fault.sequence)
        self._drop(name)
        self._report(
            [TokenEvent(request_id=name, finish="error", error=reason_of(cause), **used(fault.sequence))]
        )

    def _sample_masked(self, in_flight: InFlightStep) -> InFlightStep:
        """Samples the rows that need a grammar's mask; the tokens before them are known by now."""
        if not any(row.awaits_mask for row in in_flight.plan.rows):
            return in_flight
        with self.phases.phase("mask"):
            return self.runner.sample_masked(in_flight)

    def _add_compiled(self) -> None:
        self._record_trial(*self.runner.add_compiled())
        self._free_since = time.monotonic()

    def _record_trial(self, bucket: Bucket, seconds: float) -> None:
        self.scheduler.step_times.record_trial(bucket.kind, bucket.tokens, seconds)

    def _launch(self, plan: Plan, in_flight: InFlightStep | None) -> InFlightStep:
        """Dispatches a step after the one in flight; if that one is done, the device was idle until now."""
        with self.phases.phase("launch"):
            following = self.runner.launch(plan)
        _record_waits(following)
        if in_flight is None or in_flight.done:
            self.phases.seconds["idle"] += following.launched - self._free_since
        return following

    def _process_inbox(self, *, idle: bool) -> None:
        """Runs the actions that other threads have queued; when idle, waits for one for a short time."""
        try:
            self._inbox.get(timeout=_IDLE_SECONDS if idle else 0.0)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            pass

    def _finish_step(self, in_flight: InFlightStep) -> None:
        """Reads a step's samples and sends their events out."""
        with self.phases.phase("wait"):
            sampled = self.runner.read(in_flight)
        now = time.monotonic()
        seconds = now - max(in_flight.launched, self._free_since)
        self.scheduler.step_times.record(in_flight.bucket.kind, in_flight.bucket.tokens, seconds)
        self._free_since = now
        with self.phases.phase("output"):
            self.outputs.count_step(in_flight.plan, seconds)
            self._report(self.outputs.process(sampled))
            self.runner.keep_copies(in_flight)

    def _fail_all(self, reason: str) -> None:
        """Fails every request, including those still in the inbox, and accepts no more."""
        with self._lock:
            self._stopping = True
        try:
            self._process_inbox(idle=False)
            for request_id in list(self._sequences):
                self._drop(request_id)
        except Exception:
            log.exception("the sequences in flight cannot be removed")
        self._report(
            [TokenEvent(request_id=i, finish="error", error=reason, lost=True) for i in self._active_ids]
        )


def _record_waits(in_flight: InFlightStep) -> None:
    """Records how long the sequences that have their first step here waited for it."""
    for row in in_flight.plan.rows:
        sequence = row.sequence
        if row.first and sequence.waited is None:
            sequence.waited = in_flight.launched - sequence.submitted
