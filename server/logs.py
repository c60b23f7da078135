"""Logging, configured once in each process: one line for each record on stderr, as text or as JSON.

In JSON, what a record gives as `extra` is a key of its own; its message says the same as text. Lines contain
no prompt, no answer and no key.
"""

import contextlib
import logging
import sys
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["text", "json"]

_TEXT = "%(asctime)s %(levelname)s {speaker}%(name)s: %(message)s"
_JSON = "%(levelname)s %(name)s %(message)s"
_RENAMED = {"levelname": "level", "name": "logger", "exc_info": "exception"}


class _Stderr(logging.Handler):
    """Writes to the current `sys.stderr`, so that a progress bar can stay below the lines.

    A full disk or a closed stderr loses log lines but fails no request.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


def configure_logging(level: str, speaker: str = "", format: LogFormat = "text") -> None:
    """Logs from `level` on to stderr; other libraries' records only from WARNING on.

    Args:
      speaker: the name of this process in the lines, if there are several of a kind.
    """
    handler = _Stderr()
    handler.setFormatter(_as_json(speaker) if format == "json" else _as_text(speaker))
    logging.basicConfig(
        level=max(logging.WARNING, logging.getLevelName(level)), handlers=[handler], force=True
    )
    logging.getLogger("distaff").setLevel(level)
    logging.getLogger("sanic.error").setLevel(logging.ERROR)  # it warns about its own production mode


def _as_text(speaker: str) -> logging.Formatter:
    return logging.Formatter(_TEXT.format(speaker=f"[{speaker}] " if speaker else ""))


def _as_json(speaker: str) -> logging.Formatter:
    """The time is in UTC, as ISO 8601 defines it."""
    always = {"process": speaker} if speaker else {}
    return JsonFormatter(_JSON, rename_fields=_RENAMED, static_fields=always, timestamp="time")
