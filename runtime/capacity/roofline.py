"""How long a step takes at best: the slower of memory and arithmetic, plus what crosses between devices.

The one idea is the roofline (Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785). Collectives
are not hidden behind anything, because in a step each of them is waited for.
"""

from dataclasses import dataclass

from .chips import Chip
from .work import Collective, Work


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step on one device: `memory` and `compute` run together, `links` comes on top."""

    memory: float
    compute: float
    links: float

    @property
    def total(self) -> float:
        """Seconds."""
        return max(self.memory, self.compute) + self.links

    @property
    def bound(self) -> str:
        """What the step waits for most."""
        parts = {"memory": self.memory, "compute": self.compute, "links": self.links}
        return max(parts, key=lambda name: parts[name])


def step_time(work: Work, chip: Chip, devices: int) -> StepTime:
    """The least time that a device of this kind needs for its part."""
    return StepTime(
        memory=sum(work.bytes.values()) / chip.bandwidth,
        compute=sum(count / chip.rate[dtype] for dtype, count in work.operations.items()),
        links=sum(each.count * collective_time(each, chip, devices) for each in work.collectives),
    )


def collective_time(collective: Collective, chip: Chip, devices: int) -> float:
    """Seconds of one, around a ring in both directions.

    A gathering sends every part past every device but one, over at most half of the ring; a sum is two such
    passes ("How to Scale Your Model", section on collectives).
    """
    passes = 2 if collective.kind == "all-reduce" else 1
    moved = collective.bytes * (devices - 1) / devices
    return passes * max(moved / chip.send, devices // 2 * chip.hop)
