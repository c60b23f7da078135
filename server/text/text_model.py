"""The interface of tokenizer and chat template: `TextModel`, and the `ServedModel` that holds a loaded one.

The tokenizer is loaded after the port is open, so routes call `ServedModel.ready` at each request. The
composition root loads it. Nothing here imports a tokenizer.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...runtime.request import NotReady
from .. import reasoning
from ..tool_formats import FORMATS, ToolFormat, format_of


class Detokenizer(Protocol):
    """Ids of one sequence -> text, whole characters only."""

    def push(self, token: int, /) -> str:
        """The text that is certain after this token: everything except an unfinished character."""
        ...

    def flush(self) -> str:
        """What an unfinished character leaves behind."""
        ...


class TokenTexts(Protocol):
    """Tokens as text: the part of `TextModel` that a reply needs."""

    def detokenizer(self, prompt: Sequence[int] = (), /) -> Detokenizer:
        """A new decoder for a reply to `prompt`."""
        ...

    def token_bytes(self, token: int, /) -> bytes | None:
        """The bytes that a token stands for; None for a special token and for an id without a token."""
        ...

    def token_name(self, token: int, /) -> str:
        """How a token is written in the vocabulary."""
        ...


class TextModel(TokenTexts, Protocol):
    """A tokenizer with a chat template."""

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
        """The texts of named tokens, such as `bos_token` and `eos_token`."""
        ...

    @property
    def template_options(self) -> Collection[str]:
        """Variables that the template reads, in addition to the standard ones."""
        ...

    @property
    def knows_tools(self) -> bool:
        """Whether the template for requests with tools renders them."""
        ...

    @property
    def knows_calls(self) -> bool:
        """Whether the template for requests without tools renders tool calls in the conversation."""
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
        """Renders and encodes a conversation; raises DistaffError if the template refuses it."""
        ...

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> Sequence[int]:
        """The ids of a raw prompt; special tokens in the text are recognised."""
        ...

    @property
    def start_id(self) -> int:
        """The first token of an empty text."""
        ...

    def decode(self, ids: Sequence[int], /) -> str:
        """The text of ids, without special tokens."""
        ...

    def special_id(self, name: str, /) -> int | None:
        """The id of the special token with this name; None if there is none."""
        ...


class SpecialsShown:
    """A text model whose replies contain the names of special tokens: of all, or of some."""

    def __init__(self, text: TextModel, names: Collection[str] | None = None) -> None:
        self._text = text
        self._names = names

    def detokenizer(self, prompt: Sequence[int] = (), /) -> Detokenizer:
        """A decoder that writes their names."""
        return _ShowingDetokenizer(self, self._text.detokenizer(prompt))

    def token_bytes(self, token: int, /) -> bytes | None:
        """The bytes of a token, or of the name of a special token that is shown."""
        raw = self._text.token_bytes(token)
        shown = self.shown(token) if raw is None else None
        return raw if shown is None else shown.encode()

    def token_name(self, token: int, /) -> str:
        """How a token is written in the vocabulary."""
        return self._text.token_name(token)

    def shown(self, token: int) -> str | None:
        """The name of a special token that is shown; None for other tokens and unknown ids."""
        if self._text.token_bytes(token) is not None:
            return None
        name = self._text.token_name(token)
        if self._text.special_id(name) != token:
            return None
        return name if self._names is None or name in self._names else None


class _ShowingDetokenizer:
    """The plain text, with the names of special tokens inserted."""

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
    """Sampling parameters that a checkpoint recommends as defaults; None for no recommendation."""

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
    """The `SamplingDefaults` of a checkpoint without recommendations."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(slots=True)
class ServedModel:
    """Tokenizer, template and defaults of the served model.

    Attributes:
      text: None until it is loaded. defaults: the sampling parameters that the checkpoint recommends.
      tool_format: replaces the tool-call format derived from the template.
      reasoning_format: `auto`, `none`, or the name of a format, which is used instead of the derived one.
      close: ends the renderer processes.
    """

    text: TextModel | None = None
    defaults: SamplingDefaults = NoDefaults()
    tool_format: str | None = None
    reasoning_format: str = "auto"
    close: Callable[[], None] = lambda: None

    @property
    def format(self) -> ToolFormat:
        """How this model writes tool calls."""
        return FORMATS[self.tool_format] if self.tool_format else format_of(self.ready().tool_template)

    @property
    def reasoning(self) -> reasoning.ReasoningFormat | None:
        """How this model marks its reasoning; None if replies are not split."""
        text, name = self.ready(), self.reasoning_format
        if name != "auto":
            return reasoning.FORMATS.get(name)
        return reasoning.format_of(text.chat_template, lambda mark: token_of(text, mark) is not None)

    def ready(self) -> TextModel:
        """The text model; raises NotReady before it is loaded."""
        if self.text is None:
            raise NotReady("the tokenizer is loading")
        return self.text


def token_of(text: TextModel, written: str) -> int | None:
    """The token that a text is, special or not; None if it is several."""
    ids = text.encode(written, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and text.token_name(ids[0]) == written else None
