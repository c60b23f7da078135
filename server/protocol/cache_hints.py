"""What requests say of the cache: the conversation that a prompt belongs to, and how long its pages are kept.

OpenAI's `prompt_cache_key` and `prompt_cache_retention`, Anthropic's `cache_control`, and headers with a
session mean one thing here: the next request of the conversation comes soon, so it should reach the same
engine and find its pages there. A client that names a conversation without a time has its pages kept for
minutes, as a tool takes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .kinds import Described

MINUTES, HOUR, DAY = 300.0, 3600.0, 86_400.0

SESSION_HEADERS = ("x-session-id", "x-claude-code-session-id", "session-id", "session_id")
"""Headers in which clients name a conversation; the last two are Codex's."""

_RETENTIONS = {"24h": DAY}
_TIMES = {"1h": HOUR}


@dataclass(frozen=True, slots=True)
class CacheHints:
    """What is known of a request's conversation.

    Attributes:
      session: its name; empty if it has none. keep_seconds: how long its pages are kept after the request.
      user: whose it is, if that is all that is known.
    """

    session: str = ""
    keep_seconds: float = 0.0
    user: str = ""

    def or_session(self, session: str) -> "CacheHints":
        """The same, in this conversation if none is named, or else in the one conversation of its user."""
        if self.session:
            return self
        if session:
            return CacheHints(session, self.keep_seconds or MINUTES)
        return CacheHints(self.user, self.keep_seconds)


NO_HINTS = CacheHints()


def read_hints(fields: Described) -> CacheHints:
    """Those of OpenAI's protocol. Raises BadRequest."""
    key, retention = fields.take("prompt_cache_key") or "", fields.take("prompt_cache_retention")
    asks = bool(key or retention)
    return CacheHints(key, _RETENTIONS.get(retention or "", MINUTES) if asks else 0.0)


def read_marks(fields: Described) -> CacheHints:
    """Those of Anthropic's: the longest time of a `cache_control`, wherever it is, and the user's id.

    Raises:
      BadRequest: the `cache_control` of the whole request is not an object.
    """
    fields.take("cache_control")
    times = [_TIMES.get(str(mark.get("ttl")), MINUTES) for mark in _marks(fields.values)]
    metadata = fields.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, Mapping) else None
    keep_seconds = max(times, default=0.0)
    return CacheHints(keep_seconds=keep_seconds, user=user if isinstance(user, str) else "")


def _marks(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every `cache_control` of a body that has been checked."""
    holders = [body, *_objects(body.get("system")), *_objects(body.get("tools"))]
    for message in _objects(body.get("messages")):
        holders += _objects(message.get("content"))
    for holder in holders:
        if isinstance(mark := holder.get("cache_control"), Mapping):
            yield mark


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
