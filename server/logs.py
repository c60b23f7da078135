"""Logging, set up once for each process: single lines on stderr with a time and a level."""

import contextlib
import logging
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

    Args:
      speaker: who speaks, where several processes of a kind do.
    """
    handler = _Stderr()
    handler.setFormatter(logging.Formatter(_FORMAT.format(speaker=f"[{speaker}] " if speaker else "")))
    logging.basicConfig(
        level=max(logging.WARNING, logging.getLevelName(level)), handlers=[handler], force=True
    )
    logging.getLogger("distaff").setLevel(level)
    logging.getLogger("sanic.error").setLevel(logging.ERROR)  # it warns of its own production mode
