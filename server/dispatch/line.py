"""What a new sequence would have before it: the queue, seen from where it would stand in it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...runtime.request import Request
from .fair_queue import FairQueue
from .forecast import Forecast, wait
from .places import Place, all_left
from .run import Run

_INSTANT = 1e-6
"""Seconds of a slot for a sequence while no engine has measured its steps."""


@dataclass(frozen=True, slots=True)
class Line:
    """The queue before all engines, for a client that has one more sequence.

    Attributes:
      under_way: sequences that wait or run. tokens: of those that wait. own_tokens: of this client's.
      clients: who have something under way, this one included.
      wait: predicted seconds until the sequence has a slot. end: until one that runs has ended.
      pace: seconds by which each further one of its kind makes the queue longer.
    """

    under_way: int = 0
    tokens: int = 0
    own_tokens: int = 0
    clients: int = 1
    wait: float = 0.0
    end: float = 0.0
    pace: float = 0.0


def line_before(
    request: Request, queue: FairQueue[Run], places: Sequence[Place], forecast: Forecast, under_way: int
) -> Line:
    """The line before a new sequence; `under_way`: sequences that wait or run, also outside the queue.

    While no engine takes sequences, it is worked off by the one that restarts first, from when it is ready.
    """
    client, soonest = request.client, min(place.takes_in for place in places)
    slots = sum(place.slots for place in places if place.takes_in <= soonest)
    clients = queue.clients + (not queue.knows(client))
    left = all_left(places, forecast)
    return Line(
        under_way=under_way,
        tokens=queue.tokens,
        own_tokens=queue.tokens_of(client),
        clients=clients,
        wait=soonest + _wait(request, clients, slots, queue, places, forecast, left),
        end=min(left, default=soonest),
        pace=forecast.cost(request) / max(slots, 1),
    )


def _wait(
    request: Request,
    clients: int,
    slots: int,
    queue: FairQueue[Run],
    places: Sequence[Place],
    forecast: Forecast,
    left: Sequence[float],
) -> float:
    """Seconds until a new sequence of a client has a slot: in its turn, or within the client's own share."""
    client, share = request.client, slots // clients
    if clients > 1 and queue.running(client) + queue.waiting(client) < share:
        return 0.0
    cost = queue.mean_cost() or forecast.cost(request) or _INSTANT
    before = round(queue.cost_before(client) / cost)
    in_turn = wait(before, cost, left, max(slots, 1))
    if clients == 1 or not share:
        return in_turn
    cost = queue.mean_cost(client) or cost
    return min(in_turn, wait(queue.waiting(client), cost, all_left(places, forecast, client), share))
