"""`Dispatcher`: decides which engine computes which sequence, and when.

Every accepted sequence is either in the one queue in front of all engines or on one engine, and it can be
moved: taken from an engine, put back into the queue with the tokens received so far, and continued by another
engine without a visible difference. A sequence is moved if its engine dies or is drained, if its client has
more than its share of the slots while another waits, if a sequence of a better rank needs its place, if
another engine has started and has fewer sequences, or to run a suspect of engine crashes in isolation.

Each rank has a queue of its own, background sequences the last ones. A sequence begins only while none of a
better rank could begin in its place, and it is moved back when one needs that place: to the better ones, to
their predicted waits and to their shares, it does not exist.

`supervisor.py` handles processes and the wire, `priority_queues.py` and `fair_queue.py` the order of the
queue, `placement.py` and `sharing.py` who begins where and who makes way, `admission.py` admission control,
`forecast.py` times.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from weakref import ref

from ...runtime.request import EngineFailed, Request, TokenEvent, draw_seed
from ..engine_client import MOVE_CAUSES, EngineInfo, MoveCause
from .admission import Admission
from .affinity import Affinity
from .engine_handle import EngineHandle
from .event_stream import BufferedStream
from .forecast import Forecast
from .placement import Placement
from .priority_queues import PriorityQueues
from .queue_ahead import QueueAhead, queue_ahead
from .sharing import balancing_move
from .tracked_sequence import TrackedSequence


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
        later: Callable[[float, Callable[[], None]], object],
        most_pause: float,
    ) -> None:
        """Starts without sequences.

        Args:
          clock: seconds. later: calls a function after a number of seconds.
          most_pause: the longest time that a sequence waits for an engine after its own was lost, in seconds.
        """
        self._handles = handles
        self._admission = admission
        self._clock, self._later = clock, later
        self._most_pause = most_pause
        self._forecast = Forecast()
        self._affinity = Affinity(handles, self._forecast, clock, lambda after: later(after, self.dispatch))
        self._queues = PriorityQueues()
        self._placement = Placement(self._queues, self._affinity, clock)
        self._suspects: deque[TrackedSequence] = deque()
        self._isolated: EngineHandle | None = None
        self._arrivals = 0
        self._dispatch_scheduled = False
        self._fingerprint: str | None = None
        self.moved: Counter[MoveCause] = Counter(dict.fromkeys(MOVE_CAUSES, 0))

    @property
    def takes(self) -> bool:
        """Whether `submit` may be called: an engine accepts sequences, or did and is restarting."""
        return any(handle.takes_in < math.inf for handle in self._handles)

    @property
    def queued(self) -> tuple[int, int]:
        """The number of waiting interactive sequences and of their tokens."""
        tokens = self._queues.tokens(background=False) + sum(each.length for each in self._suspects)
        return self._queues.waiting(background=False) + len(self._suspects), tokens

    @property
    def under_way(self) -> int:
        """The number of waiting and running sequences."""
        waiting = self.queued[0] + self._queues.waiting(background=True)
        return waiting + sum(len(handle.open) for handle in self._handles)

    def submit(self, requests: Sequence[Request]) -> list[BufferedStream]:
        """Accepts the sequences of a call, all or none.

        Raises:
          Overloaded: see `Admission.check` and `Admission.check_background`.
        """
        self._forecast.learn_steps([steps for handle in self._handles if (steps := handle.steps)])
        self._admit(requests)
        digests = {prompt: self._affinity.digests(prompt) for prompt in {each.prompt for each in requests}}
        sequences = [self._track(request, digests[request.prompt]) for request in requests]
        for sequence in sequences:
            self._queues.push(sequence)
            if not any(handle.takes for handle in self._handles):
                self._expire_later(sequence)
        self.dispatch()
        return [sequence.stream for sequence in sequences]

    def ready(self, handle: EngineHandle, info: EngineInfo) -> None:
        """Adds an engine with an empty cache. It continues no sequences of an engine with other weights."""
        if self._fingerprint not in (None, info.fingerprint):
            failure = EngineFailed("the engine was lost, and the next one answers differently")
            for sequence in [each for each in self._all() if each.engine is None and each.tokens]:
                sequence.stream.fail(failure)
        self._fingerprint = info.fingerprint
        self._affinity.forget(handle)
        handle.fresh = True
        self.dispatch()

    def receive(self, handle: EngineHandle, events: Sequence[TokenEvent]) -> None:
        """Handles an engine's events. Failures that it reports while it dies are not passed on."""
        now = self._elapse()
        for event in events:
            sequence = handle.open.get(event.request_id)  # None if it was moved or aborted meanwhile
            if sequence is not None and not event.lost:
                self._pass_on(sequence, event, now)
        self.dispatch()

    def lose(self, handle: EngineHandle, *, killed: bool = False) -> None:
        """Handles an engine's death: its sequences continue elsewhere, except one that may be the cause.

        Args:
          killed: with SIGKILL, by another program.
        """
        for sequence in list(handle.open.values()):
            sequence.died(killed=killed)
            if sequence.guilty or (
                sequence.background and sequence.suspected
            ):  # isolation would block others
                sequence.fail_with_engine()
                continue
            self._move(sequence, "engine_lost", working=False)
            self._expire_later(sequence)
        self.dispatch()

    def close(self, handle: EngineHandle) -> None:
        """An engine accepts nothing more: sequences that it has not started move elsewhere at once."""
        self._move_all(sequence for sequence in handle.open.values() if not sequence.started)

    def move_all_off(self, handle: EngineHandle) -> None:
        """An engine will stop: all its sequences move elsewhere."""
        self._move_all(handle.open.values())

    def fail_all(self, failure: EngineFailed) -> None:
        """Ends every sequence with an error."""
        for sequence in list(self._all()):
            sequence.stream.fail(failure, working=True)

    def dispatch(self) -> None:
        """Sends waiting sequences to engines that have room."""
        self._dispatch_scheduled = False
        self._run_isolated()
        while self._begin_next() or self._make_way() or self._balance() or self._begin_next(background=True):
            pass

    def _admit(self, requests: Sequence[Request]) -> None:
        """Raises Overloaded for a call that is not accepted; an interrupted stream always is."""
        if requests[0].interrupted:
            return
        if requests[0].background:
            self._admission.check_background(requests, self._queues.tokens(background=True))
            return
        self._admission.check(requests, self._ahead(requests[0]), self._clock())

    def _ahead(self, request: Request) -> QueueAhead:
        """The queue in front of a new sequence."""
        rank = request.rank
        waiting = sum(map(len, self._queues.up_to(rank))) + sum(each.rank <= rank for each in self._suspects)
        under_way = waiting + sum(len(handle.up_to(rank)) for handle in self._handles)
        return queue_ahead(request, self._queues, self._handles, self._forecast, under_way)

    def _all(self) -> Iterator[TrackedSequence]:
        yield from self._queues
        yield from self._suspects
        for handle in self._handles:
            yield from handle.open.values()

    def _track(self, request: Request, digests: list[bytes]) -> TrackedSequence:
        if request.params.seed is None:  # another engine would draw another seed
            request = replace(request, params=replace(request.params, seed=draw_seed()))
        self._arrivals += 1
        sequence = TrackedSequence(
            request=request,
            stream=BufferedStream(request, lambda _, working: self._release(sequence, working)),
            arrival=self._arrivals,
            submitted=self._clock(),
            cost=self._forecast.cost(request, len(request.generated)),
            digests=digests,
            tokens=list(request.generated),
            last_token=self._clock() if request.interrupted else math.inf,
        )
        return sequence

    @property
    def _shared(self) -> list[EngineHandle]:
        """The engines that accept sequences, except one that is reserved for an isolated sequence."""
        return [handle for handle in self._handles if handle.takes and handle is not self._isolated]

    def _pass_on(self, sequence: TrackedSequence, event: TokenEvent, now: float) -> None:
        """Puts an event into the sequence's stream."""
        prompt, waited = (0, 0.0) if sequence.started else (sequence.length, now - sequence.began)
        self._forecast.progress(prompt, event.token is not None, waited)
        event = sequence.record(event, now)
        if event.finish in ("stop", "length") and not sequence.background:
            self._forecast.learn(len(sequence.tokens), cut=event.finish == "length")
        if self._isolated and self._isolated.number == sequence.engine and sequence.clear_if_past():
            self._isolated = None
        sequence.stream.put(event)

    def _release(self, sequence: TrackedSequence, working: bool) -> None:
        """Removes the sequence of a stream that has ended, from its engine or the queue."""
        if sequence.engine is not None:
            self._leave(sequence, working=working)
        elif sequence in self._suspects:
            self._suspects.remove(sequence)
        else:
            self._queues.remove(sequence)
        if not self._dispatch_scheduled:  # once for all streams that end in this turn of the event loop
            self._dispatch_scheduled = True
            self._later(0.0, self.dispatch)

    def _leave(self, sequence: TrackedSequence, *, working: bool) -> None:
        """Removes a sequence from its engine."""
        assert sequence.engine is not None
        self._elapse()
        handle = self._handles[sequence.engine]
        handle.leave(sequence, working=working)
        self._queues.give_back(sequence)
        if self._isolated is handle:
            self._isolated = None

    def _move(self, sequence: TrackedSequence, cause: MoveCause, *, working: bool = True) -> None:
        """Moves a sequence from its engine back into the queue."""
        self._leave(sequence, working=working)
        self.moved[cause] += 1
        sequence.moves += 1
        cost = self._forecast.cost(sequence.request, len(sequence.tokens))
        sequence.cost = 0.0 if cause == "balanced" else cost  # its client has paid for it
        if sequence.suspected:
            self._suspects.append(sequence)
        else:
            self._queues.push(sequence)

    def _move_all(self, sequences: Iterable[TrackedSequence]) -> None:
        for sequence in list(sequences):
            self._move(sequence, "draining")
        self.dispatch()

    def _expire_later(self, sequence: TrackedSequence) -> None:
        """Ends an interactive sequence with an error if it still waits after the longest pause."""
        if sequence.background:
            return
        # One that has ended meanwhile is not kept until then: its prompt may be long.
        self._later(self._most_pause, partial(_expire, ref(sequence), sequence.moves, self._most_pause))

    def _elapse(self) -> float:
        """Updates the measurement of the engines' speed, before the load changes; returns the time."""
        now = self._clock()
        self._forecast.elapse(now, sum(handle.generating for handle in self._handles))
        return now

    def _begin(self, sequence: TrackedSequence, handle: EngineHandle) -> None:
        """Sends a waiting sequence to an engine; those of worse ranks make way for it."""
        for other in handle.in_the_way(sequence):
            self._move(other, "preempted")
        self._queues.take(sequence)
        handle.begin(sequence, self._clock())
        self._affinity.remember(handle, sequence)

    def _begin_next(self, *, background: bool = False) -> bool:
        """Sends the next sequence to an engine; returns whether there was one and room for it."""
        found = self._placement.next(self._shared, background=background)
        if found is not None:
            self._begin(*found)
        return found is not None

    def _make_way(self) -> bool:
        """Preempts a sequence of a client above its share, in favour of a client below its share."""
        found = self._placement.exchange(self._shared)
        if found is None:
            return False
        sequence, victim = found
        assert victim.engine is not None
        handle = self._handles[victim.engine]
        self._move(victim, "preempted")
        self._begin(sequence, handle)
        return True

    def _balance(self) -> bool:
        """Moves a sequence to an engine that has started; returns whether there was one."""
        move = balancing_move(self._shared, self._forecast)
        if move is not None:
            self._move(move[1], "balanced")
            self._begin(move[1], move[0])
        return move is not None

    def _run_isolated(self) -> None:
        """Runs sequences that may have crashed engines in isolation on an engine, one at a time."""
        if self._isolated is not None or not self._suspects or not self._shared:
            return
        handle = min(self._shared, key=lambda each: len(each.open))
        sequence = self._suspects.popleft()
        for other in list(handle.open.values()):
            self._move(other, "preempted")
        self._isolated = handle
        self._queues.push(sequence)
        self._begin(sequence, handle)


def _expire(held: "ref[TrackedSequence]", moves: int, seconds: float) -> None:
    sequence = held()
    if sequence is not None:
        sequence.expire(moves, seconds)
