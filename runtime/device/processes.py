"""Several processes with one mesh: they join, compare what must be equal, and exchange an address.

JAX's own runtime (`jax.distributed`) makes one mesh of the devices of all processes. Decisions at the start
determine what every process compiles. So the processes compare them, and a difference is an error that names
it, not a hang. Process 0 leads; `lockstep.py` sends its steps to the others.
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
"""The time within which all processes must have joined."""
LOST_SECONDS = 20
"""The silence after which JAX considers a process lost. JAX reports it late and with a stack trace, so this
only matters before the control connection exists; after that `control.py` reports it sooner."""

_LEAVE_SECONDS = 5
_LONGEST = 4096
_SECRET_BYTES = 32
_NOT_JOINED = 70
"""Exit code if the other processes do not join; the same as when they are lost."""


def join(membership: Membership, devices: int | None) -> None:
    """Makes this process one of several; call it before anything else uses JAX. Idempotent.

    Ends the process if the others do not join within JOIN_SECONDS.

    Args:
      devices: of the whole mesh, if CPU devices are to be created; None uses all existing accelerators.

    Raises:
      ConfigError: the devices do not divide evenly, or their number differs between processes.
    """
    if jax.distributed.is_initialized():
        return
    if devices is not None:
        if devices % membership.processes:
            raise ConfigError(
                f"mesh model={devices}; expected a multiple of the {membership.processes} processes"
            )
        jax.config.update("jax_num_cpu_devices", devices // membership.processes)
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM itself
    log.info(
        "process %d of %d: joining the others at %s, within %.0f s",
        membership.process, membership.processes, membership.coordinator, JOIN_SECONDS,
    )  # fmt: skip
    timer = threading.Timer(JOIN_SECONDS, _exit_after_timeout, [membership])
    timer.daemon = True
    timer.start()
    try:
        _initialize(membership)
        counts = Counter(device.process_index for device in jax.devices())
    finally:
        timer.cancel()
    for number, count in sorted(counts.items()):
        if count != counts[0]:
            leave()  # the others receive these counts from process 0, so it must not exit before that
            raise ConfigError(
                f"process {number} has {count} devices; expected {counts[0]} as process 0 has: "
                "--mesh must be the same everywhere"
            )


def _initialize(membership: Membership) -> None:
    """Joins JAX's runtime, which would end the process without a useful message on its own timeout."""
    try:
        jax.distributed.initialize(
            membership.coordinator,
            membership.processes,
            membership.process,
            cluster_detection_method="deactivate",
            coordinator_bind_address=membership.coordinator,
            initialization_timeout=round(JOIN_SECONDS) + 60,
            heartbeat_timeout_seconds=LOST_SECONDS,
            shutdown_timeout_seconds=_LEAVE_SECONDS,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        wanted = "; expected a free port at an address of this host" if membership.leads else ""
        raise ConfigError(
            f"process {membership.process} cannot join at {membership.coordinator}: {reason}{wanted}"
        ) from None


def _exit_after_timeout(membership: Membership) -> None:
    """Ends the process; JAX's waiting cannot be interrupted otherwise."""
    log.error(
        "%d processes have not joined at %s within %.0f s; expected each of --process-id 0 to %d "
        "once, the same --num-processes everywhere, and an address of process 0 that all can reach",
        membership.processes, membership.coordinator, JOIN_SECONDS, membership.processes - 1,
    )  # fmt: skip
    sys.stderr.flush()
    os._exit(_NOT_JOINED)


def leave() -> None:
    """Disconnects from the other processes; all should call it, at about the same time."""
    with contextlib.suppress(RuntimeError):  # a process that is gone already must not stop this one
        jax.distributed.shutdown()


def agree(facts: Mapping[str, object]) -> None:
    """Compares this process's facts with those of all others; every process must call it.

    Does nothing if there is only one process.

    Raises:
      ConfigError: a fact differs from process 0's; the message names it.
    """
    own = json.dumps(facts, sort_keys=True, default=str).encode()
    all_facts = [json.loads(text) for text in _exchange(own)]
    for number, theirs in enumerate(all_facts):
        for name, value in all_facts[0].items():
            if theirs.get(name) != value:
                raise ConfigError(
                    f"{name} is {theirs.get(name)!r} in process {number}; expected {value!r} as in process 0"
                )


def minimum(number: int) -> int:
    """The smallest of all processes' numbers; every process must call it. Works with one process too."""
    return min(int(text) for text in _exchange(str(number).encode()))


def barrier() -> None:
    """Waits for all processes; every process must call it."""
    _exchange(b"here")


def share_address(port: int | None) -> tuple[int, bytes]:
    """The leader's port and secret, sent to all over JAX's own connections; followers pass None."""
    own = json.dumps({"port": port, "secret": secrets.token_hex(_SECRET_BYTES)})
    address = json.loads(_exchange(own.encode())[0])
    return address["port"], bytes.fromhex(address["secret"])


def _exchange(text: bytes) -> list[bytes]:
    """The texts of all processes, in the order of their numbers.

    This is a collective over the same devices that run the steps. The first collective sets up connections,
    for which some backends wait half a minute at most. Later ones, after loading and compiling, wait without
    a limit.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"{len(text)} bytes to compare; expected at most {_LONGEST}")
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
