"""A follower process: `distaff serve` on every host except the first. No HTTP, no web process.

It loads its share of the model, and compiles and launches the same steps as the leader until the leader ends
the session. An orchestrator that stops a job signals all its processes at once. So the first signal is left
to the leader, which drains and then ends the session; the second ends this process. Before the processes are
connected, the first signal ends it.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from typing import NoReturn

from ...checkpoints.notes import silence_notes
from ...model.errors import DistaffError
from .. import exit_codes
from ..flags import ServeFlags
from ..logs import configure_logging
from ..process import system
from ..process.progress import Lines
from ..settings import ServerSettings
from .device_shares import hide_absent_tpu
from .from_flags import dtype_of, engine_settings_of, facts_of, set_up_mesh, set_up_programs
from .main import end_process
from .refusals import memory_refused, settings_refused

log = logging.getLogger("distaff.server.worker.follower")  # `__name__` is `__main__` here

_GOODBYE_SECONDS = ServerSettings(model="").drain_seconds + 15.0
"""The longest time from a signal to the leader's goodbye: its time to drain, and a margin."""


def become_follower(flags: ServeFlags) -> NoReturn:
    """Replaces this process by a follower, in the environment that an engine needs."""
    command = [sys.executable, "-m", "distaff.server.worker.follower", flags.to_argument()]
    os.execve(sys.executable, command, system.engine_environment())


def main() -> None:
    """Entry point; exits by `os._exit`, because XLA's threads do not end cleanly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("flags", type=ServeFlags.from_argument)
    flags: ServeFlags = parser.parse_args().flags
    configure_logging(flags.log_level.upper(), f"process {flags.process_id}", flags.log_format)
    silence_notes()  # the leader's web process reads the same files
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Python's handler waits for JAX, which waits for the other processes
    code = exit_codes.ENGINE_LOST
    try:
        follow(flags)
        code = exit_codes.OK
    except DistaffError as error:
        print("distaff:", " ".join(str(error).split()), file=sys.stderr)
        code = exit_codes.of(error)
    except BaseException:
        log.exception("the follower failed")
    sys.stderr.flush()
    os._exit(code)


def follow(flags: ServeFlags) -> None:
    """Follows the leader until its goodbye.

    Raises:
      CheckpointError, ConfigError: the model cannot be read or does not fit the mesh.
      SettingRefused: a setting differs from the leader's, or does not fit.
    """
    hide_absent_tpu()
    system.limit_threads()
    from ...checkpoints import load_parameters, open_checkpoint, resolve, with_own_bits

    path = resolve(flags.model, revision=flags.revision)
    checkpoint = open_checkpoint(path, flags.quantize)
    mesh = set_up_mesh(flags)
    checkpoint = with_own_bits(checkpoint, flags.quantize, mesh)
    set_up_programs(flags, checkpoint, mesh)
    _leave_signals_to_the_leader()
    from ...runtime.cluster.lockstep import Follower
    from ...runtime.device.assembly import assemble
    from ...runtime.device.processes import agree

    membership = flags.membership
    assert membership is not None
    with settings_refused():
        agree(facts_of(flags, checkpoint))
        follower = Follower(membership, end_process)
    try:
        device = mesh.local_devices[0]
        show = Lines().show
        with memory_refused(flags):
            parameters = load_parameters(checkpoint, dtype_of(flags, device), show, mesh)
            with settings_refused():
                runner = assemble(checkpoint.config, parameters, engine_settings_of(flags, device), mesh)
            del parameters  # see `build_engine`
            runner.warm_up(lambda done, total: show("compile", done, total))
    except DistaffError as error:
        follower.fail(str(error), exit_codes.of(error))
        raise
    log.info("following process 0 at %s", flags.coordinator)
    follower.run(runner)
    log.info("the leader has ended the session")


def _leave_signals_to_the_leader() -> None:
    """Logs the first SIGTERM or SIGINT; the second one, or a timeout, ends the process."""

    def first(number: int, frame: object) -> None:
        log.info("%s: waiting for the leader; a second signal exits at once", signal.Signals(number).name)
        reason = f"the leader has not ended the session within {_GOODBYE_SECONDS:.0f} s"
        patience = threading.Timer(_GOODBYE_SECONDS, end_process, [reason])
        patience.daemon = True
        patience.start()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, first)


if __name__ == "__main__":
    main()
