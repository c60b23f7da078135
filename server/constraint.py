"""What a reply is held to: the schema it must be valid under, the calls it must be, or either of the two.

Knows requests and the text of grammars; whether a grammar can be followed at all is found out here, in a
thread, before anything is admitted.
"""

from ..checkpoints.grammar import either
from .protocol.chat import ChatCall
from .protocol.structured import Constraint
from .text import OffLoop, TextModel
from .tool_formats import ToolCallParser, ToolFormat

_ALWAYS = 1 << 30
"""However short a grammar is, compiling it may take its time."""


def constraint_of(call: ChatCall, text: TextModel, format: ToolFormat) -> Constraint | None:
    """What holds the reply; None where it may be anything.

    Calls are held to the tools' schemas where one must be made, or where a tool is strict.
    """
    use = call.tools
    if not use.tools:
        return call.constraint
    free = not use.forced and call.constraint is None
    if free and not any(tool.strict for tool in use.tools):
        return None
    several = use.parallel and not use.named
    grammar = format.grammar(use.tools, required=not free, parallel=several, token_id=text.special_id)
    if call.constraint is None or use.forced:
        return Constraint(grammar, "tools")
    return Constraint(either(grammar, call.constraint.grammar), call.constraint.param, call.constraint.name)


async def checked(constraint: Constraint | None, off_loop: OffLoop) -> str | None:
    """The grammar, if there is one.

    Raises:
      BadRequest: it cannot be followed.
    """
    if constraint is None:
        return None
    await off_loop.run(_ALWAYS, constraint.check)
    return constraint.grammar


def parser_of(call: ChatCall, format: ToolFormat, *, vouched: bool) -> ToolCallParser | None:
    """What finds calls in a reply; None where there are no tools. `vouched`: a grammar holds the reply."""
    use = call.tools
    if not use.tools:
        return None
    return format.parser(use.tools, parallel=use.parallel and not use.named, vouched=vouched)
