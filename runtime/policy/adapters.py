"""Which LoRA adapters are on the device: a fixed number of places, taken by the least recently used. No JAX.

An adapter keeps its place while a sequence with it has a slot. If all places are kept, sequences with other
adapters wait. No adapter starves: once one waits, sequences with any adapter that come after it wait too, so
places become free; sequences of the base model pass.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ...model.adapter import LowRank


@dataclass(frozen=True, eq=False, slots=True)
class HostAdapter:
    """An adapter in host memory.

    Attributes:
      id: of the adapter. factors: as they lie in the device's stacks, of all maps that can have an adapter.
      names: the maps that it has.
    """

    id: str
    factors: Mapping[str, LowRank]
    names: frozenset[str]


class AdapterPlaces:
    """The device's places for adapters.

    Attributes:
      loads: how often an adapter was put into a place.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._places: OrderedDict[str, int] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._loads: dict[int, HostAdapter] = {}
        self.loads = 0

    def admit(self, adapters: Iterable[HostAdapter | None]) -> Iterator[bool]:
        """Whether each sequence of a queue can begin, if those before it that can do so; None: base model."""
        held, free = set(self._users), self._count - len(self._users)
        blocked = False
        for adapter in adapters:
            if adapter is not None and adapter.id not in held:
                blocked = blocked or not free
                if not blocked:
                    held.add(adapter.id)
                    free -= 1
            yield adapter is None or not blocked

    def take(self, adapter: HostAdapter) -> int:
        """The place of an adapter, kept until `release`; the next step loads it if needed."""
        place = self._places.pop(adapter.id, None)
        if place is None:
            place = self._free_place()
            self._loads[place] = adapter
            self.loads += 1
        self._places[adapter.id] = place
        self._users[adapter.id] += 1
        return place

    def release(self, adapter: HostAdapter) -> None:
        """Ends one use of a place. The adapter stays there until another one needs it."""
        self._users[adapter.id] -= 1
        if not self._users[adapter.id]:
            del self._users[adapter.id]

    def take_loads(self) -> list[tuple[int, HostAdapter]]:
        """The adapters that must be loaded before the next step, with their places."""
        loads, self._loads = list(self._loads.items()), {}
        return loads

    def _free_place(self) -> int:
        if len(self._places) < self._count:
            return len(self._places)
        unused = next(id for id in self._places if id not in self._users)
        return self._places.pop(unused)
