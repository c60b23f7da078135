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
from .fields import Fields, check_array, check_length, wrong_type
from .messages import Message, check_contents, read_messages

MOST_STOPS = 4
LONGEST_STOP = 1024
LONGEST_SALT = 512

_MOST_TOKENS = 2**31 - 1
_COLDEST = 1e-5
"""Colder than this, logits divided by the temperature overflow: it is greedy."""

_TOKEN_LIMITS = ("max_completion_tokens", "max_tokens", "max_new_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatCall:
    """One checked request. None means that the client was silent.

    Attributes:
      limit_name: the parameter that set max_tokens, for errors about it.
      logprobs: how many alternatives to report; None reports no log-probabilities at all.
      cache_salt: whom the prompt's cache is shared with: those who send the same.
      continuous_usage: every chunk carries the usage so far.
      unknown: keys that mean nothing here.
    """

    model: str
    messages: list[Message]
    max_tokens: int | None
    limit_name: str
    n: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float
    presence_penalty: float
    seed: int | None
    stop: tuple[str, ...]
    logprobs: int | None
    stream: bool
    include_usage: bool
    continuous_usage: bool
    ignore_eos: bool
    cache_salt: str
    unknown: tuple[str, ...]


def parse_chat(body: dict[str, Any], *, most_choices: int, strict: bool) -> ChatCall:
    """Checks a request and types it. `strict` refuses unknown keys, as OpenAI does.

    Raises:
      BadRequest: the first fault found.
    """
    fields = Fields(body)
    model = _model(fields)
    fields.require("messages")
    unknown = parameters.unknown_keys(fields)
    if strict and unknown:
        raise parameters.unknown_parameter(unknown[0])
    messages = read_messages(body["messages"])
    parameters.check_tool_fields(fields)
    values = _sampling(fields, most_choices)
    values |= _delivery(fields)
    parameters.check_storage(fields)
    parameters.refuse_unsupported(fields)
    check_contents(body["messages"])
    return ChatCall(model=model, messages=messages, unknown=tuple(unknown), **values)


def _model(fields: Fields) -> str:
    model = fields.get("model")
    if model is None or model == "":
        raise BadRequest("you must provide a model parameter")
    if not isinstance(model, str):
        raise wrong_type("model", "a string", model)
    return model


def _sampling(fields: Fields, most_choices: int) -> dict[str, Any]:
    limits = {name: fields.integer(name, 1, _MOST_TOKENS) for name in _TOKEN_LIMITS[:1]}
    values = {
        "n": fields.integer("n", 1, most_choices) or 1,
        "temperature": _temperature(fields),
        "top_p": fields.number("top_p", 0, 1),
        "presence_penalty": fields.number("presence_penalty", -2, 2) or 0.0,
        "frequency_penalty": fields.number("frequency_penalty", -2, 2) or 0.0,
        "logprobs": _logprobs(fields),
    }
    parameters.check_identity(fields)
    values["seed"] = fields.integer("seed", -(2**63), 2**63 - 1)
    values["top_k"] = _top_k(fields)
    values["min_p"] = fields.number("min_p", 0, 1)
    values["ignore_eos"] = fields.boolean("ignore_eos") or False
    values["cache_salt"] = fields.string("cache_salt", LONGEST_SALT) or ""
    parameters.check_response_format(fields)
    parameters.check_service_tier(fields)
    limits |= {name: fields.integer(name, 1, _MOST_TOKENS) for name in _TOKEN_LIMITS[1:]}
    name = next((name for name in _TOKEN_LIMITS if limits[name] is not None), _TOKEN_LIMITS[0])
    return values | {"limit_name": name, "max_tokens": limits[name], "stop": _stop(fields)}


def _temperature(fields: Fields) -> float | None:
    value = fields.number("temperature", 0, 2)
    return 0.0 if value is not None and value < _COLDEST else value


def _top_k(fields: Fields) -> int | None:
    """-1 and 0 both say "no limit"."""
    value = fields.integer("top_k", -1, 2**31 - 1)
    return 0 if value == -1 else value


def _logprobs(fields: Fields) -> int | None:
    wanted = fields.boolean("logprobs") or False
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        raise BadRequest(message, "top_logprobs")
    return (top or 0) if wanted else None


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    if value is None:
        return ()
    if isinstance(value, str):
        _check_stop("stop", value)
        return (value,)
    if not isinstance(value, list):
        raise wrong_type("stop", "one of a string or array of strings", value)
    check_array("stop", value, MOST_STOPS, empty=True)
    for item in value:
        if not isinstance(item, str):
            raise wrong_type("stop", "one of a string or array of strings", value)
        _check_stop("stop", item)
    return tuple(value)


def _check_stop(path: str, value: str) -> None:
    if not value:
        raise BadRequest(
            f"Invalid '{path}': string too short. Expected a string with minimum length 1, but got an empty "
            "string instead.",
            path,
            "string_below_min_length",
        )
    check_length(path, value, LONGEST_STOP)


def _delivery(fields: Fields) -> dict[str, bool]:
    stream = fields.boolean("stream") or False
    options = fields.object("stream_options")
    if options is None:
        return {"stream": stream, "include_usage": False, "continuous_usage": False}
    options.only(("include_usage", "include_obfuscation", "continuous_usage_stats"))
    include = options.boolean("include_usage") or False
    options.boolean("include_obfuscation")
    continuous = options.boolean("continuous_usage_stats") or False
    if not stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise BadRequest(message, "stream_options")
    return {"stream": stream, "include_usage": include, "continuous_usage": include and continuous}
