"""The JSON file of a session: where it lies and what is in it, as `vllm bench serve` writes it."""

import json
from pathlib import Path
from typing import Any

from .. import exit_codes
from ..exit_codes import Failed
from .flags import BenchFlags
from .session import Session


def make_folder(flags: BenchFlags) -> None:
    """Makes the folder of the file, before the loads.

    Raises:
      Failed: it cannot be made.
    """
    folder = _path(flags, "file").parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"{folder}: cannot be made ({error})", exit_codes.USAGE) from None


def save(flags: BenchFlags, session: Session) -> Path:
    """Writes the figures of the one load, or a list of those of all loads; returns the file.

    Without a name of its own, it is named after backend, rate, concurrency, model and date.

    Raises:
      Failed: it cannot be written.
    """
    found = [level.figures for level in session.levels]
    path = _path(flags, _usual_name(flags, found[0]))
    try:
        path.write_text(json.dumps(found[0] if len(found) == 1 else found, indent=1) + "\n")
    except OSError as error:
        raise Failed(f"{path}: cannot be written ({error})", exit_codes.USAGE) from None
    return path


def _path(flags: BenchFlags, usual: str) -> Path:
    return (flags.result_dir or Path()) / (flags.result_filename or usual)


def _usual_name(flags: BenchFlags, figures: dict[str, Any]) -> str:
    limit = f"-concurrency{flags.max_concurrency.replace(',', '-')}" if flags.max_concurrency else ""
    model = figures["model_id"].rpartition("/")[2]
    return f"{figures['backend']}-{flags.request_rate:g}qps{limit}-{model}-{figures['date']}.json"
