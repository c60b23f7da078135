"""Which clients' prompts can make a step longer. No JAX, no clock: requests carry the time of their arrival.

The one idea: a client can delay itself, but not the others. If one client alone uses the engine, all of its
prompts make a step longer, because fewer, longer steps are quicker in total. If there are several clients, a
longer step would delay the next request of each of them. Then only clients without a decoding sequence count,
once each. For the same reason the next step is not always planned ahead: a request that arrives meanwhile
would wait for two steps. The device then waits some milliseconds for the next plan, so that is done for long
steps only; for shorter ones, too, while an active client has no sequence here, because its next request would
be the first one that its user notices.
"""

from collections import OrderedDict
from collections.abc import Iterable

from .sequence import Sequence

ACTIVE_SECONDS = 10.0
"""A client is active while it has a sequence, and until no request of it has arrived for so long."""

LONG_SECONDS = 0.1
"""The time of a step for which the device may wait some milliseconds for the next plan."""
NOTICED_SECONDS = 0.015
"""The same while an active client has no sequence."""


class ActiveClients:
    """The clients that have sent a request within the last seconds; the caller supplies the time."""

    def __init__(self) -> None:
        self._arrivals: OrderedDict[str, float] = OrderedDict()

    def record(self, client: str, submitted: float) -> None:
        """Records a new request, `submitted` by `time.monotonic`. One that comes late, after others that were
        submitted later, counts as submitted with the last of them."""
        newest = next(reversed(self._arrivals.values()), submitted)
        self._arrivals[client] = max(submitted, newest)
        self._arrivals.move_to_end(client)

    def advance(self, now: float) -> None:
        """Sets the current time, by `time.monotonic`; clients without a request for too long are dropped."""
        while self._arrivals and next(iter(self._arrivals.values())) < now - ACTIVE_SECONDS:
            self._arrivals.popitem(last=False)

    def several(self, running: Iterable[Sequence]) -> bool:
        """Whether more than one client is active."""
        return len({sequence.request.client for sequence in running}.union(self._arrivals)) > 1

    def should_await(self, seconds: float, running: Iterable[Sequence]) -> bool:
        """Whether a step of so many seconds should end before the next one is planned: more than one client
        is active, and it is long, or one of them has none of the running sequences."""
        served = {sequence.request.client for sequence in running}
        if seconds < NOTICED_SECONDS or len(served.union(self._arrivals)) < 2:
            return False
        return seconds >= LONG_SECONDS or not served.issuperset(self._arrivals)

    def count_urgent(self, prefilling: Iterable[Sequence], decoding: Iterable[Sequence]) -> int:
        """The number of prompts for which the next step can be longer."""
        prompts = [sequence.request.client for sequence in prefilling]
        served = {sequence.request.client for sequence in decoding}
        if len(served.union(prompts, self._arrivals)) == 1:
            return len(prompts)
        return len(set(prompts) - served)
