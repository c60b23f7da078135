"""The text side as the server sees it: `TextModel`, and the `ServedModel` that holds one once it is there.

The tokenizer is loaded after the port listens, so routes ask `ServedModel.ready` at each request. Who loads
it, and from where, is the composition root's business. Nothing here imports a tokenizer.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...runtime.request import NotReady
from ..tool_formats import FORMATS, ToolFormat, format_of


class Detokenizer(Protocol):
    """Ids of one sequence -> text, whole characters only."""

    def push(self, token: int, /) -> str:
        """The text that has become certain with this token: all of it but an unfinished character."""
        ...

    def flush(self) -> str:
        """What an unfinished character leaves behind."""
        ...


class TokenTexts(Protocol):
    """What tokens are as text: all that a reply needs."""

    def detokenizer(self, prompt: Sequence[int] = (), /) -> Detokenizer:
        """A fresh decoder for a reply to `prompt`."""
        ...

    def token_bytes(self, token: int, /) -> bytes | None:
        """The bytes that a token stands for; None for a special token and for an id without a token."""
        ...

    def token_name(self, token: int, /) -> str:
        """How a token is written in the vocabulary."""
        ...


class TextModel(TokenTexts, Protocol):
    """A tokenizer with its chat template."""

    @property
    def has_template(self) -> bool: ...

    @property
    def eos_ids(self) -> Collection[int]: ...

    @property
    def chat_template(self) -> str | None:
        """The template's source."""
        ...

    @property
    def tool_template(self) -> str | None:
        """The source of the template for requests with tools."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The texts of named tokens: `bos_token`, `eos_token` and the like, as far as there are any."""
        ...

    @property
    def template_options(self) -> Collection[str]:
        """Variables that the template reads, beside those that every template is given."""
        ...

    @property
    def knows_tools(self) -> bool:
        """Whether the template for requests with tools has a place for them."""
        ...

    @property
    def knows_calls(self) -> bool:
        """The same of the template for requests without tools, whose conversation may yet hold calls."""
        ...

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Sequence[int]:
        """Renders and encodes a conversation; raises DistaffError where the template refuses it."""
        ...

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> Sequence[int]:
        """The ids of a raw prompt, in which special tokens are recognised."""
        ...

    @property
    def start_id(self) -> int:
        """What a text without a word begins with."""
        ...

    def decode(self, ids: Sequence[int], /) -> str:
        """The text of some ids, special tokens skipped."""
        ...

    def special_id(self, name: str, /) -> int | None:
        """The id of the special token of this name, if there is one."""
        ...


class SpecialsShown:
    """A text model whose replies show special tokens by their names: all of them, or some."""

    def __init__(self, text: TextModel, names: Collection[str] | None = None) -> None:
        self._text = text
        self._names = names

    def detokenizer(self, prompt: Sequence[int] = (), /) -> Detokenizer:
        """A decoder that writes them out."""
        return _ShowingDetokenizer(self, self._text.detokenizer(prompt))

    def token_bytes(self, token: int, /) -> bytes | None:
        """The bytes of its name, for a special token that is shown."""
        raw = self._text.token_bytes(token)
        shown = self.shown(token) if raw is None else None
        return raw if shown is None else shown.encode()

    def token_name(self, token: int, /) -> str:
        """How a token is written in the vocabulary."""
        return self._text.token_name(token)

    def shown(self, token: int) -> str | None:
        """The name of a special token that is shown; an id without a token has none."""
        if self._text.token_bytes(token) is not None:
            return None
        name = self._text.token_name(token)
        if self._text.special_id(name) != token:
            return None
        return name if self._names is None or name in self._names else None


class _ShowingDetokenizer:
    """Text as it would be, with names in it."""

    def __init__(self, text: SpecialsShown, plain: Detokenizer) -> None:
        self._text = text
        self._plain = plain

    def push(self, token: int, /) -> str:
        """The text of a token, or its name."""
        name = self._text.shown(token)
        return self._plain.push(token) if name is None else self._plain.flush() + name

    def flush(self) -> str:
        """What an unfinished character leaves behind."""
        return self._plain.flush()


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

    @property
    def repetition_penalty(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class NoDefaults:
    """The `SamplingDefaults` of a checkpoint that recommends nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(slots=True)
class ServedModel:
    """The text side of the model being served.

    Attributes:
      text: None until it is loaded. defaults: the sampling that the checkpoint recommends.
      tool_format: how calls are written, in place of what the template suggests.
      close: ends what the text side has started.
    """

    text: TextModel | None = None
    defaults: SamplingDefaults = NoDefaults()
    tool_format: str | None = None
    close: Callable[[], None] = lambda: None

    @property
    def format(self) -> ToolFormat:
        """How this model writes calls of tools."""
        return FORMATS[self.tool_format] if self.tool_format else format_of(self.ready().tool_template)

    def ready(self) -> TextModel:
        """The text model; raises NotReady before it is loaded."""
        if self.text is None:
            raise NotReady("the tokenizer is loading")
        return self.text
