"""The notations of flags that hold more than a number: `1,2,4`, `ttft:200`, `KEY=VALUE`."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from ...model.errors import ConfigError

LIMITED = ("ttft", "tpot", "e2el")
"""The metrics that `--goodput` can limit."""
METRICS = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2el": "E2EL",
    "client_queue_time": "client queue time",
    "e2el_including_client_queue": "E2EL incl. queue",
}
"""The metrics that have statistics, and what reports call them."""
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)=([\x20-\x7e]*)")


def parse_concurrency(text: str | None) -> list[int | None]:
    """`1,2,4`: the limits of a sweep; `[None]` without a limit.

    Raises:
      ConfigError: not numbers above 0.
    """
    if text is None:
        return [None]
    if not all(part.isdecimal() and int(part) > 0 for part in text.split(",")):
        raise ConfigError(f"{text!r} is not a number above 0, or several such as 1,2,4")
    return [int(part) for part in text.split(",")]


def parse_limits(pairs: Sequence[str] | None) -> dict[str, float]:
    """`ttft:200`: milliseconds by metric; several in one text are separated by spaces or commas.

    Raises:
      ConfigError: another metric, or no number of at least 0.
    """
    words = [word for pair in pairs or () for word in re.split(r"[ ,]+", pair) if word]
    found = {}
    for word in words:
        name, _, value = word.partition(":")
        if name not in LIMITED or not re.fullmatch(r"\d+(\.\d*)?|\.\d+", value):
            raise ConfigError(f"{word!r} is not METRIC:MS with a metric of {', '.join(LIMITED)}")
        found[name] = float(value)
    return found


def parse_headers(pairs: Sequence[str] | None) -> dict[str, str]:
    """`KEY=VALUE` of each header.

    Raises:
      ConfigError: another form, or characters that a header cannot have.
    """
    matches = {pair: _HEADER.fullmatch(pair) for pair in pairs or ()}
    for pair, match in matches.items():
        if not match:
            raise ConfigError(f"{pair!r} is not KEY=VALUE in visible ASCII")
    return {match[1].strip(): match[2].strip() for match in matches.values() if match}


def parse_percentiles(text: str) -> list[float]:
    """`50,99`.

    Raises:
      ConfigError: not numbers from 0 to 100.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(0 <= percentile <= 100 for percentile in found):
        raise ConfigError(f"{text!r} is not a number from 0 to 100, or several such as 50,99")
    return found


def parse_metrics(text: str) -> list[str]:
    """`ttft,itl`.

    Raises:
      ConfigError: an unknown metric.
    """
    found = text.split(",")
    if wrong := [name for name in found if name not in METRICS]:
        raise ConfigError(f"{wrong[0]!r} is not one of {', '.join(METRICS)}")
    return found


def parse_body(text: str | None) -> dict[str, Any]:
    """A JSON object.

    Raises:
      ConfigError: it is something else.
    """
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{text!r} is not a JSON object")
    return found


def check_above_zero(value: float) -> None:
    """Raises:
    ConfigError: not above 0.
    """
    if not value > 0:
        raise ConfigError(f"{value:g} is not above 0")
