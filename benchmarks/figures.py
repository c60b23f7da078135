"""The measured figures, and how the figures of several rounds are combined.

For a server's figure, the median over the rounds is used; for a ratio, the median of the rounds' ratios,
because a shared machine is faster in some rounds than in others for all servers. For a machine's limit, the
maximum is used, because less is not a limit.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

MACHINE = "machine"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number: its round, server, load and number of streams (0: does not apply)."""

    round: int
    server: str
    load: str
    streams: int
    name: str
    value: float


class Figures:
    """All figures of a measurement.

    Attributes:
      servers: the measured servers, in order.
    """

    def __init__(self, figures: Iterable[Figure]) -> None:
        self._values: defaultdict[tuple[str, str, int, str], dict[int, float]] = defaultdict(dict)
        for each in figures:
            self._values[each.server, each.load, each.streams, each.name][each.round] = each.value
        self.servers = list(dict.fromkeys(key[0] for key in self._values if key[0] != MACHINE))

    def rounds(self, server: str, load: str, streams: int, name: str) -> dict[int, float]:
        """A figure in each round that has it; `prefill` is a prompt's tokens over the time to the first
        token."""
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
        """The maximum that the machine has shown in any round; 0 if it was not measured."""
        return max(self.rounds(MACHINE, "limits", 0, name).values(), default=0.0)

    def ratios(self, ours: str, peer: str, load: str, streams: int, name: str) -> list[float]:
        """Ours over the peer's, in each round that has both, from low to high."""
        mine, theirs = (self.rounds(server, load, streams, name) for server in (ours, peer))
        return sorted(mine[number] / theirs[number] for number in mine if theirs.get(number))

    def streams(self, load: str) -> list[int]:
        """The numbers of streams for which a load was measured."""
        return sorted({key[2] for key in self._values if key[1] == load})

    def names(self, load: str) -> list[str]:
        """The names of a load's figures, in order."""
        return list(dict.fromkeys(key[3] for key in self._values if key[1] == load))


def bandwidth_ceiling(found: Figures) -> tuple[float, str]:
    """The maximum of bytes read per second, and what showed it.

    A server that decodes in f32 reads all weights once per token; if one does so faster than the machine's
    read test, the test was not the limit.
    """
    shown = {"the read test": found.ceiling("read_bytes_per_second")}
    weights = 4 * found.ceiling("parameters_decode")
    for server in found.servers:
        paces = found.rounds(server, "chat", 1, "time_per_token_p50").values()
        if server.endswith("-f32") and paces:
            shown[server] = weights / min(paces)
    who = max(shown, key=lambda name: shown[name])
    return shown[who], who
