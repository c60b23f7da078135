"""`Placement`: chooses among replicas by their ids, which come and go. No Ray, no clock.

`dispatch/routing.py` decides, as it does among the engines of one server. Each ingress has a `Placement` of
its own and sees only its own requests, so a conversation that an ingress has not seen yet is placed by a
rendezvous hash over its beginning: all ingresses then choose the same replica.
"""

import hashlib
from collections.abc import Collection, Mapping

from ..dispatch.routing import Router
from .call import RoutingKey


class Placement:
    """Which replica has served which prompts."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._router = Router(0)

    def order(self, key: RoutingKey, loads: Mapping[str, float], avoid: Collection[str] = ()) -> list[str]:
        """All replicas of `loads`: first the best for a request, then the others, the least loaded first.

        Args:
          loads: by id, at least one; 1.0 is all slots in use. avoid: chosen only if there are no others.
        """
        allowed = {id: load for id, load in loads.items() if id not in avoid} or dict(loads)
        numbered = {self._number(id): load for id, load in allowed.items()}
        home = self._number(max(allowed, key=lambda id: _rendezvous(key.home, id))) if key.home else None
        number = self._router.choose(key.digests, numbered, key.session, home)
        best = next(id for id in allowed if self._numbers[id] == number)
        return [best, *sorted(loads.keys() - {best}, key=lambda id: (id in avoid, loads[id], id))]

    def remember(self, id: str, key: RoutingKey) -> None:
        """Records that a replica has a request."""
        self._router.remember(self._number(id), key.digests, key.session)

    def keep(self, ids: Collection[str]) -> None:
        """Forgets all replicas but these."""
        for id in self._numbers.keys() - set(ids):
            self._router.forget(self._numbers.pop(id))

    def _number(self, id: str) -> int:
        """A replica's number in the router, the lowest free one for a new replica."""
        if id not in self._numbers:
            taken = set(self._numbers.values())
            number = next(number for number in range(len(taken) + 1) if number not in taken)
            self._router.extend(number + 1)
            self._numbers[id] = number
        return self._numbers[id]


def _rendezvous(home: bytes, id: str) -> bytes:
    return hashlib.blake2b(home + id.encode(), digest_size=8).digest()
