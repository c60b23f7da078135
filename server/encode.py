"""Python values -> the bytes on the wire: JSON bodies and server-sent events.

The three characters that some clients treat as line ends (U+0085, U+2028, U+2029) are always escaped, so an
event is one line for every client.
"""

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_encoder = msgspec.json.Encoder()


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8. NaN and infinity would become null: `value` must not contain them."""
    data = _encoder.encode(value)
    if b"\xc2\x85" in data or b"\xe2\x80" in data:
        data = data.replace(b"\xc2\x85", b"\\u0085")
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return data


def to_json_by_items(value: Any) -> bytes:
    """As `to_json`, but encodes the items of an object's lists one by one: each encoding holds the
    interpreter's lock, and each choice of an answer may have tens of thousands of log-probabilities."""
    if not isinstance(value, dict):
        return to_json(value)
    return to_json(
        {name: _by_items(item) if isinstance(item, list) else item for name, item in value.items()}
    )


def _by_items(items: list[Any]) -> list[msgspec.Raw]:
    return [msgspec.Raw(_encoder.encode(item)) for item in items]


def to_event(value: Any) -> bytes:
    """One server-sent event, without `id:`, `retry:` or `event:`: each of them breaks a known client."""
    return b"data: " + to_json(value) + b"\n\n"


def to_named_event(name: str, value: Any) -> bytes:
    """One named event, as in the Responses API."""
    return b"event: " + name.encode() + b"\n" + to_event(value)
