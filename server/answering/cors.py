"""Which web pages may ask: cross-origin requests of browsers, answered as the Fetch standard has it.

None may unless the operator names their origins. Knows headers alone. The one idea: an answer carries the
same headers whatever it is, an error or a stream, for a page cannot read what lacks them; and it says that it
varies by origin, so that no cache gives one page's answer to another.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

import re
from collections.abc import Mapping, Sequence

from ...model.errors import ConfigError

ANY = "*"
"""In place of an origin: every page may ask."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s*,]+")
_NAMES = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t]*[!#$%&'+.^_`|~0-9A-Za-z-]+)*")
_LONGEST_NAMES = 4096
_METHODS = "GET, HEAD, POST, OPTIONS"
_EXPOSED = "x-request-id, openai-processing-ms, openai-version, retry-after"
_REMEMBERED_SECONDS = 600


def parse_origin(text: str) -> str:
    """An origin as browsers write it, or ANY.

    Raises:
      ConfigError: neither.
    """
    origin = text.strip().lower()
    if origin != ANY and not _ORIGIN.fullmatch(origin):
        raise ConfigError(f"{text!r} is no origin; expected one such as https://app.example.com, or {ANY!r}")
    return origin


def cors_headers(allowed: Sequence[str], request: Mapping[str, str], *, preflight: bool) -> dict[str, str]:
    """What lets the page that asks read the answer; nothing where no origins are allowed.

    Args:
      preflight: the request is OPTIONS, and asks beforehand what a request may be.
    """
    if not allowed:
        return {}
    varies = (
        "Origin, Access-Control-Request-Method, Access-Control-Request-Headers" if preflight else "Origin"
    )
    origin = request.get("origin")
    if origin is None or not (ANY in allowed or origin.lower() in allowed):
        return {"vary": varies}
    found = {"vary": varies, "access-control-allow-origin": ANY if ANY in allowed else origin}
    if not preflight:
        return found | {"access-control-expose-headers": _EXPOSED}
    wanted = request.get("access-control-request-headers", "")
    if len(wanted) <= _LONGEST_NAMES and _NAMES.fullmatch(wanted):
        found["access-control-allow-headers"] = wanted
    return found | {
        "access-control-allow-methods": _METHODS,
        "access-control-max-age": str(_REMEMBERED_SECONDS),
    }
