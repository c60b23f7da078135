"""CORS: cross-origin requests of browsers, answered according to the Fetch standard.

No web page may send requests unless the operator lists its origin. Handles headers only. Every answer carries
the same headers, also an error or a stream, because a page cannot read an answer without them. It also varies
by origin, so that no cache returns one page's answer to another.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

import re
from collections.abc import Mapping, Sequence

from ...model.errors import ConfigError
from ..quotas.rate_headers import OPENAI_HEADERS

ANY = "*"
"""In place of an origin: every page is allowed."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s*,]+")
_NAMES = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t]*[!#$%&'+.^_`|~0-9A-Za-z-]+)*")
_LONGEST_NAMES = 4096
_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
_EXPOSED = ", ".join(
    (
        *("x-request-id", "openai-processing-ms", "openai-version", "retry-after"),
        *("x-distaff-cache", "x-distaff-tools-left-out", "retry-after-ms"),
        *OPENAI_HEADERS,
    )
)
_REMEMBERED_SECONDS = 600


def parse_origin(text: str) -> str:
    """An origin as browsers write it, or ANY.

    Raises:
      ConfigError: it is neither.
    """
    origin = text.strip().lower()
    if origin != ANY and not _ORIGIN.fullmatch(origin):
        raise ConfigError(
            f"{text!r} is not an origin; expected one such as https://app.example.com, or {ANY!r}"
        )
    return origin


def cors_headers(allowed: Sequence[str], request: Mapping[str, str], *, preflight: bool) -> dict[str, str]:
    """The headers that let a page read the answer; empty if no origins are allowed.

    Args:
      preflight: the request is OPTIONS, to learn which requests are allowed.
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
