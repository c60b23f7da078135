"""The command line of an engine process."""

import sys

from ..flags import ServeFlags


def engine_command(flags: ServeFlags, replica: int) -> list[str]:
    """The words that start the engine of a replica, without its socket."""
    module = "distaff.server.worker.main"
    return [sys.executable, "-m", module, "--replica", str(replica), flags.to_argument()]
