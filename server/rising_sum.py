"""`RisingSum`: a counter's sum over engines that restart, for metrics without a label for the engine."""

from collections.abc import Iterable


class RisingSum:
    """The sum of a counter over engines. It does not fall when an engine restarts and counts from 0 again.

    Otherwise Prometheus would take the fall for a restart of the server, and count the others' values again.
    """

    def __init__(self) -> None:
        self._last: dict[int, float] = {}
        self._sum = 0.0

    def of(self, values: Iterable[float]) -> float:
        """The sum, with the increase of each engine's value since the last call."""
        for number, value in enumerate(values):
            before = self._last.get(number, 0.0)
            self._sum += value - before if value >= before else value
            self._last[number] = value
        return self._sum
