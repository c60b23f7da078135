"""What was measured, and the arithmetic that makes figures of rounds into one to quote.

Of a server's figure the median over the rounds counts, of a ratio the median of the rounds' own ratios, since
a shared machine is fast in one round and slow in the next for all alike. Of a machine's ceiling the highest
counts, for less is not a ceiling.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

MACHINE = "machine"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number: in which round, of which server and load, at how many streams (0: does not apply)."""

    round: int
    server: str
    load: str
    streams: int
    name: str
    value: float


class Figures:
    """Figures by what they are of.

    Attributes:
      servers: those that were measured, in order.
    """

    def __init__(self, figures: Iterable[Figure]) -> None:
        self._values: defaultdict[tuple[str, str, int, str], dict[int, float]] = defaultdict(dict)
        for each in figures:
            self._values[each.server, each.load, each.streams, each.name][each.round] = each.value
        self.servers = list(dict.fromkeys(key[0] for key in self._values if key[0] != MACHINE))

    def rounds(self, server: str, load: str, streams: int, name: str) -> dict[int, float]:
        """A figure in each round that has it; `prefill` is a prompt's tokens over the time to the first."""
        if name != "prefill":
            return self._values.get((server, load, streams, name), {})
        tokens = self.rounds(server, load, streams, "prompt_tokens")
        first = self.rounds(server, load, streams, "ttft_p50")
        return {number: tokens[number] / first[number] for number in tokens if first.get(number)}

    def get(self, server: str, load: str, streams: int, name: str) -> float | None:
        """The median over the rounds; None: not measured."""
        values = self.rounds(server, load, streams, name).values()
        return statistics.median(values) if values else None

    def ceiling(self, name: str) -> float:
        """The most that the machine has shown in any round; 0 if it was not asked."""
        return max(self.rounds(MACHINE, "limits", 0, name).values(), default=0.0)

    def ratios(self, ours: str, peer: str, load: str, streams: int, name: str) -> list[float]:
        """Ours over the peer's, in each round that has both, from low to high."""
        mine, theirs = (self.rounds(server, load, streams, name) for server in (ours, peer))
        return sorted(mine[number] / theirs[number] for number in mine if theirs.get(number))

    def streams(self, load: str) -> list[int]:
        """For which numbers of streams a load was measured."""
        return sorted({key[2] for key in self._values if key[1] == load})

    def names(self, load: str) -> list[str]:
        """What was measured of a load, in order."""
        return list(dict.fromkeys(key[3] for key in self._values if key[1] == load))


def bandwidth_ceiling(found: Figures) -> tuple[float, str]:
    """Bytes a second that nothing has exceeded, and who showed them.

    A server that decodes in f32 reads all weights once a token; where one does so faster than the test of the
    machine has read, the test was no ceiling.
    """
    shown = {"the read test": found.ceiling("read_bytes_per_second")}
    weights = 4 * found.ceiling("parameters_decode")
    for server in found.servers:
        paces = found.rounds(server, "chat", 1, "time_per_token_p50").values()
        if server.endswith("-f32") and paces:
            shown[server] = weights / min(paces)
    who = max(shown, key=lambda name: shown[name])
    return shown[who], who
