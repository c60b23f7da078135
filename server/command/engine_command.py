"""The command lines of the engine processes."""

import sys

from ..flags import ServeFlags


def engine_commands(flags: ServeFlags) -> list[list[str]]:
    """The words that start each replica's engine, without its open files."""
    start, argument = [sys.executable, "-m", "distaff.server.worker.main"], flags.to_argument()
    return [[*start, "--replica", str(replica), argument] for replica in range(flags.replicas)]
