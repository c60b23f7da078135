"""The engine's thread: takes in requests, plans step n+1, dispatches it, and only then reads step n.

So host work and device work overlap; only where drafts are worth more than that is step n read first. It owns
the device and every sequence. Whatever other threads want of it is put into one inbox and carried out between
two steps, so nothing else here needs a lock but the door, by which requests come in and are refused.

What goes wrong on the host with one sequence, while it is planned, packed or settled, ends that sequence
alone. What the device reports ends the engine: nobody knows what its memory holds then.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable

from .device.buckets import Bucket
from .device.runner import InFlightStep, Runner
from .phases import Phases
from .policy.output_processor import OutputProcessor
from .policy.scheduler import Scheduler
from .policy.sequence import Plan, Sequence, SequenceFault, reason_of
from .request import InvalidRequest, NotReady, TokenEvent
from .threads import AwaitedThread

log = logging.getLogger(__name__)

Events = Callable[[list[TokenEvent]], None]
"""Hears all events of a step at once, on the engine's thread; must not block."""

_IDLE_SECONDS = 0.5


class Loop:
    """One turn after the other, until it is stopped or the device fails.

    Attributes:
      runner, scheduler, outputs, phases: what it drives and what it keeps account in.
      thread: the engine's.
      beat: `time.monotonic()` of the last turn; it turns at least every half second unless a step takes
        longer.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler, on_events: Events) -> None:
        """Starts nothing yet; `tell` hears every step's events."""
        self.runner = runner
        self.scheduler = scheduler
        self.outputs = OutputProcessor(self._drop)
        self.phases = Phases()
        self.thread = AwaitedThread("engine", self._run, self._end)
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
        """Has the thread end with the step that is under way."""
        self._stopping = True
        self.enqueue(lambda: None)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self.thread.is_alive()

    def enqueue(self, action: Callable[[], None]) -> None:
        """Has something done on the thread, between two steps."""
        self._inbox.put(action)

    def submit(self, sequence: Sequence) -> None:
        """Hands a sequence over.

        Raises:
          NotReady: the thread does not run. InvalidRequest: its id is in flight.
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
        """Ends a sequence wherever it is; no more of its events come. Unknown ids are ignored."""
        self.enqueue(lambda: self._abort(request_id))

    def _add(self, sequence: Sequence) -> None:
        self._sequences[sequence.request.id] = sequence
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
        """Tells of events; an id is free again when its end is told, and not before."""
        self._active_ids.difference_update(event.request_id for event in events if event.finish)
        self._on_events(events)

    def _run(self) -> None:
        reason = "the engine was stopped"
        try:
            in_flight: InFlightStep | None = None
            while not self._stopping:
                in_flight = self._run_once(in_flight)
        except Exception as error:
            log.exception("the engine thread ends")
            reason = reason_of(error)
        self._fail_all(reason)

    def _run_once(self, in_flight: InFlightStep | None) -> InFlightStep | None:
        """One turn, with the step that is under way; returns the one that is so then.

        After a turn that did nothing the next one waits to be asked for something, whoever is in the engine:
        what could not be planned cannot be planned until then.
        """
        self.beat = time.monotonic()
        with self.phases.phase("hear"):
            self._process_inbox(idle=self._idle)
        if self._idle:
            self._free_since = time.monotonic()
        under_way = in_flight is not None
        if in_flight and (in_flight.plan.drafted or self.runner.has_compiled or self._should_read_first()):
            self._finish_step(in_flight)
            in_flight = None
        if self.runner.has_compiled:
            self._add_compiled()
        following = self._plan_and_launch(in_flight)
        self._idle = not (following or under_way)
        if in_flight:
            self._finish_step(in_flight)
        return self._sample_masked(following) if following else None

    def _should_read_first(self) -> bool:
        try:
            return self.scheduler.should_read_first
        except SequenceFault as fault:
            self._fail(fault)
            return True

    def _plan_and_launch(self, in_flight: InFlightStep | None) -> InFlightStep | None:
        """A step behind the one that is under way; None where there is nothing to compute.

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
        """Ends a sequence that the host cannot go on with, and tells whoever waits for it."""
        log.error("%s", fault, exc_info=fault)
        name, cause = fault.sequence.request.id, fault.__cause__ or fault
        self.scheduler.discard(fault.sequence)
        self._drop(name)
        self._report([TokenEvent(request_id=name, finish="error", error=reason_of(cause))])

    def _sample_masked(self, in_flight: InFlightStep) -> InFlightStep:
        """What came before is known now, so grammars can say what may be drawn in the step under way."""
        if not any(row.held for row in in_flight.plan.rows):
            return in_flight
        with self.phases.phase("mask"):
            return self.runner.sample_masked(in_flight)

    def _add_compiled(self) -> None:
        self._record_trial(*self.runner.add_compiled())
        self._free_since = time.monotonic()

    def _record_trial(self, bucket: Bucket, seconds: float) -> None:
        self.scheduler.step_times.record_trial(bucket.kind, bucket.tokens, seconds)

    def _launch(self, plan: Plan, in_flight: InFlightStep | None) -> InFlightStep:
        """Dispatches a step behind the one that is under way; if the device is done with that, it idles."""
        with self.phases.phase("launch"):
            following = self.runner.launch(plan)
        _record_waits(following)
        if in_flight is None or in_flight.done:
            self.phases.seconds["idle"] += following.launched - self._free_since
        return following

    def _process_inbox(self, *, idle: bool) -> None:
        """Carries out what other threads asked for; when idle, waits a moment for it."""
        try:
            self._inbox.get(timeout=_IDLE_SECONDS if idle else 0.0)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            pass

    def _finish_step(self, in_flight: InFlightStep) -> None:
        """Reads a step's samples, and tells those who wait for them."""
        with self.phases.phase("wait"):
            sampled = self.runner.read(in_flight)
        now = time.monotonic()
        self.scheduler.step_times.record(
            in_flight.bucket.kind, in_flight.bucket.tokens, now - max(in_flight.launched, self._free_since)
        )
        self._free_since = now
        with self.phases.phase("settle"):
            self.outputs.count_step(in_flight.plan.rows)
            self._report(self.outputs.process(sampled))

    def _fail_all(self, reason: str) -> None:
        """Tells every request, also those still in the inbox, that it has failed; no more come in."""
        with self._lock:
            self._stopping = True
        try:
            self._process_inbox(idle=False)
            for request_id in list(self._sequences):
                self._drop(request_id)
        except Exception:
            log.exception("the sequences in flight cannot be taken out")
        self._report(
            [TokenEvent(request_id=i, finish="error", error=reason, lost=True) for i in self._active_ids]
        )


def _record_waits(in_flight: InFlightStep) -> None:
    """The sequences whose first step this is have waited until now."""
    for row in in_flight.plan.rows:
        sequence = row.sequence
        if row.first and sequence.waited is None:
            sequence.waited = in_flight.launched - sequence.submitted
