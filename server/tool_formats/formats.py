"""The supported formats: how calls are written, their grammars, and the format that a model uses.

Sources: Hermes' `<tool_call>` (NousResearch's function calling, also Qwen's), the model cards of Llama 3.1
and 3.2 (an object with `parameters`, perhaps behind `<|python_tag|>`), Mistral's `[TOOL_CALLS]` and a list;
its newer models (mistral-common's tokenizers from v11 on) write a mark, a name and arguments for each call;
Granite 3's list behind `<|tool_call|>`.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...checkpoints.grammars.grammar import json_part
from ...checkpoints.grammars.joining import with_parts
from ...checkpoints.grammars.quoting import quoted
from .envelope import Envelope
from .leading import LeadingParser
from .named import NamedEnvelope
from .parsers import MarkedParser
from .parts import FREE_TEXT, Tool, ToolCallParser
from .python_call import PythonEnvelope

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}

TokenId = Callable[[str], int | None]
"""Returns the id of the special token with this name, if there is one."""

_KINDS = ("{", '{"type":"function",')
"""The beginning of a call object up to its name, in Llama 3's format."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One format of tool calls.

    Attributes:
      begin, end: marks around each call, or one mark before all of them if `leading`.
      key: the key of the arguments. leading: calls begin at the start of a reply, or there are none.
      opening, separator, closing: before, between and after the calls. `leading` calls without an opening
        need no mark.
      divider: between a name and the arguments, if a call is not one object with both.
      id: prefix of a call's id, and how many letters or digits follow; Mistral's templates require nine.
    """

    name: str
    begin: str
    end: str = ""
    key: str = "arguments"
    leading: bool = False
    opening: str = ""
    separator: str = "\n"
    closing: str = ""
    divider: str = ""
    id: tuple[str, int] = ("call_", 24)

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that are special tokens in some vocabularies."""
        return tuple(mark for mark in (self.begin, self.end, self.divider) if mark)

    def parser(self, tools: Sequence[Tool], *, parallel: bool, vouched: bool) -> ToolCallParser:
        """A parser that finds calls in a reply; `vouched`: a grammar constrains the reply to the format."""
        names = frozenset(tool.name for tool in tools)
        heads = [(self._head(tool), tool.name) for tool in tools] if vouched else []

        bare = self.leading and not self.opening

        def begin() -> Envelope:
            if self.divider:
                return NamedEnvelope(names, vouched=vouched)
            return PythonEnvelope(names, heads) if bare else Envelope(names, heads)

        if not self.leading:
            return MarkedParser(self.begin, self.end, begin, parallel=parallel)
        return LeadingParser(
            self.begin,
            self.opening,
            f" \t\r\n,;{self.closing}",
            begin,
            heads=[kind + f'"name":"{name}"' for name in names for kind in _KINDS] if bare else (),
            behind_text=not (bare and vouched),
            parallel=parallel,
        )

    def grammar(self, tools: Sequence[Tool], *, required: bool, parallel: bool, token_id: TokenId) -> str:
        """The grammar of a reply, in llguidance's Lark.

        Args:
          required: the reply must be calls; otherwise it may be any text, in which calls are well-formed.

        Raises:
          GrammarError: a tool's schema, or the grammar of its input, is not supported.
        """
        between = f"{_quoted(self.separator)} " if self.separator else ""
        more = f" ({between}call)*" if parallel else ""
        shape = self._leading if self.leading else self._marked
        rules = "\n".join([*shape(more, required, token_id), *self._objects(tools, token_id)])
        inputs = {f"input_{n}": quoted(tool.syntax) for n, tool in enumerate(tools) if tool.syntax}
        return with_parts(rules, inputs) if inputs else rules

    def _leading(self, more: str, required: bool, token_id: TokenId) -> list[str]:
        """Calls from the start on, or text that does not begin like one; after text, calls with a mark."""
        opening, mark = _quoted(" " + self.opening), _mark(self.begin, token_id)
        rules = [
            f"listed: {opening if self.opening else ''} call{more} {_quoted(self.closing)}",
            "call: object",
        ]
        calls, plain = f"{mark} listed" if self.opening else "listed", r"/([^\s{\[](.|\n)*)?/"
        if required:
            return [f"start: {calls}", *rules]
        if not self.opening:
            return [f"start: PLAIN | {calls}", f"PLAIN: {plain}", *rules]
        if mark != _quoted(self.begin):
            return [f"start: PLAIN | PLAIN {calls}", f"PLAIN: {plain}", *rules]
        marked = rf"/(.|\n)*{re.escape(self.begin)}(.|\n)*/"
        before = f"before[suffix={mark}]: {plain}"
        return ["start: PLAIN | before listed", before, f"PLAIN: {plain} & ~{marked}", *rules]

    def _marked(self, more: str, required: bool, token_id: TokenId) -> list[str]:
        """Calls between marks; text before the first one if no call is required."""
        mark = _mark(self.begin, token_id)
        body = rf'"\n" object "\n" {_mark(self.end, token_id)}' if self.end else "object"
        rules = [f"call: {mark} body", f"body: {body}"]
        if required:
            return [f"start: call{more}", *rules]
        if mark != _quoted(self.begin):
            return [f"start: PLAIN | PLAIN call{more}", r"PLAIN: /(.|\n)*/", *rules]
        plain = rf"PLAIN: /(.|\n)*/ & ~/(.|\n)*{re.escape(self.begin)}(.|\n)*/"
        before = rf"before[suffix={mark}]: /(.|\n)*/"
        return [f"start: PLAIN | before body{more}", before, plain, *rules]

    def _objects(self, tools: Sequence[Tool], token_id: TokenId) -> list[str]:
        """A rule for each tool's call."""
        rules = [f"object: {' | '.join(f'tool_{n}' for n in range(len(tools)))}"]
        for n, tool in enumerate(tools):
            if tool.syntax:
                opening, closing = _quoted(f'{{"{FREE_TEXT}": "'), _quoted('"}')
                arguments = f"{opening} @input_{n} {closing}"
            else:
                arguments = json_part(tool.parameters or _NO_ARGUMENTS, closed=tool.strict)
            if self.divider:
                head, end = f"{_quoted(tool.name)} {_mark(self.divider, token_id)}", ""
            else:
                head, end = _quoted(self._head(tool)), _quoted("}")
            rules.append(f"tool_{n}: {head} {arguments} {end}")
        return rules

    def _head(self, tool: Tool) -> str:
        return f'{{"name": {_quoted(tool.name)}, "{self.key}": '


def _mark(mark: str, token_id: TokenId) -> str:
    """A mark in a grammar: as a special token if the vocabulary has one, else as text."""
    token = token_id(mark)
    return _quoted(mark) if token is None else f"<[{token}]>"


def _quoted(text: str) -> str:
    return json.dumps(text)


FORMATS = {
    each.name: each
    for each in (
        ToolFormat("hermes", "<tool_call>", "</tool_call>"),
        ToolFormat("llama3", "<|python_tag|>", key="parameters", leading=True, separator="; "),
        ToolFormat(
            "mistral", "[TOOL_CALLS]", leading=True, opening="[", separator=", ", closing="]", id=("", 9)
        ),
        ToolFormat("granite", "<|tool_call|>", leading=True, opening="[", separator=", ", closing="]"),
        ToolFormat("mistral-args", "[TOOL_CALLS]", separator="", divider="[ARGS]", id=("", 9)),
    )
}


def format_of(chat_template: str | None) -> ToolFormat:
    """The format in which a template writes earlier calls; Hermes' if it writes none."""
    source = chat_template or ""
    if "[TOOL_CALLS]" in source:
        return FORMATS["mistral-args" if "[ARGS]" in source else "mistral"]
    if "<|tool_call|>" in source:
        return FORMATS["granite"]
    if "<tool_call>" not in source and ("python_tag" in source or '"parameters": ' in source):
        return FORMATS["llama3"]
    return FORMATS["hermes"]
