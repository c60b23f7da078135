"""The queue in front of a new sequence, at the position where it would be inserted.

What waits or runs with a worse rank is not in front of it; whatever waits with a better rank is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...runtime.request import Request
from .engine_handle import EngineHandle, all_left
from .forecast import Forecast, wait
from .priority_queues import PriorityQueues
from .sharing import slots_for

_INSTANT = 1e-6
"""The assumed seconds of a slot for a sequence while no engine has measured its steps."""


@dataclass(frozen=True, slots=True)
class QueueAhead:
    """The queue in front of all engines, for a new sequence of a client.

    All but `all_tokens` counts only sequences of the new one's rank and better ones.

    Attributes:
      under_way: waiting and running sequences.
      tokens: of waiting ones. own_tokens: of this client's. all_tokens: of all waiting interactive ones.
      clients: the number of clients with sequences in progress, including this one.
      wait: predicted seconds until the sequence has a slot. end: until a running one has finished.
      pace: seconds by which each further sequence of its kind makes the queue longer.
    """

    under_way: int = 0
    tokens: int = 0
    own_tokens: int = 0
    all_tokens: int = 0
    clients: int = 1
    wait: float = 0.0
    end: float = 0.0
    pace: float = 0.0


def queue_ahead(
    request: Request,
    queues: PriorityQueues,
    handles: Sequence[EngineHandle],
    forecast: Forecast,
    under_way: int,
) -> QueueAhead:
    """The queue ahead of a new sequence; `under_way`: sequences up to its rank that wait or run, in the queue
    or not.

    While no engine accepts sequences, it counts as served by the engine that restarts first, from then on.
    """
    soonest = min(handle.takes_in for handle in handles)
    serving = [handle for handle in handles if handle.takes_in <= soonest]
    left, counted = all_left(handles, forecast, request.rank), queues.up_to(request.rank)
    return QueueAhead(
        under_way=under_way,
        tokens=sum(queue.tokens for queue in counted),
        own_tokens=sum(queue.tokens_of(request.client) for queue in counted),
        all_tokens=queues.tokens(background=False),
        clients=len({request.client}.union(*(queue.names for queue in counted))),
        wait=soonest + _wait(request, serving, queues, handles, forecast, left),
        end=min(left, default=soonest),
        pace=forecast.cost(request) / max(sum(handle.slots for handle in serving), 1),
    )


def _wait(
    request: Request,
    serving: Sequence[EngineHandle],
    queues: PriorityQueues,
    handles: Sequence[EngineHandle],
    forecast: Forecast,
    left: Sequence[float],
) -> float:
    """Seconds until a client's new sequence has a slot: in queue order, or within the client's own share."""
    client, queue, ahead = request.client, queues.of(request.rank), queues.cost_ahead_of(request.rank)
    share = queue.share(client, slots_for(serving, request.rank), request.weight)
    alone = not any(name != client for name in queue.names)
    shared = not alone and not ahead
    if shared and queue.running(client) + queue.waiting(client) < share:
        return 0.0
    cost = queue.mean_cost() or forecast.cost(request) or _INSTANT
    before = round((ahead + queue.cost_before(client, request.weight)) / cost)
    slots = sum(handle.slots for handle in serving)
    in_turn = wait(before, cost, left, max(slots, 1))
    if not shared or not share:
        return in_turn
    cost = queue.mean_cost(client) or cost
    own = all_left(handles, forecast, request.rank, client)
    return min(in_turn, wait(queue.waiting(client), cost, own, share))
