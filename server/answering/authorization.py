"""Who asks: the key in a request's head, before a byte of its body is read.

Which keys there are is `keys.py`'s. The one idea: everything needs a key unless it is named here, so that a
route, or a path that is none, cannot be forgotten.
"""

from ..errors import Unauthorized
from ..keys import is_plain
from .context import ApiRequest

OPEN_PATHS = frozenset({"/health", "/ping", "/ready"})
"""What the machines that look after a server ask, without a key."""

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
    "auth (i.e. Authorization: Bearer YOUR_KEY)."
)

_SHORTEST_SHOWN = 12
_SHOWN = 4


def authorize(request: ApiRequest) -> None:
    """Notes whose key the request carries, where keys are in use.

    Run as soon as a head is there: what is raised now is answered at once, and ends the connection.

    Raises:
      Unauthorized: no key, or one that is not accepted.
    """
    keys = request.app.ctx.settings.keys
    if keys is None or request.method == "OPTIONS" or request.path.removesuffix("/") in OPEN_PATHS:
        return
    key = bearer(request.headers.getall("authorization", []))
    if key is None:
        raise Unauthorized(NO_KEY)
    key_id = keys.identify(key)
    if key_id is None:
        raise Unauthorized(f"Incorrect API key provided{_hint(key)}.", "invalid_api_key")
    request.key_id = key_id


def bearer(values: list[str]) -> str | None:
    """The key among the Authorization headers: None unless there is exactly one, of the scheme Bearer."""
    if len(values) != 1:
        return None
    scheme, _, key = values[0].partition(" ")
    return key if key and scheme.lower() == "bearer" else None


def _hint(key: str) -> str:
    """Enough of a key to tell which of one's own it was, and too little to guess it."""
    if len(key) < _SHORTEST_SHOWN or not is_plain(key):
        return ""
    return f": {key[:_SHOWN]}…{key[-_SHOWN:]}"
