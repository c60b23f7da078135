"""Request bytes -> a JSON object, strictly.

Refuses what the standard library lets through: NaN, infinities, duplicate keys, lone surrogates, a byte
order mark, nesting deeper than 200, integers of thousands of digits. And bodies of very many parts: reading
JSON is one call that holds the interpreter's lock, in whatever thread, and objects and keys are what makes it
long (350 ms for 8 MiB of them, 10 to 75 ms for as much text or as many numbers).
"""

from typing import Any

import jiter

from ..errors import BadRequest

UNPARSEABLE = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
    "library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
)

MOST_PARTS = 1 << 17
"""Objects, arrays and members of objects in a body, all together."""
MOST_KEYS = 256
"""Members of the body itself: several times as many as there are parameters."""

_MOST_STRINGS = 1 << 19
_TOO_MANY = (
    f"The JSON of your request is too complex. Expected at most {MOST_PARTS} objects, arrays and "
    f"members of objects, and {_MOST_STRINGS} strings."
)
_BESIDE_STRUCTURE = bytes(set(range(256)) - set(b'"[{:'))


def parse_object(body: bytes, content_type: str | None) -> dict[str, Any]:
    """Reads a request body.

    Raises:
      BadRequest: not declared as JSON, not JSON, not an object, or one of too many parts or keys.
    """
    _check_content_type(content_type)
    if has_too_many_parts(body):
        raise BadRequest(_TOO_MANY, code="body_too_complex")
    try:
        value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="none")
    except ValueError:
        raise unparseable() from None
    if not isinstance(value, dict):
        raise unparseable()
    if len(value) > MOST_KEYS:
        raise BadRequest(
            f"Invalid body: too many properties. Expected an object with at most {MOST_KEYS} properties, but "
            f"got an object with {len(value)} properties instead.",
            code="object_above_max_properties",
        )
    return value


def parse_inner(text: str) -> Any:
    """Reads JSON that a string of a body holds, which is no part of the body's own structure.

    Raises:
      BadRequest: it has too many parts. ValueError: it is not JSON.
    """
    encoded = text.encode()
    if has_too_many_parts(encoded):
        raise BadRequest(_TOO_MANY, code="body_too_complex")
    return jiter.from_json(encoded, allow_inf_nan=False, cache_mode="none")


def has_too_many_parts(body: bytes, most: int = MOST_PARTS) -> bool:
    """Whether there are more than `most` beginnings of objects, arrays and members, without reading the JSON.

    In invalid JSON, only the part before the first error counts; no more is read.
    """
    if body.count(b":") + body.count(b"[") + body.count(b"{") <= most:
        return False
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = unescaped.translate(None, _BESIDE_STRUCTURE)
    if structure.count(b'"') > 2 * _MOST_STRINGS:
        return True
    return sum(map(len, structure.split(b'"')[::2])) > most


def unparseable() -> BadRequest:
    """The answer to a body that is not a JSON object."""
    return BadRequest(UNPARSEABLE)


def _check_content_type(content_type: str | None) -> None:
    if content_type is None or content_type.split(";", 1)[0].strip().lower() == "application/json":
        return
    shown = content_type[:64]
    raise BadRequest(
        f"Unsupported content type: '{shown}'. This API method only accepts 'application/json' requests, but "
        f"you specified the header 'Content-Type: {shown}'.",
        code="unsupported_content_type",
    )
