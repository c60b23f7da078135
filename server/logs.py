"""Logging, set up once for each process: single lines on stderr with a time and a level."""

import contextlib
import logging
import os
import sys

_FORMAT = "%(asctime)s %(levelname)s {speaker}%(name)s: %(message)s"


class _Stderr(logging.Handler):
    """Writes to whatever `sys.stderr` is at the moment, so that a progress bar can keep below the lines.

    A full disk or a closed stderr loses lines, never a request.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


def configure_logging(level: str, speaker: str = "") -> None:
    """Sends everything from `level` on to stderr; other libraries' chatter only from WARNING on.

    To be called before other libraries are imported: some write what they have to say past all of this. An
    operator's own word in their environment variables stands.

    Args:
      speaker: who speaks, where several processes of a kind do.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # "PyTorch was not found", at its import
    handler = _Stderr()
    handler.setFormatter(logging.Formatter(_FORMAT.format(speaker=f"[{speaker}] " if speaker else "")))
    logging.basicConfig(
        level=max(logging.WARNING, logging.getLevelName(level)), handlers=[handler], force=True
    )
    logging.getLogger("distaff").setLevel(level)
    logging.getLogger("sanic.error").setLevel(logging.ERROR)  # it warns of its own production mode
