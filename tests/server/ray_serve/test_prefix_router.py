"""`PrefixRouter` with Ray's own cache of queue lengths: a replica's load is known before it is compared."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest

with warnings.catch_warnings(action="ignore"):  # Ray's own
    pytest.importorskip("ray.serve", reason="the extra `ray` installs it")

from ray.serve._private.request_router.common import ReplicaQueueLengthCache

from distaff.server.ray_serve.call import Call, RoutingKey
from distaff.server.ray_serve.prefix_router import PrefixRouter

pytestmark = pytest.mark.ray

SLOTS = 32
KEY = RoutingKey((b"1",), "", b"h")


@dataclass(frozen=True)
class Id:
    unique_id: str


@dataclass(frozen=True)
class FakeReplica:
    """A replica that says how many requests it has, unless that is None."""

    replica_id: Id
    count: int | None


@dataclass
class Pending:
    args: list[Any] = field(default_factory=lambda: [Call("POST", "/", [], key=KEY)])


class Router(PrefixRouter):
    """Without the rest of Ray's router."""

    def __init__(self) -> None:
        self.now = 0.0
        self._replica_queue_len_cache = ReplicaQueueLengthCache(get_curr_time_s=lambda: self.now)
        self.asked: list[str] = []
        self.initialize_state(SLOTS)

    async def _probe_queue_lens(self, replicas, backoff_index):
        self.asked += [each.replica_id.unique_id for each in replicas]
        for each in replicas:
            if each.count is not None:
                self._replica_queue_len_cache.update(each.replica_id, each.count)
        return [(each, each.count) for each in replicas]

    async def order(self, *replicas: FakeReplica) -> list[str]:
        chosen = await self.choose_replicas(list(replicas), Pending())
        return [rank[0].replica_id.unique_id for rank in chosen]


async def test_a_replica_without_recent_news_is_asked_for_its_load() -> None:
    router, a, b = Router(), FakeReplica(Id("a"), 40), FakeReplica(Id("b"), 0)
    router._placement.remember("a", KEY)
    assert await router.order(a, b) == ["b", "a"] and router.asked == ["a", "b"]
    router.now = 9.0
    assert await router.order(a, b) == ["b", "a"] and len(router.asked) == 2
    router.now = 11.0
    assert await router.order(a, b) == ["b", "a"] and router.asked == ["a", "b", "a", "b"]


async def test_a_replica_that_does_not_say_its_load_comes_last() -> None:
    router, silent, busy = Router(), FakeReplica(Id("a"), None), FakeReplica(Id("b"), 100)
    router._placement.remember("a", KEY)
    assert await router.order(silent, busy) == ["b", "a"]
    assert await router.order(silent) == ["a"] and await router.order() == []
