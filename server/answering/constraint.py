"""The grammar that constrains a reply: a schema, tool calls, or either of the two.

Handles requests and the text of grammars. A grammar is checked here, in a thread, before the request is
submitted.
"""

from collections.abc import Sequence
from dataclasses import replace

from ...checkpoints.errors import GrammarError
from ...checkpoints.grammars.grammar import check_grammar, check_schema
from ...checkpoints.grammars.joining import either
from ...checkpoints.grammars.quoting import quoted
from ..errors import BadRequest
from ..protocol.openai.chat import ChatCall
from ..protocol.structured import Constraint
from ..protocol.tools import invalid_parameters
from ..text.text_model import TextModel
from ..tool_formats import CallsOnly, Tool, ToolCallParser, ToolFormat
from .off_loop import ClientWork

_ALWAYS = 1 << 30
"""The size that counts for a grammar: even a short one may take long to compile."""


def constraint_of(call: ChatCall, text: TextModel, format: ToolFormat) -> Constraint | None:
    """The constraint of the reply; None if it may be any text.

    Calls must follow the tools' schemas if a call is required, or if a tool is strict.
    """
    use = call.tools
    if not use.tools:
        return call.constraint
    free = not use.forced and call.constraint is None
    if free and not any(tool.strict for tool in use.tools):
        return None
    several, answer = use.parallel and not use.named, call.constraint

    def calls() -> str:
        _check_parameters(use.tools)
        return format.grammar(use.tools, required=not free, parallel=several, token_id=text.special_id)

    if answer is None or use.forced:
        schemas = [tool.parameters or True for tool in use.tools]
        return Constraint(calls, "tools", source={"anyOf": schemas})
    return replace(answer, make=lambda: either(calls(), answer.grammar()))


def _check_parameters(tools: Sequence[Tool]) -> None:
    """Raises BadRequest for the first tool with an unsupported schema or grammar."""
    for tool in tools:
        try:
            if tool.syntax:
                check_grammar(quoted(tool.syntax))
            else:
                check_schema(tool.parameters or True, closed=tool.strict)
        except GrammarError as error:
            if tool.free_form:
                message = f"Invalid grammar for tool '{tool.name}': {error}"
                raise BadRequest(message, tool.param, "invalid_value") from None
            raise invalid_parameters(tool.param, tool.name, str(error)) from None


async def checked(constraint: Constraint | None, off_loop: ClientWork) -> str | None:
    """The grammar, if there is one.

    Raises:
      BadRequest: it is not supported.
    """
    if constraint is None:
        return None
    return await off_loop.run(_ALWAYS, constraint.grammar)


def parser_of(call: ChatCall, format: ToolFormat, *, vouched: bool) -> ToolCallParser | None:
    """The parser for tool calls; None without tools. `vouched`: a grammar constrains the reply."""
    use = call.tools
    if not use.tools:
        return None
    parser = format.parser(use.tools, parallel=use.parallel and not use.named, vouched=vouched)
    return CallsOnly(parser) if use.forced and vouched else parser
