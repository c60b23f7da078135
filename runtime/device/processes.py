"""Several processes as one machine: joining, agreeing on what must be equal, and finding one another.

JAX's own runtime (`jax.distributed`) makes one mesh of all processes' devices. What is decided here, once, at
the start, decides what every process compiles; so each tells the others, and a difference is an error by name
and not a hang. Process 0 leads; how its steps reach the others is `lockstep.py`'s.
"""

import contextlib
import json
import logging
import os
import secrets
import sys
import threading
from collections import Counter
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ...model.errors import ConfigError
from ..options import Membership

log = logging.getLogger(__name__)

JOIN_SECONDS = 300.0
"""Within which all processes must have come."""
LOST_SECONDS = 20
"""After which JAX takes a silent process for lost. It tells late and ends a process with a stack trace, so it
is left the time before the control connection is up; after that `control.py` is sooner."""

_PART_SECONDS = 5
_LONGEST = 4096
_SECRET_BYTES = 32
_NOT_TOGETHER = 70
"""Exit code of a process whose others did not come: as of one whose others are lost."""


def join(membership: Membership, devices: int | None) -> None:
    """Makes this process one of several; to be called before anything else uses JAX. Idempotent.

    Ends the process if the others do not come within JOIN_SECONDS.

    Args:
      devices: of the whole mesh, where they are to be made of CPUs; None for all accelerators there are.

    Raises:
      ConfigError: the devices do not divide evenly, or differ from process to process.
    """
    if jax.distributed.is_initialized():
        return
    if devices is not None:
        if devices % membership.processes:
            raise ConfigError(
                f"mesh model={devices}; expected a multiple of the {membership.processes} processes"
            )
        jax.config.update("jax_num_cpu_devices", devices // membership.processes)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    log.info(
        "process %d of %d: meeting the others at %s, within %.0f s",
        membership.process, membership.processes, membership.coordinator, JOIN_SECONDS,
    )  # fmt: skip
    patience = threading.Timer(JOIN_SECONDS, _give_up, [membership])
    patience.daemon = True
    patience.start()
    try:
        _initialize(membership)
        counts = Counter(device.process_index for device in jax.devices())
    finally:
        patience.cancel()
    for number, count in sorted(counts.items()):
        if count != counts[0]:
            leave()  # the others, which ask process 0 for these counts, must have heard them before it ends
            raise ConfigError(
                f"process {number} has {count} devices; expected {counts[0]} as process 0 has: "
                "--mesh must be the same everywhere"
            )


def _initialize(membership: Membership) -> None:
    """JAX's part. On a timeout of its own it would end the process without a word that helps."""
    try:
        jax.distributed.initialize(
            membership.coordinator,
            membership.processes,
            membership.process,
            cluster_detection_method="deactivate",
            coordinator_bind_address=membership.coordinator,
            initialization_timeout=round(JOIN_SECONDS) + 60,
            heartbeat_timeout_seconds=LOST_SECONDS,
            shutdown_timeout_seconds=_PART_SECONDS,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        wanted = "; expected a free port at an address of this host" if membership.leads else ""
        raise ConfigError(
            f"process {membership.process} cannot join at {membership.coordinator}: {reason}{wanted}"
        ) from None


def _give_up(membership: Membership) -> None:
    """Ends the process; JAX's waiting cannot be interrupted in any other way."""
    log.error(
        "%d processes have not come together at %s within %.0f s; expected each of --process-id 0 to %d "
        "once, the same --num-processes everywhere, and an address of process 0 that all can reach",
        membership.processes, membership.coordinator, JOIN_SECONDS, membership.processes - 1,
    )  # fmt: skip
    sys.stderr.flush()
    os._exit(_NOT_TOGETHER)


def leave() -> None:
    """Leaves the others in good order; every process should call it, at about the same time."""
    with contextlib.suppress(RuntimeError):  # one that is gone already does not keep us
        jax.distributed.shutdown()


def agree(facts: Mapping[str, object]) -> None:
    """Holds this process's facts against all others'; every process must call it. A lone one agrees.

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


def minimum(number: int) -> int:
    """The smallest of all processes' numbers; every process must call it. A lone one gets its own."""
    return min(int(text) for text in _exchange(str(number).encode()))


def barrier() -> None:
    """Waits for all processes; every process must call it."""
    _exchange(b"here")


def share_address(port: int | None) -> tuple[int, bytes]:
    """The leader's port and a secret, told to all over JAX's own connections; followers pass None."""
    own = json.dumps({"port": port, "secret": secrets.token_hex(_SECRET_BYTES)})
    told = json.loads(_exchange(own.encode())[0])
    return told["port"], bytes.fromhex(told["secret"])


def _exchange(text: bytes) -> list[bytes]:
    """Every process's text, in the order of their numbers.

    A collective over all devices, the ones that steps run on: the first one of its kind sets up connections,
    for which some backends wait half a minute at most, and later ones, after loading and compiling, wait as
    long as it takes.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"{len(text)} bytes to agree on; expected at most {_LONGEST}")
    if jax.process_count() == 1:
        return [text]
    mesh = Mesh(np.array(jax.devices()), ("all",))
    own_1Z = np.frombuffer(text.ljust(_LONGEST), np.uint8)[None]
    text_MZ = jax.make_array_from_callback(
        (mesh.size, _LONGEST), NamedSharding(mesh, P("all")), lambda index: own_1Z
    )
    whole_MZ = np.asarray(jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(text_MZ))
    each = mesh.size // jax.process_count()
    return [bytes(row).rstrip() for row in whole_MZ[::each]]
