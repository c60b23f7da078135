"""Parsers of an operator's options for devices, processes and kernels, such as `model=4`. No JAX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..model.errors import ConfigError


def parse_mesh(option: str | None) -> int:
    """The number of devices that a model is sharded over; None means one.

    Raises:
      ConfigError: not of the form `model=N` with N at least 1.
    """
    if option is None:
        return 1
    found = re.fullmatch(r"model=([1-9]\d{0,4})", option)
    if not found:
        raise ConfigError(f"mesh is {option!r}; expected model=N, e.g. model=4")
    return int(found[1])


def parse_kernels(options: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`(operation, backend)` of each option; `model/kernels/registry.py` checks that they exist.

    Raises:
      ConfigError: not of the form `operation=backend`.
    """
    pairs = [tuple(option.split("=")) for option in options]
    for option, pair in zip(options, pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            raise ConfigError(f"kernel is {option!r}; expected operation=backend, e.g. attention=blocks")
    return tuple((operation, backend) for operation, backend in pairs)


def parse_adapters(options: Sequence[str]) -> dict[str, Path]:
    """The folders of adapters, by name.

    Raises:
      ConfigError: not of the form `name=folder`, or two have one name.
    """
    found: dict[str, Path] = {}
    for option in options:
        name, _, folder = option.partition("=")
        if not name or not folder:
            raise ConfigError(f"adapter is {option!r}; expected NAME=FOLDER")
        if name in found:
            raise ConfigError(f"adapter {name!r} is given twice; expected different names")
        found[name] = Path(folder).expanduser()
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """A process's place among several.

    Attributes:
      coordinator: `host:port` of process 0, to which JAX's runtimes connect. process: its number, from 0.
      processes: their number.

    Raises:
      ConfigError: the coordinator's address or one of the numbers is invalid.
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
        """The coordinator's host, without the port."""
        return self.coordinator.rpartition(":")[0]

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        return self.process == 0
