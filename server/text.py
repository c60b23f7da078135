"""The text side as the server sees it: `TextModel`, and the `ServedModel` that holds one once it is there.

The tokenizer is loaded after the port listens, so routes ask `ServedModel.ready` at each request. Who loads
it, and from where, is the composition root's business. Nothing here imports a tokenizer.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..runtime.request import NotReady

_INLINE = 4096
"""Work on fewer characters than this is cheaper than a trip to another thread."""

_Result = TypeVar("_Result")


class Detokenizer(Protocol):
    """Ids of one sequence -> text, whole characters only."""

    def push(self, token: int, /) -> str:
        """The text that has become certain with this token: all of it but an unfinished character."""
        ...

    def flush(self) -> str:
        """What an unfinished character leaves behind."""
        ...


class TextModel(Protocol):
    """A tokenizer with its chat template."""

    @property
    def has_template(self) -> bool: ...

    @property
    def eos_ids(self) -> Collection[int]: ...

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], /) -> Sequence[int]:
        """Renders and encodes a conversation; raises DistaffError where the template refuses it."""
        ...

    def detokenizer(self, prompt: Sequence[int] = (), /) -> Detokenizer:
        """A fresh decoder for a reply to `prompt`."""
        ...

    def token_bytes(self, token: int, /) -> bytes | None:
        """The bytes that a token stands for; None for a special token."""
        ...

    def token_name(self, token: int, /) -> str:
        """How a token is written in the vocabulary."""
        ...


class SamplingDefaults(Protocol):
    """The sampling that a checkpoint recommends for silent requests; None where it recommends nothing."""

    @property
    def temperature(self) -> float | None: ...

    @property
    def top_p(self) -> float | None: ...

    @property
    def top_k(self) -> int | None: ...

    @property
    def min_p(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class NoDefaults:
    """The `SamplingDefaults` of a checkpoint that recommends nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None


@dataclass(slots=True)
class ServedModel:
    """The text side of the model being served; `text` is None until it is loaded."""

    text: TextModel | None = None
    defaults: SamplingDefaults = NoDefaults()

    def ready(self) -> TextModel:
        """The text model; raises NotReady before it is loaded."""
        if self.text is None:
            raise NotReady("the tokenizer is loading")
        return self.text


class OffLoop:
    """Runs work whose length a client decides where it cannot hold up the event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="text")

    async def run(self, size: int, function: Any, /, *arguments: Any, **options: Any) -> Any:
        """`function(*arguments, **options)`, in another thread where `size` characters are many."""
        if size <= _INLINE:
            return function(*arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: function(*arguments, **options)
        )

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
