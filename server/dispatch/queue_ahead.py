"""The queue in front of a new sequence, at the position where it would be inserted."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...runtime.request import Request
from .engine_handle import EngineHandle, all_left
from .fair_queue import FairQueue
from .forecast import Forecast, wait
from .tracked_sequence import TrackedSequence

_INSTANT = 1e-6
"""The assumed seconds of a slot for a sequence while no engine has measured its steps."""


@dataclass(frozen=True, slots=True)
class QueueAhead:
    """The queue in front of all engines, for a new sequence of a client.

    Attributes:
      under_way: waiting and running interactive sequences.
      tokens: of waiting ones. own_tokens: of this client's.
      clients: the number of clients with sequences in progress, including this one.
      wait: predicted seconds until the sequence has a slot. end: until a running one has finished.
      pace: seconds by which each further sequence of its kind makes the queue longer.
    """

    under_way: int = 0
    tokens: int = 0
    own_tokens: int = 0
    clients: int = 1
    wait: float = 0.0
    end: float = 0.0
    pace: float = 0.0


def queue_ahead(
    request: Request,
    queue: FairQueue[TrackedSequence],
    handles: Sequence[EngineHandle],
    forecast: Forecast,
    under_way: int,
) -> QueueAhead:
    """The queue ahead of a new sequence; `under_way`: sequences that wait or run, in the queue or not.

    While no engine accepts sequences, it counts as served by the engine that restarts first, from then on.
    """
    client, soonest = request.client, min(handle.takes_in for handle in handles)
    slots = sum(handle.slots for handle in handles if handle.takes_in <= soonest)
    clients = queue.clients + (not queue.knows(client))
    left = all_left(handles, forecast)
    return QueueAhead(
        under_way=under_way,
        tokens=queue.tokens,
        own_tokens=queue.tokens_of(client),
        clients=clients,
        wait=soonest + _wait(request, clients, slots, queue, handles, forecast, left),
        end=min(left, default=soonest),
        pace=forecast.cost(request) / max(slots, 1),
    )


def _wait(
    request: Request,
    clients: int,
    slots: int,
    queue: FairQueue[TrackedSequence],
    handles: Sequence[EngineHandle],
    forecast: Forecast,
    left: Sequence[float],
) -> float:
    """Seconds until a client's new sequence has a slot: in queue order, or within the client's own share."""
    client, share = request.client, slots // clients
    if clients > 1 and queue.running(client) + queue.waiting(client) < share:
        return 0.0
    cost = queue.mean_cost() or forecast.cost(request) or _INSTANT
    before = round(queue.cost_before(client) / cost)
    in_turn = wait(before, cost, left, max(slots, 1))
    if clients == 1 or not share:
        return in_turn
    cost = queue.mean_cost(client) or cost
    return min(in_turn, wait(queue.waiting(client), cost, all_left(handles, forecast, client), share))
