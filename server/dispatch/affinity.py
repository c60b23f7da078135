"""`Affinity`: chooses an engine that has room for a sequence, or one that is worth waiting for.

Among engines with room `routing.py` chooses: the one that has served the prompt's prefix before, unless it is
too busy. This module decides about engines without room: the wait for one may last as long as computing the
cached prefix elsewhere would take, if the engine is expected to have room sooner than that.
"""

from collections.abc import Callable, Sequence

from .engine_handle import EngineHandle, all_left
from .forecast import Forecast
from .routing import BLOCK, Router, block_digests
from .tracked_sequence import TrackedSequence


class Affinity:
    """Which prefixes the engines have served, and how long they are worth waiting for."""

    def __init__(
        self,
        handles: Sequence[EngineHandle],
        forecast: Forecast,
        clock: Callable[[], float],
        wake: Callable[[float], object],
    ) -> None:
        """Starts without served prompts; `wake` checks waiting sequences again after a number of seconds."""
        self._handles, self._forecast, self._clock, self._wake = handles, forecast, clock, wake
        self._router = Router(len(handles))

    def digests(self, prompt: Sequence[int]) -> list[bytes]:
        """The digests to remember of a prompt; empty if there is only one engine."""
        return block_digests(prompt) if len(self._handles) > 1 else []

    def remember(self, handle: EngineHandle, sequence: TrackedSequence) -> None:
        """Records that an engine computes a sequence."""
        self._router.remember(handle.number, sequence.digests, sequence.request.session)

    def forget(self, handle: EngineHandle) -> None:
        """Records that an engine has restarted with an empty cache."""
        self._router.forget(handle.number)

    def choose(
        self, sequence: TrackedSequence, rooms: Sequence[EngineHandle], shared: Sequence[EngineHandle]
    ) -> EngineHandle | None:
        """The engine for a sequence; None if there is none, or if the sequence should wait for a busy one.

        This is decided once each time that a sequence is queued; `sequence.held_until` and `held_for` store
        it.

        Args:
          rooms: the engines that have room for it. shared: all that accept sequences.
        """
        if not rooms:
            return None
        if sequence.held_until is None:
            self._decide(sequence, rooms, [each for each in shared if not each.has_slot(sequence.rank)])
        if self.holds(sequence):
            return next((room for room in rooms if room.number == sequence.held_for), None)
        return self._best(sequence, rooms)

    def holds(self, sequence: TrackedSequence) -> bool:
        """Whether a sequence waits for one engine although others may have room."""
        if sequence.held_for is None or sequence.held_until is None or self._clock() >= sequence.held_until:
            return False
        return self._handles[sequence.held_for].takes

    def _best(self, sequence: TrackedSequence, rooms: Sequence[EngineHandle]) -> EngineHandle:
        loads = {room.number: room.load(sequence.rank) for room in rooms}
        return self._handles[self._router.choose(sequence.digests, loads, sequence.request.session)]

    def _decide(
        self, sequence: TrackedSequence, rooms: Sequence[EngineHandle], full: Sequence[EngineHandle]
    ) -> None:
        """Makes a sequence wait for one of the full engines if that is worth it."""
        handle = self._best(sequence, rooms)
        known = {each: self._router.known(each.number, sequence.digests) for each in full}
        best = max(full, key=known.__getitem__, default=handle)
        more = known.get(best, 0) - self._router.known(handle.number, sequence.digests)
        saved = self._forecast.prompt_seconds(more * BLOCK) if more > 0 else 0.0
        sequence.held_until = self._clock() + saved
        if saved and min(all_left([best], self._forecast, sequence.rank), default=saved) < saved:
            sequence.held_for = best.number
            self._wake(saved)
