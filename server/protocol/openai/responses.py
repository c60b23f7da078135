"""The body of `/v1/responses` -> the equivalent chat call, and the parameters that the answer repeats.

The same conversation, tools and formats under other names and in flatter shapes. A request may continue an
earlier response; finding it is left to the caller.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import BadRequest
from .. import labels
from ..cache_hints import read_hints
from ..delivery import Delivery
from ..fields import Fields
from ..kinds import Described, Limits
from ..reasoning import read_reasoning
from ..sampling import Sampling, read_early, read_extras, read_late
from ..structured import read_constraint
from . import parameters
from .chat import ChatCall, Rendering, read_model
from .response_input import ENCRYPTED, LOGPROBS, input_items, read_included, read_input
from .response_tools import read_response_tools

Find = Callable[[str], Sequence[dict[str, Any]] | None]


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """One checked request.

    Attributes:
      chat: the equivalent chat call. echo: the parameters that the answer repeats.
      items: the conversation, without instructions.
      portable_reasoning: items of reasoning have `encrypted_content`. stored: the answer is to be stored.
    """

    chat: ChatCall
    echo: dict[str, Any]
    items: list[dict[str, Any]]
    portable_reasoning: bool
    stored: bool

    @property
    def model(self) -> str:
        """The model's id."""
        return self.chat.model

    @property
    def unknown(self) -> tuple[str, ...]:
        """Keys that are not parameters of this route."""
        return self.chat.unknown


def parse_response(body: dict[str, Any], *, strict: bool, find: Find | None = None) -> ResponseCall:
    """Checks a request and types it.

    Args:
      strict: refuse unknown keys, as OpenAI does.
      find: returns the items of a stored response; None if none are stored.

    Raises:
      BadRequest: the first fault found.
    """
    fields = parameters.RESPONSES.fields(body, Limits(strict=strict))
    model = read_model(fields)
    unknown = parameters.RESPONSES.unknown_keys(fields)
    _check_served(fields)
    instructions = fields.take("instructions")
    earlier, items = _earlier(fields, find), input_items(fields.require("input"))
    messages = read_input(items, instructions, earlier)
    tools = read_response_tools(fields)
    values: dict[str, Any] = read_early(fields) | {"logprobs": _logprobs(fields)}
    values |= read_extras(fields)
    values |= read_late(fields, values)
    values["max_tokens"] = fields.take("max_output_tokens")
    constraint = read_constraint(fields, flat=True)
    _check_unused(fields)
    options = fields.take("chat_template_kwargs")
    chat = ChatCall(
        model=model,
        messages=messages,
        sampling=Sampling(**values),
        tools=tools,
        constraint=constraint,
        rendering=Rendering(options=options.values if options else {}),
        delivery=Delivery(fields.take("stream") or False),
        reasoning=read_reasoning(fields, _effort(fields)),
        hints=read_hints(fields),
        priority=fields.take("priority"),
        unknown=unknown,
    )
    stored = find is not None and fields.get("store") is not False
    return ResponseCall(
        chat,
        echo=_echo(fields) | {"store": stored},
        items=[*earlier, *items],
        portable_reasoning=ENCRYPTED in read_included(fields.get("include")),
        stored=stored,
    )


def _check_served(fields: Described) -> None:
    """Raises BadRequest for parameters that have another place in this API or are not supported."""
    for name, place in parameters.MOVED.items():
        if fields.get(name) is not None:
            moved = f"In the Responses API, this parameter has moved to '{place}'."
            raise BadRequest(f"Unsupported parameter: '{name}'. {moved}", name, "unsupported_parameter")
    parameters.RESPONSES.refuse_unsupported(fields)


def _earlier(fields: Described, find: Find | None) -> Sequence[dict[str, Any]]:
    """The items of the response that is continued. Raises BadRequest if it cannot be found."""
    id = fields.take("previous_response_id")
    found = find(id) if find is not None and id is not None else None
    if id is None or found is not None:
        return found or ()
    reason = "" if find is not None else " This server stores no responses; `--store-responses` keeps some."
    message = f"Previous response with id '{id[:64]}' not found.{reason}"
    raise BadRequest(message, "previous_response_id", "previous_response_not_found")


def _logprobs(fields: Described) -> int | None:
    """How many alternatives; None without log-probabilities."""
    include = read_included(fields.get("include"))
    top = fields.take("top_logprobs")
    return (top or 0) if LOGPROBS in include or top else None


def _check_unused(fields: Described) -> None:
    """Checks the parameters without effect. Raises BadRequest."""
    labels.check_storage(fields)
    parameters.RESPONSES.check(fields)
    if (text := fields.take("text")) is not None:
        text.take("verbosity")
    if (options := fields.take("stream_options")) is not None:
        options.take_all()


def _effort(fields: Described) -> str | None:
    """The effort of reasoning; a summary is never made. Raises BadRequest."""
    options = fields.take("reasoning")
    if options is None:
        return None
    options.take_all()
    return options.take("effort")


def _with_default(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as an answer repeats it."""
    return {"strict": False, **tool} if tool.get("type") == "function" else tool


def _echo(fields: Fields) -> dict[str, Any]:
    """The parameters that an answer repeats: their values in the request, or their defaults."""
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
        "previous_response_id": fields.get("previous_response_id"),
        "prompt_cache_key": fields.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": fields.get("safety_identifier"),
        "text": {
            "format": text.get("format") or {"type": "text"},
            "verbosity": text.get("verbosity") or "medium",
        },
        "tool_choice": "auto" if choice is None else choice,
        "tools": [_with_default(tool) for tool in fields.get("tools") or ()],
        "top_logprobs": fields.get("top_logprobs") or 0,
        "user": fields.get("user"),
    }
