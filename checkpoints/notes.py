"""Logs what is not used of a checkpoint: one line for each item, once per process.

Files are read several times to load a model (config, tokenizer, weights), and by several processes; a note is
logged the first time only, and by one of the processes that read the same files.
"""

import logging
from functools import lru_cache

_log = logging.getLogger(__name__)


@lru_cache(1024)
def note(text: str) -> None:
    """Logs a note as a warning, unless it was logged before."""
    _log.warning("%s", text)


def silence_notes() -> None:
    """Logs no notes in this process: another process reads the same checkpoint and logs them."""
    _log.setLevel(logging.ERROR)
