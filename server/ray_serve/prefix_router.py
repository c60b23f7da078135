"""`PrefixRouter`: Ray Serve's interface for request routers, around a `Placement`.

Ray Serve calls it in every process that calls replicas, tells it which replicas there are, and keeps a cache
of how many requests each of them has. An entry is valid for some seconds; replicas without one are asked
before they are ordered. If the best replica has no room, the next in order is taken.
"""

import math
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from .call import Call, RoutingKey
from .placement import Placement


class PrefixRouter(RequestRouter):
    """Sends what begins alike to the same replica."""

    def initialize_state(self, slots: int) -> None:
        """Args:
        slots: of a replica; as many requests are a load of 1.
        """
        self._slots = slots
        self._placement = Placement()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All replicas in the order in which they should be tried."""
        if not candidate_replicas:
            return []
        loads = await self._loads(candidate_replicas)
        call = _call_of(pending_request)
        key, avoid = (call.key, call.avoid) if call else (RoutingKey(), ())
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[by_id[id]] for id in self._placement.order(key, loads, avoid)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remembers what a replica has computed."""
        if call := _call_of(pending_request):
            self._placement.remember(replica_id.unique_id, call.key)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forgets replicas that are gone."""
        super().update_replicas(replicas)
        self._placement.keep([replica.replica_id.unique_id for replica in replicas])

    async def _loads(self, replicas: list[RunningReplica]) -> dict[str, float]:
        """Each replica's load by its id; infinite for one that does not say how many requests it has."""
        counts = {each.replica_id: self.replica_queue_len_cache.get(each.replica_id) for each in replicas}
        unknown = [each for each in replicas if counts[each.replica_id] is None]
        for replica, count in await self._probe_queue_lens(unknown, 0):
            counts[replica.replica_id] = count
        return {
            id.unique_id: math.inf if count is None else count / self._slots for id, count in counts.items()
        }


def _call_of(pending: PendingRequest | None) -> Call | None:
    first = pending.args[0] if pending and pending.args else None
    return first if isinstance(first, Call) else None
