"""`Dispatcher`: decides which engine computes which sequence, and when.

Every accepted sequence is either in the one queue in front of all engines or on one engine, and it can be
moved: taken from an engine, put back into the queue with the tokens received so far, and continued by another
engine without a visible difference. The same move covers all cases: an engine dies, it is drained, a client
uses more than its share of the slots while another waits, or a sequence that may have crashed engines is run
in isolation.

`supervisor.py` handles processes and the wire, `fair_queue.py` the order of the queue, `sharing.py` shares
and preemption, `admission.py` admission control, `forecast.py` times.
"""

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from ...runtime.request import EngineFailed, Request, TokenEvent, draw_seed
from ..engine_client import MOVE_CAUSES, EngineInfo, MoveCause
from .admission import Admission
from .affinity import Affinity
from .engine_handle import EngineHandle
from .event_stream import BufferedStream
from .fair_queue import FairQueue
from .forecast import Forecast
from .line import line_before
from .run import Run
from .sharing import Sharing

log = logging.getLogger(__name__)

MOST_HELD = 32
"""The most sequences of a client that are overtaken while they wait for the engine with their prefix."""

Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after a number of seconds."""


class Dispatcher:
    """The sequences of all engines. Call every method on one thread.

    Attributes:
      moved: how often a sequence was moved off an engine, by cause.
    """

    def __init__(
        self,
        handles: Sequence[EngineHandle],
        admission: Admission,
        clock: Callable[[], float],
        later: Later,
        most_pause: float,
    ) -> None:
        """Starts without sequences.

        Args:
          clock: seconds.
          most_pause: the longest time that a sequence waits for an engine after its own was lost, in seconds.
        """
        self._handles = handles
        self._admission = admission
        self._clock, self._later = clock, later
        self._most_pause = most_pause
        self._forecast = Forecast()
        self._affinity = Affinity(
            handles, self._forecast, clock, lambda seconds: later(seconds, self.dispatch)
        )
        self._queue: FairQueue[Run] = FairQueue()
        self._sharing = Sharing(self._queue, clock)
        self._suspects: deque[Run] = deque()
        self._isolated: EngineHandle | None = None
        self._arrivals = 0
        self._pumping = False
        self._fingerprint: str | None = None
        self.moved: Counter[MoveCause] = Counter(dict.fromkeys(MOVE_CAUSES, 0))

    @property
    def takes(self) -> bool:
        """Whether `submit` may be called: an engine takes sequences, or restarts and will."""
        return any(handle.takes_in < math.inf for handle in self._handles)

    @property
    def queued(self) -> tuple[int, int]:
        """The queue: the number of waiting sequences and of their tokens."""
        tokens = self._queue.tokens + sum(run.length for run in self._suspects)
        return len(self._queue) + len(self._suspects), tokens

    @property
    def under_way(self) -> int:
        """The number of waiting and running sequences."""
        return self.queued[0] + sum(len(handle.open) for handle in self._handles)

    def submit(self, requests: Sequence[Request]) -> list[BufferedStream]:
        """Accepts the sequences of a call, all or none.

        Raises:
          Overloaded: see `Admission.check`.
        """
        self._forecast.learn_steps([steps for handle in self._handles if (steps := handle.steps)])
        line = line_before(requests[0], self._queue, self._handles, self._forecast, self.under_way)
        self._admission.check(requests, line, self._clock())
        digests = {prompt: self._affinity.digests(prompt) for prompt in {each.prompt for each in requests}}
        runs = [self._run(request, digests[request.prompt]) for request in requests]
        for run in runs:
            self._queue.push(run)
            if not any(handle.takes for handle in self._handles):
                self._expire_later(run)
        self.dispatch()
        return [run.stream for run in runs]

    def ready(self, handle: EngineHandle, info: EngineInfo) -> None:
        """Adds an engine with an empty cache. It continues no sequences of an engine with other weights."""
        if self._fingerprint not in (None, info.fingerprint):
            for run in [run for run in self._all() if run.engine is None and run.tokens]:
                run.stream.fail(EngineFailed("the engine was lost, and the next one answers differently"))
        self._fingerprint = info.fingerprint
        self._affinity.forget(handle)
        self.dispatch()

    def receive(self, handle: EngineHandle, events: Sequence[TokenEvent]) -> None:
        """Handles an engine's events. Failures that it reports while it dies are not passed on."""
        self._elapse()
        for event in events:
            run = handle.open.get(event.request_id)  # None if it was moved or aborted meanwhile
            if run is not None and not event.lost:
                self._pass_on(handle, run, event)
        self.dispatch()

    def lose(self, handle: EngineHandle, *, killed: bool = False) -> None:
        """Handles an engine's death: its sequences continue elsewhere, except one that may be the cause.

        Args:
          killed: by an external signal.
        """
        for run in list(handle.open.values()):
            run.died(killed=killed)
            if run.guilty:
                log.error("request %s failed: %d engines died while it ran", run.request.id, run.deaths)
                run.stream.fail(EngineFailed("the engine was lost"))
                continue
            self._move(run, "engine_lost", working=False)
            self._expire_later(run)
        self.dispatch()

    def close(self, handle: EngineHandle) -> None:
        """An engine accepts nothing more: sequences that it has not started move elsewhere at once."""
        self._move_all(run for run in handle.open.values() if not run.started)

    def vacate(self, handle: EngineHandle) -> None:
        """An engine will stop: all its sequences move elsewhere."""
        self._move_all(handle.open.values())

    def fail_all(self, failure: EngineFailed) -> None:
        """Ends every sequence with an error."""
        for run in list(self._all()):
            run.stream.fail(failure, working=True)

    def dispatch(self) -> None:
        """Sends waiting sequences to engines that have room."""
        self._pumping = False
        self._run_isolated()
        while self._begin_next() or self._make_way():
            pass

    def _all(self) -> Iterator[Run]:
        yield from self._queue
        yield from self._suspects
        for handle in self._handles:
            yield from handle.open.values()

    def _run(self, request: Request, digests: list[bytes]) -> Run:
        if request.params.seed is None:  # another engine would draw another seed
            request = replace(request, params=replace(request.params, seed=draw_seed()))
        self._arrivals += 1
        run = Run(
            request=request,
            stream=BufferedStream(request, lambda _, working: self._release(run, working)),
            arrival=self._arrivals,
            submitted=self._clock(),
            cost=self._forecast.cost(request),
            digests=digests,
        )
        return run

    @property
    def _shared(self) -> list[EngineHandle]:
        """The engines that accept sequences, except one that is reserved for an isolated sequence."""
        return [handle for handle in self._handles if handle.takes and handle is not self._isolated]

    def _pass_on(self, handle: EngineHandle, run: Run, event: TokenEvent) -> None:
        """Puts an event into the sequence's stream, adjusted as if there were only one engine."""
        if not run.tokens and event.waited is not None:
            event = replace(event, waited=event.waited + run.began - run.submitted)
        self._forecast.progress(0 if run.started else run.length, event.token is not None)
        run.started = True
        if event.token is not None:
            run.tokens.append(event.token)
        if event.finish in ("stop", "length"):
            self._forecast.learn(len(run.tokens), cut=event.finish == "length")
        if self._isolated is handle and run.clear_if_past():
            self._isolated = None
        if event.request_id != run.request.id:
            event = replace(event, request_id=run.request.id)
        run.stream.put(event)

    def _release(self, run: Run, working: bool) -> None:
        """Removes the sequence of a stream that has ended, from its engine or the queue."""
        if run.engine is not None:
            self._leave(run, working=working)
        elif run in self._suspects:
            self._suspects.remove(run)
        else:
            self._queue.remove(run)
        self._dispatch_soon()

    def _dispatch_soon(self) -> None:
        """Schedules one `dispatch` for all streams that end in this turn of the event loop."""
        if not self._pumping:
            self._pumping = True
            self._later(0.0, self.dispatch)

    def _leave(self, run: Run, *, working: bool) -> None:
        """Removes a sequence from its engine."""
        assert run.engine is not None
        self._elapse()
        handle = self._handles[run.engine]
        handle.leave(run, working=working)
        self._queue.give_back(run.client)
        if self._isolated is handle:
            self._isolated = None

    def _move(self, run: Run, cause: MoveCause, *, working: bool = True) -> None:
        """Moves a sequence from its engine back into the queue."""
        self._leave(run, working=working)
        self.moved[cause] += 1
        run.moves += 1
        run.cost = self._forecast.cost(run.request, len(run.tokens))
        if run.suspected:
            self._suspects.append(run)
        else:
            self._queue.push(run)

    def _move_all(self, runs: Iterable[Run]) -> None:
        for run in list(runs):
            self._move(run, "draining")
        self.dispatch()

    def _expire_later(self, run: Run) -> None:
        """Has a sequence end with an error if it still waits for an engine after the longest pause."""
        self._later(self._most_pause, lambda moves=run.moves: self._expire(run, moves))

    def _expire(self, run: Run, moves: int) -> None:
        if run.moves == moves and run.engine is None and not run.stream.ended:
            reason = f"the engine was lost, and no other had room within {self._most_pause:.0f} s"
            log.error("request %s failed: %s", run.request.id, reason)
            run.stream.fail(EngineFailed(reason))

    def _elapse(self) -> None:
        """Updates the forecast's measurement of the engines' speed, before the load changes."""
        self._forecast.elapse(self._clock(), sum(len(handle.open) for handle in self._handles))

    def _begin(self, run: Run, handle: EngineHandle) -> None:
        self._elapse()
        self._queue.take(run)
        handle.begin(run, self._clock())
        self._affinity.remember(handle, run)

    def _begin_next(self) -> bool:
        """Sends the next sequence to an engine; returns whether there was one, and room for it."""
        rooms = {handle: handle.spare for handle in self._shared if handle.has_slot}
        if not self._queue or not rooms:
            return False
        for line in self._queue.lines():
            for run in islice(line, MOST_HELD):
                handle = self._affinity.choose(run, self._sharing.with_pages(run, rooms), self._shared)
                if handle is not None:
                    self._begin(run, handle)
                    return True
                if not self._affinity.holds(run):
                    break
        return False

    def _make_way(self) -> bool:
        """Preempts a sequence of a client above its share, in favour of a client below its share."""
        if self._queue.clients < 2:
            return False
        for line in self._queue.lines():
            run = line[0]
            victim = None if self._affinity.holds(run) else self._sharing.victim(run, self._shared)
            if victim is not None and victim.engine is not None:
                handle = self._handles[victim.engine]
                self._move(victim, "preempted")
                self._begin(run, handle)
                return True
        return False

    def _run_isolated(self) -> None:
        """Runs sequences that may have crashed engines in isolation on an engine, one at a time."""
        if self._isolated is not None or not self._suspects or not self._shared:
            return
        handle = min(self._shared, key=lambda each: len(each.open))
        run = self._suspects.popleft()
        for other in list(handle.open.values()):
            self._move(other, "preempted")
        self._isolated = handle
        self._queue.push(run)
        self._begin(run, handle)
