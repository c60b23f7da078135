"""Request bytes -> a JSON object, strictly.

Refuses what the standard library lets through: NaN, infinities, duplicate keys, lone surrogates, a byte
order mark, nesting deeper than 200, integers of thousands of digits.
"""

from typing import Any

import jiter

from ..errors import BadRequest

UNPARSEABLE = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
    "library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
)


def parse_object(body: bytes, content_type: str | None) -> dict[str, Any]:
    """Reads a request body.

    Raises:
      BadRequest: not declared as JSON, not JSON, or not an object.
    """
    _check_content_type(content_type)
    try:
        value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="none")
    except ValueError:
        raise unparseable() from None
    if not isinstance(value, dict):
        raise unparseable()
    return value


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
