"""A request's `RoutingKey`, from the bytes of its prompt: no tokenizer, no template.

A conversation's next request repeats everything so far, so its digests begin with all of the last request's.
They are `dispatch/routing.py`'s chain over bytes instead of tokens. `prefix_router.py` compares them.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..dispatch.routing import block_digests
from ..protocol.cache_hints import SESSION_HEADERS
from .call import RoutingKey

STEP = 256
"""Bytes of a prompt for each digest: about as many as `dispatch.routing.BLOCK` tokens have."""
MOST_BYTES = 1 << 20
"""Longer prompts are told apart by their beginning alone."""

_BEFORE = ("model", "tools", "system", "instructions", "prompt", "inputs")
_CONVERSATION = ("messages", "input")


def routing_key(headers: Mapping[str, str], body: bytes) -> RoutingKey:
    """The key of a request; one without digests if the body is no prompt that is understood here.

    Args:
      headers: by lower-case name.
    """
    try:
        fields = msgspec.json.decode(body)
        parts = list(_parts(fields)) if isinstance(fields, dict) else []
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return RoutingKey()
    if not parts:
        return RoutingKey()
    session = _session(headers, fields)
    beginning = session.encode("utf-8", "replace") or b"".join(parts[: _opening(fields, len(parts))])
    digests = block_digests(b"".join(parts)[:MOST_BYTES], STEP)
    return RoutingKey(tuple(digests), session, hashlib.blake2b(beginning, digest_size=16).digest())


def _parts(fields: dict[str, Any]) -> Iterator[bytes]:
    """The prompt in canonical bytes: what precedes the conversation, then each of its messages."""
    prompt = {name: fields[name] for name in _BEFORE if fields.get(name) is not None}
    messages = _messages(fields)
    if messages or prompt.keys() - {"model"}:
        yield msgspec.json.encode(prompt)
        yield from map(msgspec.json.encode, messages)


def _messages(fields: dict[str, Any]) -> list[Any]:
    values = [fields[name] for name in _CONVERSATION if fields.get(name) is not None]
    return [each for value in values for each in (value if isinstance(value, list) else [value])]


def _opening(fields: dict[str, Any], parts: int) -> int:
    """The number of parts up to the first message of the user."""
    for number, message in enumerate(_messages(fields), 2):
        if not isinstance(message, dict) or message.get("role") == "user":
            return number
    return parts


def _session(headers: Mapping[str, str], fields: dict[str, Any]) -> str:
    """The conversation that the client names, as `protocol/cache_hints.py` reads it."""
    key = fields.get("prompt_cache_key")
    named = key if isinstance(key, str) else ""
    return named or next((headers[name] for name in SESSION_HEADERS if headers.get(name)), "")
