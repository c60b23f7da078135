"""The body of `/v1/messages`, or of the count of its tokens -> the equivalent chat call.

The same conversation, tools and schemas under other names; what the model sees is what a chat completion with
them would show it. Shapes of conversations and tools are read in modules of their own.
"""

from typing import Any

from ..cache_hints import read_marks
from ..delivery import Delivery
from ..fields import wrong_type
from ..kinds import Described, Limits
from ..openai.chat import ChatCall, Rendering, read_model
from ..reasoning import ReasoningUse
from ..sampling import Sampling, read_as
from ..structured import Constraint, schema_constraint
from ..table import Parameters
from . import parameters
from .conversation import continues, read_conversation
from .message_tools import read_tools


def parse_message(body: dict[str, Any], *, strict: bool) -> ChatCall:
    """Checks a request and types it. `strict` refuses unknown keys.

    Raises:
      BadRequest: the first fault found.
    """
    fields = parameters.MESSAGE.fields(body, Limits(strict=strict))
    return _read(fields, parameters.MESSAGE, whole=True)


def parse_count(body: dict[str, Any], *, strict: bool) -> ChatCall:
    """The same of a request for the number of its tokens, which generates nothing."""
    return _read(parameters.COUNT.fields(body, Limits(strict=strict)), parameters.COUNT, whole=False)


def _read(fields: Described, table: Parameters, *, whole: bool) -> ChatCall:
    """A call; `whole`: with what a reply needs."""
    model = read_model(fields)
    unknown = table.unknown_keys(fields)
    messages = read_conversation(fields)
    tools = read_tools(fields)
    sampling = _sampling(fields) if whole else Sampling()
    constraint, reasoning = _constraint(fields), _reasoning(fields)
    table.check(fields)
    table.refuse_unsupported(fields)
    open_end = continues(messages)
    return ChatCall(
        model=model,
        messages=messages,
        sampling=sampling,
        tools=tools,
        constraint=constraint,
        rendering=Rendering(add_generation_prompt=not open_end, continue_final_message=open_end, options={}),
        delivery=Delivery(whole and (fields.take("stream") or False)),
        reasoning=reasoning,
        hints=read_marks(fields),
        unknown=unknown,
    )


def _sampling(fields: Described) -> Sampling:
    """How the reply is sampled. Raises BadRequest."""
    fields.require("max_tokens")
    _check_all(fields, "metadata")
    values = read_as(fields, {name: name for name in ("temperature", "top_p", "top_k")})
    return Sampling(max_tokens=fields.take("max_tokens"), **values, **_stops(fields))


def _stops(fields: Described) -> dict[str, Any]:
    """A list of strings; a strict server's limit is OpenAI's, so it is not applied. Raises BadRequest."""
    value = fields.get("stop_sequences")
    if value is not None and not isinstance(value, list):
        raise wrong_type("stop_sequences", "an array of strings", value)
    return read_as(Described(fields.values, fields.kinds, Limits()), {"stop": "stop_sequences"})


def _reasoning(fields: Described) -> ReasoningUse:
    """How much the model thinks, and whether its thinking is returned. Raises BadRequest."""
    thinking, output = _check_all(fields, "thinking"), fields.get("output_config") or {}
    given = thinking.values if thinking else {}
    most = 0 if given.get("type") == "disabled" else given.get("budget_tokens")
    return ReasoningUse(shown=given.get("display") != "omitted", effort=output.get("effort"), most=most)


def _constraint(fields: Described) -> Constraint | None:
    """The schema that the reply follows, if there is one. Raises BadRequest."""
    output = _check_all(fields, "output_config")
    found = output.object("format") if output else None
    if found is None:
        return None
    found.require("type")
    found.one_of("type", ("json_schema",))
    found.require("schema")
    schema = found.object("schema")
    return schema_constraint(schema.values if schema else {}, found.path)


def _check_all(fields: Described, name: str) -> Described | None:
    """An object, each field of which has been checked. Raises BadRequest."""
    found = fields.take(name)
    if found is not None:
        found.take_all()
    return found
