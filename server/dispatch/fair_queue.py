"""`FairQueue`: the sequences that wait for an engine, in fair order over clients.

Contains neither engines nor clocks. The algorithm is deficit round robin (Shreedhar and Varghese 1996) with
the finest quantum, known for inference as the virtual token counter (Sheng et al. 2024, arXiv:2401.00588):
each client has a counter of the service that it has received, divided by its weight, and the client with the
lowest counter is next. A client that returns after a pause has no credit for it. The order within a client is
up to the entries.
"""

from bisect import insort
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """The interface of an entry."""

    @property
    def client(self) -> str:
        """The client that it belongs to."""
        ...

    @property
    def weight(self) -> float:
        """The client's weight, greater than 0; that of the entry that arrived last counts."""
        ...

    @property
    def order(self) -> tuple[float, int]:
        """Its unique position among the client's entries, the number of its arrival last. It must not change
        while the entry waits."""
        ...

    @property
    def cost(self) -> float:
        """Its cost in seconds of a slot. It must not change while the entry waits."""
        ...

    @property
    def length(self) -> int:
        """The number of its tokens; must not change while the entry waits."""
        ...


_ROUNDING = 1e-9
"""Added to a share before it is cut to whole slots: a product of decimal fractions can be too small."""

EntryT = TypeVar("EntryT", bound=Waiting)


class FairQueue(Generic[EntryT]):
    """A queue of entries by client."""

    def __init__(self) -> None:
        self._entries: dict[str, list[EntryT]] = {}
        self._cost: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        self._given: dict[str, float] = {}
        self._running: dict[str, int] = {}
        self._weights: dict[str, float] = {}
        self._newest: dict[str, int] = {}
        self._time = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __iter__(self) -> Iterator[EntryT]:
        for entries in self._entries.values():
            yield from entries

    @property
    def clients(self) -> int:
        """The number of clients with waiting or running entries."""
        return len(self._given)

    @property
    def names(self) -> Iterable[str]:
        """The clients with waiting or running entries."""
        return self._given.keys()

    @property
    def cost(self) -> float:
        """The cost of all waiting entries."""
        return sum(self._cost.values())

    @property
    def tokens(self) -> int:
        """The tokens of all waiting entries."""
        return sum(self._tokens.values())

    def tokens_of(self, client: str) -> int:
        """The tokens of a client's waiting entries."""
        return self._tokens.get(client, 0)

    def waiting(self, client: str) -> int:
        """The number of a client's waiting entries."""
        return len(self._entries.get(client, ()))

    def running(self, client: str) -> int:
        """The number of a client's entries that were taken and not given back."""
        return self._running.get(client, 0)

    def queues(self) -> list[list[EntryT]]:
        """Each client's waiting entries, clients in the order of service; the caller must not change them."""
        order = sorted(self._entries, key=lambda client: (self._given[client], self.occupation(client)))
        return [self._entries[client] for client in order]

    def occupation(self, client: str) -> float:
        """The number of a client's running entries, divided by its weight."""
        return self.running(client) / self._weights.get(client, 1.0)

    def share(self, client: str, slots: int, weight: float = 1.0) -> int:
        """A client's share of the slots, in whole slots; `weight` counts if it has no entries."""
        weights = {client: weight, **self._weights}
        return int(slots * weights[client] / sum(weights.values()) + _ROUNDING)

    def push(self, entry: EntryT) -> None:
        """Adds an entry, in its position among those of its client."""
        self._given[entry.client] = self._start(entry.client)
        _, arrival = entry.order
        if arrival >= self._newest.get(entry.client, arrival):  # else one that was preempted could swap back
            self._newest[entry.client], self._weights[entry.client] = arrival, entry.weight
        insort(self._entries.setdefault(entry.client, []), entry, key=lambda each: each.order)
        self._cost[entry.client] = self._cost.get(entry.client, 0.0) + entry.cost
        self._tokens[entry.client] = self.tokens_of(entry.client) + entry.length

    def remove(self, entry: EntryT) -> None:
        """Removes a waiting entry that is not served."""
        entries = self._entries[entry.client]
        entries.remove(entry)
        self._cost[entry.client] -= entry.cost
        self._tokens[entry.client] -= entry.length
        if not entries:
            del self._entries[entry.client], self._cost[entry.client], self._tokens[entry.client]
        self._leave(entry.client)

    def take(self, entry: EntryT) -> None:
        """Removes a waiting entry that is served from now until `give_back`."""
        self._given[entry.client] += entry.cost / self._weights[entry.client]
        self._time += entry.cost / sum(self._weights.values())
        self._running[entry.client] = self.running(entry.client) + 1
        self.remove(entry)

    def give_back(self, client: str) -> None:
        """Records that one of a client's taken entries is no longer served."""
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._leave(client)

    def cost_of(self, client: str) -> float:
        """The cost of a client's waiting entries."""
        return self._cost.get(client, 0.0)

    def mean_cost(self, client: str | None = None) -> float:
        """The mean cost of the waiting entries, of all clients or of one; 0 if none wait."""
        if client is None:
            return self.cost / max(len(self), 1)
        return self.cost_of(client) / max(self.waiting(client), 1)

    def cost_before(self, client: str, weight: float = 1.0) -> float:
        """The cost of all entries that would be served before a new entry of a client with this weight."""
        own = self.cost_of(client)
        start = self._start(client) + own / weight
        others = (name for name in self._cost if name != client)
        return own + sum(min(self._cost[name], self._due(name, start)) for name in others)

    def _due(self, client: str, counter: float) -> float:
        """The cost of what a client receives until its counter has this value."""
        return max(0.0, counter - self._given[client]) * self._weights[client]

    def _leave(self, client: str) -> None:
        if client not in self._entries and client not in self._running:
            del self._given[client], self._weights[client], self._newest[client]

    def _start(self, client: str) -> float:
        """A client's counter when it adds an entry.

        A client without waiting entries has no credit: its counter is raised to the lowest of the waiting
        clients, and to that of a client that always waited. So new clients cannot overtake others for ever.
        """
        given = self._given.get(client, 0.0)
        if client in self._entries:
            return given
        return max(given, self._time, min((self._given[each] for each in self._entries), default=0.0))
