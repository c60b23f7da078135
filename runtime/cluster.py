"""Several processes as one machine: joining, agreeing on what must be equal, and finding one another.

JAX's own runtime (`jax.distributed`) makes one mesh of all processes' devices. What is decided here, once, at
the start, decides what every process compiles; so each tells the others, and a difference is an error by name
and not a hang. Process 0 leads; how its steps reach the others is `lockstep.py`'s.
"""

import contextlib
import json
import secrets
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..model.errors import ConfigError
from .wishes import Membership

JOIN_SECONDS = 300
"""Within which all processes must have come."""
LOST_SECONDS = 10
"""After which JAX takes a silent process for lost; during the start nothing else watches."""

_PART_SECONDS = 5
_LONGEST = 4096
_SECRET_BYTES = 32


def join(membership: Membership, devices: int | None) -> None:
    """Makes this process one of several; to be called before anything else uses JAX.

    Args:
      devices: of the whole mesh, where they are to be made of CPUs; None for all accelerators there are.

    Raises:
      ConfigError: the devices do not divide evenly, or the processes did not find one another.
    """
    if devices is not None:
        if devices % membership.processes:
            raise ConfigError(
                f"mesh model={devices}; expected a multiple of the {membership.processes} processes"
            )
        jax.config.update("jax_num_cpu_devices", devices // membership.processes)
    try:
        jax.distributed.initialize(
            membership.coordinator,
            membership.processes,
            membership.process,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=LOST_SECONDS,
            shutdown_timeout_seconds=_PART_SECONDS,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"process {membership.process} cannot join at {membership.coordinator}: {reason}"
        ) from None


def part() -> None:
    """Leaves the others in good order; every process should call it, at about the same time."""
    with contextlib.suppress(RuntimeError):  # one that is gone already does not keep us
        jax.distributed.shutdown()


def agree(facts: Mapping[str, object]) -> None:
    """Holds this process's facts against all others'; every process must call it.

    Raises:
      ConfigError: a fact differs from process 0's; it is named.
    """
    own = json.dumps(facts, sort_keys=True, default=str).encode()
    everybody = [json.loads(text) for text in _exchange(own)]
    for number, theirs in enumerate(everybody):
        for name, value in everybody[0].items():
            if theirs.get(name) != value:
                raise ConfigError(
                    f"{name} is {theirs.get(name)!r} in process {number}; expected {value!r} as in process 0"
                )


def least(number: int) -> int:
    """The smallest of all processes' numbers; every process must call it. A lone one gets its own."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).min())


def share_address(port: int | None) -> tuple[int, bytes]:
    """The leader's port and a secret, told to all over JAX's own connections; followers pass None."""
    own = json.dumps({"port": port, "secret": secrets.token_hex(_SECRET_BYTES)})
    told = json.loads(_exchange(own.encode())[0])
    return told["port"], bytes.fromhex(told["secret"])


def _exchange(text: bytes) -> list[bytes]:
    """Every process's text, in the order of their numbers."""
    if len(text) > _LONGEST:
        raise ConfigError(f"{len(text)} bytes to agree on; expected at most {_LONGEST}")
    padded = np.frombuffer(text.ljust(_LONGEST), np.uint8)
    return [bytes(row).rstrip() for row in multihost_utils.process_allgather(padded)]
