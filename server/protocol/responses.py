"""The body of `/v1/responses` -> the chat call that it comes to, and what the answer repeats of it.

The same conversation, tools and formats under other names and in flatter shapes. Stateless: nothing is
stored, so nothing earlier can be referred to.
"""

from dataclasses import dataclass
from typing import Any

from ...runtime.request import MAX_TOP_LOGPROBS
from ..errors import BadRequest
from . import parameters
from .chat import ChatCall, Rendering, read_model
from .delivery import Delivery
from .fields import Fields, check_array, wrong_type, wrong_value
from .response_input import read_input
from .sampling import Sampling, read_early, read_extras, read_late
from .structured import read_constraint
from .tools import read_tools

LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = (
    LOGPROBS,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
_MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """One checked request.

    Attributes:
      chat: what it comes to. echo: the parameters that the answer repeats.
    """

    chat: ChatCall
    echo: dict[str, Any]

    @property
    def model(self) -> str:
        """The model's id."""
        return self.chat.model

    @property
    def unknown(self) -> tuple[str, ...]:
        """Keys that mean nothing here."""
        return self.chat.unknown


def parse_response(body: dict[str, Any], *, strict: bool) -> ResponseCall:
    """Checks a request and types it. `strict` refuses unknown keys, as OpenAI does.

    Raises:
      BadRequest: the first fault found.
    """
    fields = Fields(body)
    model = read_model(fields)
    unknown = parameters.RESPONSES.unknown_keys(fields, strict=strict)
    _check_served(fields)
    instructions = fields.string("instructions")
    messages = read_input(fields.require("input"), instructions)
    tools = read_tools(fields, flat=True)
    values: dict[str, Any] = read_early(fields, 1) | {"logprobs": _logprobs(fields)}
    values |= read_extras(fields)
    values |= read_late(fields, values, strict=strict)
    values["max_tokens"] = fields.integer("max_output_tokens", 1, _MOST_TOKENS)
    constraint = read_constraint(fields, flat=True)
    _check_heard(fields)
    options = fields.object("chat_template_kwargs")
    chat = ChatCall(
        model=model,
        messages=messages,
        sampling=Sampling(**values),
        tools=tools,
        constraint=constraint,
        rendering=Rendering(options=options.values if options else {}),
        delivery=_delivery(fields),
        unknown=unknown,
    )
    return ResponseCall(chat, _echo(fields))


def _check_served(fields: Fields) -> None:
    """Raises BadRequest for what lives elsewhere in this API, what was stored, and what is not served."""
    for name, place in parameters.MOVED.items():
        if fields.get(name) is not None:
            moved = f"In the Responses API, this parameter has moved to '{place}'."
            raise BadRequest(f"Unsupported parameter: '{name}'. {moved}", name, "unsupported_parameter")
    if (earlier := fields.string("previous_response_id")) is not None:
        message = f"Previous response with id '{earlier[:64]}' not found. This server stores no responses."
        raise BadRequest(message, "previous_response_id", "previous_response_not_found")
    parameters.RESPONSES.refuse_unsupported(fields)


def _logprobs(fields: Fields) -> int | None:
    """How many alternatives; None where no log-probabilities are to be included."""
    include = fields.get("include") or []
    if not isinstance(include, list):
        raise wrong_type("include", "an array of strings", include)
    check_array("include", include, len(_INCLUDABLE), empty=True)
    for index, name in enumerate(include):
        if name not in _INCLUDABLE:
            raise wrong_value(f"include[{index}]", str(name), _INCLUDABLE)
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    return (top or 0) if LOGPROBS in include or top else None


def _check_heard(fields: Fields) -> None:
    """What is checked and has no effect. Raises BadRequest."""
    parameters.check_identity(fields)
    parameters.check_service_tier(fields)
    parameters.check_storage(fields)
    fields.integer("max_tool_calls", 1, _MOST_TOKENS)
    if (text := fields.object("text")) is not None:
        text.only(("format", "verbosity"))
        text.one_of("verbosity", parameters.VERBOSITIES)
    if (reasoning := fields.object("reasoning")) is not None:
        reasoning.one_of("effort", parameters.EFFORTS)
        reasoning.one_of("summary", ("auto", "concise", "detailed"))


def _delivery(fields: Fields) -> Delivery:
    options = fields.object("stream_options")
    if options is not None:
        options.only(("include_obfuscation",))
        options.boolean("include_obfuscation")
    return Delivery(fields.boolean("stream") or False)


def _echo(fields: Fields) -> dict[str, Any]:
    """What an answer repeats, as it was said or as silence is understood."""
    text, reasoning = fields.get("text") or {}, fields.get("reasoning") or {}
    choice, parallel = fields.get("tool_choice"), fields.get("parallel_tool_calls")
    return {
        "frequency_penalty": fields.get("frequency_penalty") or 0.0,
        "instructions": fields.get("instructions"),
        "max_output_tokens": fields.get("max_output_tokens"),
        "max_tool_calls": fields.get("max_tool_calls"),
        "metadata": fields.get("metadata") or {},
        "parallel_tool_calls": parallel is not False,
        "presence_penalty": fields.get("presence_penalty") or 0.0,
        "prompt_cache_key": fields.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": fields.get("safety_identifier"),
        "text": {
            "format": text.get("format") or {"type": "text"},
            "verbosity": text.get("verbosity") or "medium",
        },
        "tool_choice": "auto" if choice is None else choice,
        "tools": [{"strict": False, **tool} for tool in fields.get("tools") or ()],
        "top_logprobs": fields.get("top_logprobs") or 0,
        "user": fields.get("user"),
    }
