"""How OpenAI's streams end, whatever they carry: the usage where it is wanted, or an error, and `[DONE]`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from ...encode import DONE, to_event
from ...errors import ApiError
from ..delivery import Delivery
from ..heading import Heading
from ..usage import Usage


class OpenAiReply(ABC):
    """What the replies of both protocols share; each frames its chunks itself."""

    def __init__(self, heading: Heading, delivery: Delivery) -> None:
        self._heading = heading
        self._delivery = delivery

    def opening(self) -> tuple[()]:
        """Nothing: the first chunk is a choice's."""
        return ()

    def closing(self, usage: Usage) -> Iterator[bytes]:
        """The usage, for those who asked for it, and the end."""
        if self._delivery.include_usage:
            yield to_event(self._framed([], usage.to_dict()))
        yield DONE

    def failure(self, error: ApiError) -> Iterator[bytes]:
        """The error, and the end."""
        yield to_event(error.envelope())
        yield DONE

    @abstractmethod
    def _framed(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        """A chunk with these choices."""
