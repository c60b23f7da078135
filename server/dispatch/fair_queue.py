"""`FairQueue`: the sequences that wait for an engine, and whose turn is next.

Knows neither engines nor clocks. The idea is deficit round robin (Shreedhar and Varghese 1996) with the
finest quantum, which for inference is known as the virtual token counter (Sheng et al. 2024,
arXiv:2401.00588): each client has a count of what it has been given, and the client that was given least is
next. A client that comes back after a pause has no credit for it. Within a client the order is by arrival.
"""

from bisect import insort
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What is asked of an entry."""

    @property
    def client(self) -> str:
        """Whose it is."""
        ...

    @property
    def arrival(self) -> int:
        """Its number in the order of arrival, different for each."""
        ...

    @property
    def cost(self) -> float:
        """What it takes of an engine, in seconds of a slot. It must not change while it waits."""
        ...

    @property
    def length(self) -> int:
        """Its tokens; must not change while it waits."""
        ...


EntryT = TypeVar("EntryT", bound=Waiting)


class FairQueue(Generic[EntryT]):
    """Entries by client."""

    def __init__(self) -> None:
        self._entries: dict[str, list[EntryT]] = {}
        self._cost: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        self._given: dict[str, float] = {}
        self._running: dict[str, int] = {}
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
        """How many have something that waits or runs."""
        return len(self._given)

    def knows(self, client: str) -> bool:
        """Whether a client has something that waits or runs."""
        return client in self._given

    @property
    def tokens(self) -> int:
        """Of all that waits."""
        return sum(self._tokens.values())

    def tokens_of(self, client: str) -> int:
        """Of all that waits of a client."""
        return self._tokens.get(client, 0)

    def waiting(self, client: str) -> int:
        """How many of a client's entries wait."""
        return len(self._entries.get(client, ()))

    def running(self, client: str) -> int:
        """How many of a client's entries were taken and not given back."""
        return self._running.get(client, 0)

    def lines(self) -> list[list[EntryT]]:
        """Each client's entries, in the order in which they are to be served; not to be changed."""
        order = sorted(self._entries, key=lambda client: (self._given[client], self.running(client)))
        return [self._entries[client] for client in order]

    def push(self, entry: EntryT) -> None:
        """Has an entry wait, behind those of its client that arrived before it."""
        self._given[entry.client] = self._start(entry.client)
        insort(self._entries.setdefault(entry.client, []), entry, key=lambda each: each.arrival)
        self._cost[entry.client] = self._cost.get(entry.client, 0.0) + entry.cost
        self._tokens[entry.client] = self.tokens_of(entry.client) + entry.length

    def remove(self, entry: EntryT) -> None:
        """Takes an entry out that waits; it is not served."""
        entries = self._entries[entry.client]
        entries.remove(entry)
        self._cost[entry.client] -= entry.cost
        self._tokens[entry.client] -= entry.length
        if not entries:
            del self._entries[entry.client], self._cost[entry.client], self._tokens[entry.client]
        self._leave(entry.client)

    def take(self, entry: EntryT) -> None:
        """Takes an entry out that is served now, until `give_back`."""
        self._given[entry.client] += entry.cost
        self._time += entry.cost / len(self._given)
        self._running[entry.client] = self.running(entry.client) + 1
        self.remove(entry)

    def give_back(self, client: str) -> None:
        """One of a client's entries that were taken is served no longer."""
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._leave(client)

    def cost_of(self, client: str) -> float:
        """The cost of all that waits of a client."""
        return self._cost.get(client, 0.0)

    def mean_cost(self, client: str | None = None) -> float:
        """Of what waits, of everybody or of a client; 0 if nothing does."""
        if client is None:
            return sum(self._cost.values()) / max(len(self), 1)
        return self.cost_of(client) / max(self.waiting(client), 1)

    def cost_before(self, client: str) -> float:
        """The cost of all that would be served before a further entry of a client."""
        own = self.cost_of(client)
        start = self._start(client) + own
        others = (name for name in self._cost if name != client)
        return own + sum(min(self._cost[name], max(0.0, start - self._given[name])) for name in others)

    def _leave(self, client: str) -> None:
        if client not in self._entries and client not in self._running:
            del self._given[client]

    def _start(self, client: str) -> float:
        """What a client counts as having been given, when it has one more entry.

        One of which nothing waits has no credit for that: it counts as much as the least of those who wait,
        and no less than a client that always waited. So newcomers do not overtake the others for ever.
        """
        given = self._given.get(client, 0.0)
        if client in self._entries:
            return given
        return max(given, self._time, min((self._given[each] for each in self._entries), default=0.0))
