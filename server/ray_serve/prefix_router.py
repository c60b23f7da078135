"""`PrefixRouter`: Ray Serve's interface for request routers, around a `Placement`.

Ray Serve calls it in every process that calls replicas, tells it which replicas there are, and keeps a cache
of how many requests each of them has. If the best replica has no room, the next in order is taken.
"""

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
        loads = {replica.replica_id.unique_id: self._load(replica) for replica in candidate_replicas}
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

    def _load(self, replica: RunningReplica) -> float:
        return (self.replica_queue_len_cache.get(replica.replica_id) or 0) / self._slots


def _call_of(pending: PendingRequest | None) -> Call | None:
    first = pending.args[0] if pending and pending.args else None
    return first if isinstance(first, Call) else None
