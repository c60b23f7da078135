"""A request's `RoutingKey`, from the bytes of its prompt: no tokenizer, no template.

A conversation's next request repeats everything so far, so its digests begin with all of the last request's.
They are `dispatch/routing.py`'s chain over bytes instead of tokens. `prefix_router.py` compares them. No API
key has been checked yet, so a body must cost little: the prompt stays JSON text, and only digests are kept.
"""

import hashlib
from collections.abc import Mapping

import msgspec
from msgspec import Raw

from ..dispatch.routing import block_digests
from ..protocol.cache_hints import SESSION_HEADERS
from .call import RoutingKey

STEP = 256
"""Bytes of a prompt for each digest: about as many as `dispatch.routing.BLOCK` tokens have."""
MOST_BYTES = 1 << 20
"""Longer prompts are told apart by their beginning alone."""
MOST_COMMAS = 1 << 16
"""A conversation with more of them is not divided into messages: it might be millions of empty ones."""


class _Body(msgspec.Struct):
    """The fields that decide, as JSON text; empty if absent."""

    model: Raw = Raw()
    tools: Raw = Raw()
    system: Raw = Raw()
    instructions: Raw = Raw()
    prompt: Raw = Raw()
    inputs: Raw = Raw()
    messages: Raw = Raw()
    input: Raw = Raw()
    prompt_cache_key: Raw = Raw()


class _Message(msgspec.Struct):
    role: str = ""


def routing_key(headers: Mapping[str, str], body: bytes) -> RoutingKey:
    """The key of a request; one without digests if the body is no prompt that is understood here.

    Args:
      headers: by lower-case name.
    """
    try:
        fields = msgspec.json.decode(body, type=_Body)
        named = _session(headers, fields)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return RoutingKey()
    before, conversation = _before(fields), _conversation(fields)
    if not before and not conversation:
        return RoutingKey()
    beginning = b"\n".join([_text(fields.model), before, b""])
    digests = block_digests((beginning + conversation)[:MOST_BYTES], STEP)
    session = _digest(named.encode("utf-8", "replace")) if named else b""
    home = session or _digest(beginning + _opening(conversation))
    return RoutingKey(tuple(digests), session.hex(), home)


def _before(fields: _Body) -> bytes:
    """What precedes the conversation; empty if there is nothing but the model."""
    parts = (fields.tools, fields.system, fields.instructions, fields.prompt, fields.inputs)
    texts = [_text(part) for part in parts]
    return b"\n".join(texts) if any(texts) else b""


def _conversation(fields: _Body) -> bytes:
    """The messages with the commas between them: the next turn's text begins with this one."""
    texts = (_text(part) for part in (fields.messages, fields.input))
    lists = (text[1:-1].strip() if text.startswith(b"[") else text for text in texts)
    return b",".join(text for text in lists if text)


def _opening(conversation: bytes) -> bytes:
    """The conversation up to the first message of the user."""
    if conversation.count(b",") > MOST_COMMAS:
        return conversation[:STEP]
    opening = bytearray()
    for message in msgspec.json.decode(b"[%b]" % conversation, type=list[Raw]):
        opening += bytes(message)
        if _is_users(message):
            break
    return bytes(opening)


def _is_users(message: Raw) -> bool:
    """Whether a message is the user's, or anything else that has no role."""
    try:
        return msgspec.json.decode(message, type=_Message).role == "user"
    except (msgspec.MsgspecError, RecursionError):
        return True


def _session(headers: Mapping[str, str], fields: _Body) -> str:
    """The conversation that the client names, as `protocol/cache_hints.py` reads it."""
    key = _text(fields.prompt_cache_key)
    named = msgspec.json.decode(key, type=str) if key.startswith(b'"') else ""
    return named or next((headers[name] for name in SESSION_HEADERS if headers.get(name)), "")


def _text(value: Raw) -> bytes:
    text = bytes(value)
    return b"" if text == b"null" else text


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
