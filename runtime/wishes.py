"""What an operator writes about devices and kernels, `model=4` or `attention=blocks`, taken apart. No JAX."""

import re
from collections.abc import Sequence

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
