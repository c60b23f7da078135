"""The body of a chat completion -> a typed `ChatCall`, or OpenAI's 400.

The checks run in OpenAI's order, so that of two faults the same one is reported: model, messages, unknown
keys, each field in turn, unsupported parameters, missing contents. Which models exist, how long a prompt
may be and the defaults for sampling are decided later, where they are known.
"""

from dataclasses import dataclass
from typing import Any

from ...errors import BadRequest
from .. import labels
from ..cache_hints import NO_HINTS, CacheHints, read_hints
from ..delivery import Delivery, read_delivery
from ..fields import Fields, wrong_type
from ..kinds import Described, Limits
from ..messages import Message, check_contents, read_messages
from ..reasoning import PLAIN_USE, ReasoningUse, read_reasoning
from ..sampling import Sampling, read_early, read_extras, read_late
from ..structured import Constraint, read_constraint
from ..tools import ToolUse, read_tools
from . import parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendering:
    """How the template renders the conversation.

    Attributes:
      add_generation_prompt: end with the beginning of an answer. continue_final_message: leave the last open.
      options: further variables of the template.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatCall:
    """One checked request.

    Attributes:
      constraint: the constraint on the answer, if any.
      reasoning: how the reasoning before the answer is treated.
      hints: what is known of the conversation, for the cache. priority: None if it names none.
      unknown: keys that are not parameters of this route.
    """

    model: str
    messages: list[Message]
    sampling: Sampling
    tools: ToolUse
    constraint: Constraint | None
    rendering: Rendering
    delivery: Delivery
    reasoning: ReasoningUse = PLAIN_USE
    hints: CacheHints = NO_HINTS
    priority: int | None = None
    unknown: tuple[str, ...]


def parse_chat(body: dict[str, Any], *, most_choices: int, strict: bool) -> ChatCall:
    """Checks a request and types it. `strict` refuses unknown keys, as OpenAI does.

    Raises:
      BadRequest: the first fault found.
    """
    fields = parameters.CHAT.fields(body, Limits(most_choices=most_choices, strict=strict))
    model = read_model(fields)
    fields.require("messages")
    unknown = parameters.CHAT.unknown_keys(fields)
    messages = read_messages(body["messages"])
    tools = read_tools(fields)
    values: dict[str, Any] = read_early(fields) | {"logprobs": _logprobs(fields)}
    labels.check_identity(fields)
    values |= read_extras(fields)
    constraint = read_constraint(fields)
    labels.check_service_tier(fields)
    values |= read_late(fields, values)
    delivery = read_delivery(fields)
    labels.check_storage(fields)
    parameters.CHAT.check(fields)
    reasoning = read_reasoning(fields, fields.take("reasoning_effort"))
    rendering = read_rendering(fields)
    parameters.CHAT.refuse_unsupported(fields)
    check_contents(body["messages"])
    return ChatCall(
        model=model,
        messages=messages,
        sampling=Sampling(**values),
        tools=tools,
        constraint=constraint,
        rendering=rendering,
        delivery=delivery,
        reasoning=reasoning,
        hints=read_hints(fields),
        priority=fields.take("priority"),
        unknown=unknown,
    )


def read_model(fields: Fields) -> str:
    """The model's id; whether it exists is checked later. Raises BadRequest."""
    model = fields.get("model")
    if model is None or model == "":
        raise BadRequest("you must provide a model parameter")
    if not isinstance(model, str):
        raise wrong_type("model", "a string", model)
    return model


def _logprobs(fields: Described) -> int | None:
    wanted = fields.take("logprobs") or False
    top = fields.take("top_logprobs")
    if top is not None and not wanted:
        message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        raise BadRequest(message, "top_logprobs")
    return (top or 0) if wanted else None


def read_rendering(fields: Described) -> Rendering:
    """The options for the template. Raises BadRequest."""
    continues = fields.take("continue_final_message") or False
    generates = fields.take("add_generation_prompt")
    if continues and generates:
        message = "'continue_final_message' and 'add_generation_prompt' cannot both be true."
        raise BadRequest(message, "continue_final_message")
    options = fields.take("chat_template_kwargs")
    return Rendering(
        add_generation_prompt=not continues if generates is None else generates,
        continue_final_message=continues,
        options=options.values if options else {},
    )
