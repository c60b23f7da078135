"""Messages to a prompt's text, by the template that came with the model.

Rendering is transformers' own sandboxed Jinja; a template is never taken from a request. What a template
accepts is rendered as it is; what it refuses is tried again in the forms of `message_forms`. The one thing
done unasked is for templates without a system role: the system text is folded into the first user turn.
transformers is imported on first use: it takes half a second and a caller may only want ids.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser

from ...model.errors import DistaffError
from .message_forms import Message as Message
from .message_forms import fold_system, other_forms

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
_PROBE = "probe-7f3a"
_GIVEN = frozenset(
    "messages tools documents add_generation_prompt continue_final_message raise_exception strftime_now "
    "bos_token eos_token pad_token unk_token".split()
)
"""What templates are given without being asked for it."""


class _Generation(Extension):
    """The `{% generation %}` block of transformers' templates, as far as reading one needs it."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Its body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateError(DistaffError):
    """The chat template refuses these messages (the message is its own), or there is no template."""


class ChatTemplate:
    """A compiled template with the special tokens it may name.

    Attributes:
      source: the Jinja text.
    """

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        self.source = source
        self._special = dict(special)

    @cached_property
    def options(self) -> frozenset[str]:
        """Variables that it reads, beside those that every template is given."""
        environment = Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do", _Generation])
        try:
            read = find_undeclared_variables(environment.parse(self.source))
        except TemplateSyntaxError:
            return frozenset()
        return frozenset(read) - _GIVEN - self._special.keys() - environment.globals.keys()

    @cached_property
    def knows_tools(self) -> bool:
        """Whether it has a place for tools: what it says of one is in the text."""
        function = {"name": _PROBE, "description": "x", "parameters": {"type": "object", "properties": {}}}
        try:
            text = self._apply(
                [{"role": "user", "content": "x"}], True, False, [{"type": "function", "function": function}]
            )
        except TemplateError:
            return False
        return _PROBE in text

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation; where the template refuses it, of the first other form that it takes.

        Args:
          tools: functions that may be called. options: further variables.
          add_generation_prompt: end with the opening of an assistant's turn.
          continue_final_message: leave the last message open, so that the reply goes on from it.

        Raises:
          TemplateError: the template raised, for every form; with its message for the first.
        """
        try:
            return self._render(messages, add_generation_prompt, continue_final_message, tools, options)
        except TemplateError as error:
            refusal = error
        for form in other_forms(messages):
            with suppress(TemplateError):
                return self._render(form, add_generation_prompt, continue_final_message, tools, options)
        raise refusal

    @cached_property
    def folds_system(self) -> bool:
        """Whether the template refuses or ignores a leading system message, found by trying one."""
        user = {"role": "user", "content": "x"}
        try:
            self._apply([user], True, False)
        except TemplateError:
            return False
        try:
            return _PROBE not in self._apply([{"role": "system", "content": _PROBE}, user], True, False)
        except TemplateError:
            return True

    def _render(
        self,
        messages: Sequence[Message],
        generate: bool,
        unfinished: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any] | None,
    ) -> str:
        folded = fold_system(messages) if self.folds_system else messages
        return self._apply(folded, generate, unfinished, tools, options)

    def _apply(
        self,
        messages: Sequence[Message],
        generate: bool,
        unfinished: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        try:
            text = self._renderer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] if tools else None,
                tokenize=False,
                add_generation_prompt=generate,
                continue_final_message=unfinished,
                **(options or {}),
            )
        except MemoryError:  # not the template's word: whoever bounds the memory decides
            raise
        except Exception as error:  # whatever a foreign template's code may raise
            raise TemplateError(str(error) or type(error).__name__) from error
        assert isinstance(text, str)
        return text

    @cached_property
    def _renderer(self) -> "PreTrainedTokenizerFast":
        """An empty tokenizer that only carries the template and the special tokens' texts."""
        from tokenizers import Tokenizer, models

        with _without_advice():
            from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), chat_template=self.source, **self._special
        )


@contextmanager
def _without_advice() -> Iterator[None]:
    """transformers advises at its import to install PyTorch, which nothing here needs."""
    before = os.environ.get(_ADVICE)
    os.environ[_ADVICE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADVICE]
        else:
            os.environ[_ADVICE] = before
