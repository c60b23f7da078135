"""What of a checkpoint is not used, in the log: a line for each such thing, once a process.

Files are read several times on the way to a model (config, tokenizer, weights), and by several processes;
a remark is made the first time only, and a process beside one that reads the same files says nothing.
"""

import logging
from functools import lru_cache

_log = logging.getLogger(__name__)


@lru_cache(1024)
def note(text: str) -> None:
    """Logs a remark as a warning, unless it was made before."""
    _log.warning("%s", text)


def leave_notes_to_another() -> None:
    """Logs no remarks in this process: another one reads the same checkpoint and makes them."""
    _log.setLevel(logging.ERROR)
