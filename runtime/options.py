"""What an operator writes about devices, processes and kernels, such as `model=4`, taken apart. No JAX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..model.errors import ConfigError


def parse_mesh(wish: str | None) -> int:
    """The number of devices that a model is divided among; None means one.

    Raises:
      ConfigError: not of the form `model=N` with N at least 1.
    """
    if wish is None:
        return 1
    found = re.fullmatch(r"model=([1-9]\d{0,4})", wish)
    if not found:
        raise ConfigError(f"mesh is {wish!r}; expected model=N, e.g. model=4")
    return int(found[1])


def parse_kernels(wishes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`(operation, way)` of each wish; whether there are such is for `model/kernels/registry.py` to say.

    Raises:
      ConfigError: not of the form `operation=way`.
    """
    pairs = [tuple(wish.split("=")) for wish in wishes]
    for wish, pair in zip(wishes, pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            raise ConfigError(f"kernel is {wish!r}; expected operation=way, e.g. attention=blocks")
    return tuple((operation, way) for operation, way in pairs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """A process's place among several.

    Attributes:
      coordinator: `host:port` of process 0, where JAX's runtimes meet. process: its number, from 0.
      processes: how many there are.
    """

    coordinator: str
    process: int
    processes: int

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"coordinator is {self.coordinator!r}; expected HOST:PORT")
        if self.processes < 2:
            raise ConfigError(f"num_processes is {self.processes}; expected at least 2")
        if not 0 <= self.process < self.processes:
            raise ConfigError(f"process_id is {self.process}; expected 0 to {self.processes - 1}")

    @property
    def host(self) -> str:
        """The coordinator's, without the port."""
        return self.coordinator.rpartition(":")[0]

    @property
    def leads(self) -> bool:
        """Whether it is process 0."""
        return self.process == 0
