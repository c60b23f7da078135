"""The last responses, with `--store-responses N`: to be read again, and to be continued by their ids.

In memory, because clients that need a conversation for longer send it whole. The one idea: a stored response
has the items of its whole conversation, so that a continued one does not need those before it, which may have
been dropped meanwhile. Items are shared between the responses of a conversation.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 1 << 28
"""The most bytes of requests whose responses are kept."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response.

    Attributes:
      owner: the id of the key that it was made with; only its requests find it.
      answer: the object that the client received.
      items: the conversation up to its end, without instructions. size: of the request, in bytes.
    """

    owner: str
    answer: dict[str, Any]
    items: Sequence[dict[str, Any]]
    size: int = 0


class ResponseStore:
    """The newest responses, by id. Can be shared between threads."""

    def __init__(self, most: int) -> None:
        """An empty store of at most `most` responses."""
        self.most = most
        self._kept: dict[str, StoredResponse] = {}
        self._size = 0
        self._lock = threading.Lock()

    def keep(self, response: StoredResponse) -> None:
        """Adds a response, and drops the oldest ones beyond the limits."""
        with self._lock:
            self._kept[response.answer["id"]] = response
            self._size += response.size
            while len(self._kept) > self.most or self._size > MOST_BYTES:
                self._remove(next(iter(self._kept)))

    def find(self, id: str, owner: str) -> StoredResponse | None:
        """The response with this id, if it is there and the owner's."""
        found = self._kept.get(id)
        return found if found is not None and found.owner == owner else None

    def drop(self, id: str, owner: str) -> bool:
        """Deletes a response; False if there is none to be found."""
        with self._lock:
            found = self.find(id, owner) is not None
            if found:
                self._remove(id)
            return found

    def _remove(self, id: str) -> None:
        self._size -= self._kept.pop(id).size
