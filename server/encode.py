"""Python values -> the bytes on the wire: JSON bodies and server-sent events.

Knows nothing of what the values mean. The one idea: the three characters that some clients take for line
ends (U+0085, U+2028, U+2029) never appear raw, so an event is one line for every reader.
"""

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_encoder = msgspec.json.Encoder()


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8. NaN and infinity would become null: keep them out of `value`."""
    data = _encoder.encode(value)
    if b"\xc2\x85" in data or b"\xe2\x80" in data:
        data = data.replace(b"\xc2\x85", b"\\u0085")
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return data


def to_json_by_items(value: Any) -> bytes:
    """As `to_json`, the items of the lists in an object one by one: each is a call that holds the
    interpreter's lock, and the choices of an answer may have ten thousands of log-probabilities each."""
    if not isinstance(value, dict):
        return to_json(value)
    return to_json(
        {name: _by_items(item) if isinstance(item, list) else item for name, item in value.items()}
    )


def _by_items(items: list[Any]) -> list[msgspec.Raw]:
    return [msgspec.Raw(_encoder.encode(item)) for item in items]


def to_event(value: Any) -> bytes:
    """One server-sent event. Never `id:`, `retry:` or `event:`: each breaks a client of these streams."""
    return b"data: " + to_json(value) + b"\n\n"


def to_named_event(name: str, value: Any) -> bytes:
    """One event with a name, as the Responses API has them."""
    return b"event: " + name.encode() + b"\n" + to_event(value)
