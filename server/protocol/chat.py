"""The body of a chat completion -> a typed `ChatCall`, or OpenAI's 400.

The checks run in OpenAI's order, so that of two faults the same one is reported: model, messages, unknown
keys, each field in turn, what this server cannot do, missing contents. Which models exist, how long a prompt
may be and what silence means for sampling are decided later, by those who know.
"""

from dataclasses import dataclass
from typing import Any

from ...runtime.request import MAX_TOP_LOGPROBS
from ..errors import BadRequest
from . import parameters
from .delivery import Delivery, read_delivery
from .fields import Fields, wrong_type
from .messages import Message, check_contents, read_messages
from .sampling import Sampling, read_early, read_extras, read_late
from .structured import Constraint, read_constraint
from .tools import ToolUse, read_tools


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendering:
    """How the template is asked to render the conversation.

    Attributes:
      add_generation_prompt: end with the opening of an answer. continue_final_message: leave the last open.
      options: further variables of the template.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatCall:
    """One checked request.

    Attributes:
      constraint: what the answer must be, if anything.
      unknown: keys that mean nothing here.
    """

    model: str
    messages: list[Message]
    sampling: Sampling
    tools: ToolUse
    constraint: Constraint | None
    rendering: Rendering
    delivery: Delivery
    unknown: tuple[str, ...]


def parse_chat(body: dict[str, Any], *, most_choices: int, strict: bool) -> ChatCall:
    """Checks a request and types it. `strict` refuses unknown keys, as OpenAI does.

    Raises:
      BadRequest: the first fault found.
    """
    fields = Fields(body)
    model = read_model(fields)
    fields.require("messages")
    unknown = parameters.CHAT.unknown_keys(fields, strict=strict)
    messages = read_messages(body["messages"])
    tools = read_tools(fields, strict=strict)
    values: dict[str, Any] = read_early(fields, most_choices) | {"logprobs": _logprobs(fields)}
    parameters.check_identity(fields)
    values |= read_extras(fields)
    constraint = read_constraint(fields)
    parameters.check_service_tier(fields)
    values |= read_late(fields, values, strict=strict)
    delivery = read_delivery(fields)
    parameters.check_storage(fields)
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
        unknown=unknown,
    )


def read_model(fields: Fields) -> str:
    """The model's id; whether there is such a one is not known here. Raises BadRequest."""
    model = fields.get("model")
    if model is None or model == "":
        raise BadRequest("you must provide a model parameter")
    if not isinstance(model, str):
        raise wrong_type("model", "a string", model)
    return model


def _logprobs(fields: Fields) -> int | None:
    wanted = fields.boolean("logprobs") or False
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        raise BadRequest(message, "top_logprobs")
    return (top or 0) if wanted else None


def read_rendering(fields: Fields) -> Rendering:
    """What is asked of the template. Raises BadRequest."""
    continues = fields.boolean("continue_final_message") or False
    generates = fields.boolean("add_generation_prompt")
    if continues and generates:
        message = "'continue_final_message' and 'add_generation_prompt' cannot both be true."
        raise BadRequest(message, "continue_final_message")
    options = fields.object("chat_template_kwargs")
    return Rendering(
        add_generation_prompt=not continues if generates is None else generates,
        continue_final_message=continues,
        options=options.values if options else {},
    )
