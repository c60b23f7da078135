"""How clients are told what is left of their rates: OpenAI's headers, and Anthropic's on its routes.

Sources: https://platform.openai.com/docs/guides/rate-limits, https://docs.anthropic.com/en/api/rate-limits
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from .quotas import Standing

UNITS = ("requests", "tokens")
OPENAI_HEADERS = tuple(
    f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in UNITS
)


def openai_headers(standings: Sequence[Standing]) -> dict[str, str]:
    """The headers of OpenAI."""
    found: dict[str, str] = {}
    for each in standings:
        found[f"x-ratelimit-limit-{each.unit}"] = str(each.limit)
        found[f"x-ratelimit-remaining-{each.unit}"] = str(each.remaining)
        found[f"x-ratelimit-reset-{each.unit}"] = duration(each.reset)
    return found


def anthropic_headers(standings: Sequence[Standing], now: float) -> dict[str, str]:
    """The headers of Anthropic; `now` in Unix seconds."""
    found: dict[str, str] = {}
    for each in standings:
        reset = datetime.fromtimestamp(math.ceil(now + each.reset), UTC)
        found[f"anthropic-ratelimit-{each.unit}-limit"] = str(each.limit)
        found[f"anthropic-ratelimit-{each.unit}-remaining"] = str(each.remaining)
        found[f"anthropic-ratelimit-{each.unit}-reset"] = reset.isoformat().replace("+00:00", "Z")
    return found


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them, such as `12ms`, `1.5s` or `6m0s`; rounded up to milliseconds."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
