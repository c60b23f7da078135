"""Checks the API key in a request's head, before its body is read.

`keys.py` holds the accepted keys. Every path needs a key unless it is listed here or is a file of the chat
page, so that no route, and no unknown path, can be forgotten.
"""

from ..errors import Unauthorized
from ..page import page_files
from ..quotas.keys_file import is_plain
from .context import ApiRequest
from .error_answer import speaks_anthropic

OPEN_PATHS = frozenset({"/health", "/ping", "/ready"})
"""Paths without a key, for the machines that monitor a server."""

KEY_HEADER = "x-api-key"
"""Anthropic's header for a key."""

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
    "auth (i.e. Authorization: Bearer YOUR_KEY)."
)

_SHORTEST_SHOWN = 12
_SHOWN = 4


def authorize(request: ApiRequest) -> None:
    """Checks the request's key and stores its id, if keys are in use.

    Called as soon as a head has arrived: an error raised here is answered at once and closes the connection.

    Raises:
      Unauthorized: no key, or an unknown one.
    """
    keys = request.app.ctx.settings.keys
    if keys is None or _is_open(request):
        return
    given = _given(request)
    if not given:
        raise Unauthorized(NO_KEY)
    key_id = next(filter(None, map(keys.identify, given)), None)
    if key_id is None:
        raise Unauthorized(f"Incorrect API key provided{_hint(given[0])}.", "invalid_api_key")
    request.key_id = key_id


def _is_open(request: ApiRequest) -> bool:
    """Whether everybody may send this request. The page is open, as it asks its user for the key."""
    path, method = request.path, request.method
    if method == "OPTIONS" or path.removesuffix("/") in OPEN_PATHS:
        return True
    page = {} if request.app.ctx.settings.flags.no_page else page_files()
    return method in ("GET", "HEAD") and path in page


def _given(request: ApiRequest) -> list[str]:
    """The keys in a head: of the Authorization header, and where Anthropic is spoken of its own header.

    Its clients send either or both, and one of the two may be a key for Anthropic.
    """
    named = request.headers.getall(KEY_HEADER, []) if speaks_anthropic(request) else []
    given = [bearer(request.headers.getall("authorization", [])), *(named if len(named) == 1 else [])]
    return [key for key in given if key]


def bearer(values: list[str]) -> str | None:
    """The key in the Authorization headers; None unless all are equal, with the scheme Bearer.

    sglang-router sends its key twice.
    """
    if len(set(values)) != 1:
        return None
    scheme, _, key = values[0].partition(" ")
    return key if key and scheme.lower() == "bearer" else None


def _hint(key: str) -> str:
    """A part of the key: enough for its owner to recognise it, and too little to guess it."""
    if len(key) < _SHORTEST_SHOWN or not is_plain(key):
        return ""
    return f": {key[:_SHOWN]}…{key[-_SHOWN:]}"
