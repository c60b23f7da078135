"""The command lines of the engine processes."""

import sys
from functools import cache

from ...model.host_memory import free_bytes
from ..flags import ServeFlags


def engine_commands(flags: ServeFlags) -> list[list[str]]:
    """The words that start each replica's engine, without its open files.

    All, also those that are restarted, receive the host's memory that was free before the first one. So KV
    pools in it have one size, and compiled steps and copies of pages fit the next process.
    """
    start = [sys.executable, "-m", "distaff.server.worker.main", "--free-memory", str(_free_at_first())]
    return [[*start, "--replica", str(n), flags.to_argument()] for n in range(flags.replicas)]


@cache
def _free_at_first() -> int:
    return free_bytes()
