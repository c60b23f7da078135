"""`Affinity`: the engine for a sequence among those that have room, or one that is worth waiting for.

The choice among those with room is `routing.py`'s: where a prompt's beginning has been before, unless that
one is too busy. Here is what follows for one without room: it is worth waiting for as long as what it knows
of the prompt would take to compute elsewhere, if it will have room sooner than that.
"""

from collections.abc import Callable, Sequence

from .forecast import Forecast
from .places import Place, all_left
from .routing import BLOCK, Router, block_digests
from .run import Run


class Affinity:
    """What the engines have served, and what that is worth."""

    def __init__(
        self,
        places: Sequence[Place],
        forecast: Forecast,
        clock: Callable[[], float],
        wake: Callable[[float], object],
    ) -> None:
        """Nothing was served yet; `wake` has those who wait looked at again after so many seconds."""
        self._places, self._forecast, self._clock, self._wake = places, forecast, clock, wake
        self._router = Router(len(places))

    def digests(self, prompt: Sequence[int]) -> list[bytes]:
        """What is remembered of a prompt; nothing where there is only one engine."""
        return block_digests(prompt) if len(self._places) > 1 else []

    def remember(self, place: Place, run: Run) -> None:
        """An engine computes a sequence."""
        self._router.remember(place.number, run.digests)

    def forget(self, place: Place) -> None:
        """An engine begins anew, its cache empty."""
        self._router.forget(place.number)

    def choose(self, run: Run, rooms: Sequence[Place], shared: Sequence[Place]) -> Place | None:
        """The engine for a sequence; None if there is none, or one without room is worth waiting for.

        That is decided once for each turn of a sequence, which `run.held_until` and `held_for` keep.

        Args:
          rooms: the engines that have room for it. shared: all that take sequences.
        """
        if not rooms:
            return None
        if run.held_until is None:
            self._decide(run, rooms, [each for each in shared if not each.has_slot])
        if self.holds(run):
            return next((room for room in rooms if room.number == run.held_for), None)
        return self._best(run, rooms)

    def holds(self, run: Run) -> bool:
        """Whether a sequence waits for one engine, though others may have room."""
        if run.held_for is None or run.held_until is None or self._clock() >= run.held_until:
            return False
        return self._places[run.held_for].takes

    def _best(self, run: Run, rooms: Sequence[Place]) -> Place:
        return self._places[self._router.choose(run.digests, {room.number: room.load for room in rooms})]

    def _decide(self, run: Run, rooms: Sequence[Place], full: Sequence[Place]) -> None:
        """Has a sequence wait for one of the full engines if it is worth that."""
        place = self._best(run, rooms)
        known = {each: self._router.known(each.number, run.digests) for each in full}
        best = max(full, key=known.__getitem__, default=place)
        more = known.get(best, 0) - self._router.known(place.number, run.digests)
        saved = self._forecast.prompt_seconds(more * BLOCK) if more > 0 else 0.0
        run.held_until = self._clock() + saved
        if saved and min(all_left([best], self._forecast), default=saved) < saved:
            run.held_for = best.number
            self._wake(saved)
