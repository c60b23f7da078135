"""The last responses, with `--store-responses N`: to be read again, and to be continued by their ids.

In memory, because clients that need a conversation for longer send it whole. The one idea: a stored response
has the items of its whole conversation, so that a continued one does not need those before it, which may have
been dropped meanwhile. Items are shared between the responses of a conversation.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response.

    Attributes:
      owner: the id of the key that it was made with; only its requests find it.
      answer: the object that the client received.
      items: the conversation up to its end, without instructions.
    """

    owner: str
    answer: dict[str, Any]
    items: Sequence[dict[str, Any]]


class ResponseStore:
    """The newest responses, by id. Can be shared between threads."""

    def __init__(self, most: int) -> None:
        """An empty store of at most `most` responses."""
        self.most = most
        self._kept: dict[str, StoredResponse] = {}
        self._lock = threading.Lock()

    def keep(self, response: StoredResponse) -> None:
        """Adds a response, and drops the oldest one beyond the limit."""
        with self._lock:
            self._kept[response.answer["id"]] = response
            while len(self._kept) > self.most:
                del self._kept[next(iter(self._kept))]

    def find(self, id: str, owner: str) -> StoredResponse | None:
        """The response with this id, if it is there and the owner's."""
        found = self._kept.get(id)
        return found if found is not None and found.owner == owner else None

    def drop(self, id: str, owner: str) -> bool:
        """Deletes a response; False if there is none to be found."""
        with self._lock:
            return self.find(id, owner) is not None and self._kept.pop(id, None) is not None
