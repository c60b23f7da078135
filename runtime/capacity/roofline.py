"""The shortest possible time of a step: the slower of memory and arithmetic, plus communication.

The one idea is the roofline (Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785). Collectives
do not overlap with anything, because a step waits for each of them.
"""

from dataclasses import dataclass

from .chips import Chip
from .work import Collective, Work


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step on one device: `memory` and `compute` overlap, `links` is added."""

    memory: float
    compute: float
    links: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return max(self.memory, self.compute) + self.links

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        parts = {"memory": self.memory, "compute": self.compute, "links": self.links}
        return max(parts, key=lambda name: parts[name])


def step_time(work: Work, chip: Chip, devices: int) -> StepTime:
    """The shortest time that a device of this kind needs for its part."""
    return StepTime(
        memory=sum(work.bytes.values()) / chip.bandwidth,
        compute=sum(count / chip.rate[dtype] for dtype, count in work.operations.items()),
        links=sum(each.count * collective_time(each, chip, devices) for each in work.collectives),
    )


def collective_time(collective: Collective, chip: Chip, devices: int) -> float:
    """Seconds of one collective, around a ring in both directions.

    An all-gather sends every part to all other devices, over at most half of the ring; an all-reduce is two
    such passes ("How to Scale Your Model", section on collectives).
    """
    passes = 2 if collective.kind == "all-reduce" else 1
    moved = collective.bytes * (devices - 1) / devices
    return passes * max(moved / chip.send, devices // 2 * chip.hop)
