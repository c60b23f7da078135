"""Logging, configured once in each process: single lines on stderr with a time and a level."""

import contextlib
import logging
import sys

_FORMAT = "%(asctime)s %(levelname)s {speaker}%(name)s: %(message)s"


class _Stderr(logging.Handler):
    """Writes to the current `sys.stderr`, so that a progress bar can stay below the lines.

    A full disk or a closed stderr loses log lines but fails no request.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


def configure_logging(level: str, speaker: str = "") -> None:
    """Logs from `level` on to stderr; other libraries' records only from WARNING on.

    Args:
      speaker: the name of this process in the lines, if there are several of a kind.
    """
    handler = _Stderr()
    handler.setFormatter(logging.Formatter(_FORMAT.format(speaker=f"[{speaker}] " if speaker else "")))
    logging.basicConfig(
        level=max(logging.WARNING, logging.getLevelName(level)), handlers=[handler], force=True
    )
    logging.getLogger("distaff").setLevel(level)
    logging.getLogger("sanic.error").setLevel(logging.ERROR)  # it warns about its own production mode
