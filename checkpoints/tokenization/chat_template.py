"""Renders messages to a prompt's text with the model's template.

Rendering is transformers' sandboxed Jinja; a template never comes from a request. Messages that a template
accepts are rendered without changes; messages that it refuses are tried again in the forms of
`message_forms`. The only unrequested change is for templates without a system role: the system text is added
to the first user message. transformers is imported on first use, because that takes half a second and a
caller may need only ids.
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
"""The variables that every template receives."""


class _Generation(Extension):
    """The `{% generation %}` block of transformers' templates, parsed only."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Returns the block's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateError(DistaffError):
    """The chat template refuses these messages (with the template's own text), or there is no template."""


class ChatTemplate:
    """A compiled template with the special tokens that it may use.

    Attributes:
      source: the Jinja text.
    """

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        self.source = source
        self._special = dict(special)

    @cached_property
    def options(self) -> frozenset[str]:
        """Variables that it reads, in addition to those that every template receives."""
        environment = Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do", _Generation])
        try:
            read = find_undeclared_variables(environment.parse(self.source))
        except TemplateSyntaxError:
            return frozenset()
        return frozenset(read) - _GIVEN - self._special.keys() - environment.globals.keys()

    @cached_property
    def knows_tools(self) -> bool:
        """Whether it supports tools: a test tool's name appears in the text."""
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
        """The text of a conversation; if the template refuses it, the text of the first other form that it
        accepts.

        Args:
          tools: functions that may be called. options: further variables.
          add_generation_prompt: end with the beginning of an assistant message.
          continue_final_message: leave the last message open, so that the reply continues it.

        Raises:
          TemplateError: the template raised an error for every form; it has the text of the first error.
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
        """Whether the template refuses or ignores a leading system message; found by a test message."""
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
        except MemoryError:  # not an error of the template: the caller limits the memory
            raise
        except Exception as error:  # a template's code may raise anything
            raise TemplateError(str(error) or type(error).__name__) from error
        assert isinstance(text, str)
        return text

    @cached_property
    def _renderer(self) -> "PreTrainedTokenizerFast":
        """An empty tokenizer that only has the template and the special tokens' texts."""
        from tokenizers import Tokenizer, models

        with _without_advice():
            from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), chat_template=self.source, **self._special
        )


@contextmanager
def _without_advice() -> Iterator[None]:
    """When it is imported, transformers advises to install PyTorch, which is not needed here."""
    before = os.environ.get(_ADVICE)
    os.environ[_ADVICE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADVICE]
        else:
            os.environ[_ADVICE] = before
