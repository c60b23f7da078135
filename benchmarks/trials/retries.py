"""How good `Retry-After` is: the experience of refused clients that wait so long, or less.

A patient client waits as long as `Retry-After` states, and retries until it is admitted; an impatient one
retries twice a second. The header was correct if the patient client is admitted at its first retry, and the
impatient one not long before. Both are sampled during an overload, when others use the capacity, and at its
end, when no other requests arrive.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from .replies import first_token
from .sse import Answer, Call
from .trial import Table, percentile

FACTOR = 2.0
_ROUNDING_SECONDS = 1.0
"""`Retry-After` is in whole seconds."""
_IMPATIENT_SECONDS = 0.5
_MOST_PATIENT, _MOST_IMPATIENT = 12, 2
"""The maximum of each kind at a time: they measure, they are not the load. Twelve impatient ones would send
24 requests a second."""
_LATE_SECONDS = 5.0
"""Time before the overload's end: a client that is refused then retries when it is over."""

Ask = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Found:
    """The result of one client.

    Attributes:
      patient: it waited as long as announced. announced: the first `Retry-After`, in seconds.
      waited: seconds from its first refusal until it was admitted. returns: the number of retries.
      first: seconds from admission to its first token. late: it was refused at the end of the overload.
    """

    patient: bool
    announced: float
    waited: float
    returns: int
    first: float | None
    late: bool

    @property
    def true(self) -> bool:
        """Whether the announced and the actual wait differ by at most the factor."""
        return is_true(self.announced, self.waited)


def is_true(announced: float, waited: float) -> bool:
    """Whether two times differ by at most the factor and a second of rounding."""
    shorter, longer = sorted((announced, waited))
    return longer <= FACTOR * shorter + _ROUNDING_SECONDS


class Retries:
    """A sample of refused clients of each kind."""

    def __init__(self, ask: Ask, ends: float) -> None:
        """`ends`: the end of the overload, by `time.perf_counter()`."""
        self.found: list[Found] = []
        self._ask = ask
        self._late = ends - _LATE_SECONDS
        kinds = [(patient, late) for patient in (True, False) for late in (True, False)]
        self._running: dict[tuple[bool, bool], set[asyncio.Task[None]]] = {kind: set() for kind in kinds}

    async def __aenter__(self) -> "Retries":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end(self._tasks)

    def refused(self, answer: Answer, call: Call) -> None:
        """Adds a refused request to the sample, if there is room; `call` is sent again."""
        for (patient, late), running in self._running.items():
            most = _MOST_PATIENT if patient else _MOST_IMPATIENT
            if late == (answer.asked > self._late) and len(running) < most:
                task = asyncio.create_task(self._return(answer, call, patient, late))
                running.add(task)
                task.add_done_callback(running.discard)
                return

    async def wait_for_all(self, seconds: float) -> None:
        """Waits until all are admitted, at most `seconds`."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            await self._end(late)

    @property
    def _tasks(self) -> set[asyncio.Task[None]]:
        return {task for running in self._running.values() for task in running}

    @staticmethod
    async def _end(tasks: set[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _return(self, refusal: Answer, call: Call, patient: bool, late: bool) -> None:
        announced, returns, answer = refusal.retry_after or 0.0, 0, refusal
        while answer.status != 200:
            pause = answer.retry_after if patient else None
            await asyncio.sleep(_IMPATIENT_SECONDS if pause is None else pause)  # the measured wait
            answer = await self._ask(call)
            returns += 1
        waited = answer.asked - refusal.answered
        self.found.append(Found(patient, announced, waited, returns, first_token(answer), late))

    def rows(self, table: Table) -> None:
        """Adds the results by kind and time."""
        for late, when in ((False, "during the overload"), (True, "at its end")):
            for patient, who in ((True, "waits as announced"), (False, "asks twice a second")):
                some = [each for each in self.found if (each.patient, each.late) == (patient, late)]
                table.note(f"refused {when}, {who}", _summary(some))
            true = [each.true for each in self.found if each.patient and each.late == late]
            figure = f"Retry-After {when} and the wait of those who wait so long"
            measured = f"{sum(true)} of {len(true)} within a factor of {FACTOR:g}"
            table.bound(figure, measured, "more than half", 2 * sum(true) > len(true))


def _summary(some: Sequence[Found]) -> str:
    if not some:
        return "none"
    at_once = sum(each.returns == 1 for each in some)
    firsts = [each.first for each in some if each.first is not None]
    announced, waited = ([getattr(each, name) for each in some] for name in ("announced", "waited"))
    return (
        f"{len(some)}, {at_once} at the first return; announced p50 {percentile(announced, 0.5):.0f} s, "
        f"admitted after p50 {percentile(waited, 0.5):.1f}, p99 {percentile(waited, 0.99):.1f} s; then first "
        f"token p50 {percentile(firsts, 0.5):.1f} s"
    )
