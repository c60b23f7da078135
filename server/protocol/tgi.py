"""The body of TGI's /generate -> a typed `GenerateCall`, or a refusal in TGI's words.

Source: text-generation-inference's router (v3.3), whose rules differ from OpenAI's: a temperature of 0 is an
error, and silence is greedy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import BadRequest
from .fields import Fields
from .sampling import MOST_STOPS, Sampling
from .structured import Constraint, regex_constraint, schema_constraint

MOST_TOP_TOKENS = 5
DEFAULT_TOKENS = 100

_SAMPLES = ("temperature", "top_k", "top_p", "typical_p")
_REFUSED: dict[str, tuple[Any, ...]] = {"typical_p": (), "watermark": (False,), "adapter_id": ()}


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateCall:
    """One checked request.

    Attributes:
      truncate: the most tokens of the prompt that are kept, from its end.
      full_text: the answer begins with the prompt. details, prefill: its tokens are told, and the prompt's.
    """

    inputs: str
    sampling: Sampling
    best_of: int
    truncate: int | None
    full_text: bool
    details: bool
    prefill: bool
    constraint: Constraint | None
    stream: bool


def parse_generate(body: dict[str, Any], *, most_choices: int) -> GenerateCall:
    """Checks a request and types it.

    Raises:
      BadRequest: the first fault found, in TGI's words.
    """
    fields = Fields(body)
    inputs = fields.string("inputs")
    if not inputs:
        raise BadRequest("`inputs` cannot be empty", "inputs")
    given = fields.object("parameters") or Fields({})
    for name, neutral in _REFUSED.items():
        if given.get(name) is not None and given.get(name) not in neutral:
            raise BadRequest(f"`{name}` is not supported", name)
    best_of = _integer(given, "best_of", 1, most_choices) or 1
    stream = fields.boolean("stream") or False
    if best_of > 1 and stream:
        raise BadRequest("`best_of` != 1 is not supported when streaming tokens", "best_of")
    return GenerateCall(
        inputs=inputs,
        sampling=_sampling(given),
        best_of=best_of,
        truncate=_integer(given, "truncate", 1),
        full_text=given.boolean("return_full_text") or False,
        details=given.boolean("details") or False,
        prefill=given.boolean("decoder_input_details") or False,
        constraint=_constraint(given),
        stream=stream,
    )


def _sampling(given: Fields) -> Sampling:
    samples = given.boolean("do_sample") or any(given.get(name) is not None for name in _SAMPLES)
    temperature = _number(given, "temperature", lambda value: value > 0, "must be strictly positive")
    top_p = _number(given, "top_p", lambda value: 0 < value < 1, "must be > 0.0 and < 1.0")
    repetition = _number(given, "repetition_penalty", lambda value: value > 0, "must be strictly positive")
    _number(given, "repetition_penalty", lambda value: 0.01 <= value <= 100, "must be >= 0.01 and <= 100.0")
    frequency = _number(
        given, "frequency_penalty", lambda value: -2 <= value <= 2, "must be >= -2.0 and <= 2.0"
    )
    return Sampling(
        max_tokens=_integer(given, "max_new_tokens", 1),
        n=1,
        temperature=(temperature or 1.0) if samples else 0.0,
        top_p=1.0 if top_p is None else top_p,
        top_k=_integer(given, "top_k", 1) or 0,
        min_p=0.0,
        frequency_penalty=frequency or 0.0,
        presence_penalty=0.0,
        repetition_penalty=1.0 if repetition is None else repetition,
        logit_bias=(),
        allowed_token_ids=None,
        seed=_integer(given, "seed", 0, 2**64 - 1),
        stop=_stop(given),
        stop_token_ids=(),
        include_stop=True,
        min_tokens=0,
        ignore_eos=False,
        show_special=False,
        logprobs=_integer(given, "top_n_tokens", 0, MOST_TOP_TOKENS) or 0,
        cache_salt="",
    )


def _integer(given: Fields, name: str, low: int, high: int | None = None) -> int | None:
    value = given.integer(name, -(2**63), 2**64)
    if value is not None and (value < low or (high is not None and value > high)):
        bound = "must be strictly positive" if high is None else f"must be >= {low} and <= {high}"
        raise BadRequest(f"`{name}` {bound}. Given: {value}", name)
    return value


def _number(given: Fields, name: str, fits: Callable[[float], bool], bound: str) -> float | None:
    value = given.number(name, -math.inf, math.inf)
    if value is not None and not fits(value):
        raise BadRequest(f"`{name}` {bound}", name)
    return value


def _stop(given: Fields) -> tuple[str, ...]:
    value = given.get("stop") or []
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise BadRequest("`stop` must be a list of strings that are not empty", "stop")
    if len(value) > MOST_STOPS:
        raise BadRequest(f"`stop` supports up to {MOST_STOPS} stop sequences. Given: {len(value)}", "stop")
    return tuple(value)


def _constraint(given: Fields) -> Constraint | None:
    grammar = given.object("grammar")
    if grammar is None:
        return None
    kind, value = grammar.get("type"), grammar.get("value")
    if kind == "regex" and isinstance(value, str):
        return regex_constraint(value, "grammar")
    if kind in ("json", "json_schema") and isinstance(value, dict):
        schema = value.get("schema") if kind == "json_schema" else value
        return schema_constraint(schema if isinstance(schema, dict) else value, "grammar")
    raise BadRequest("`grammar` must have a `type` of json, regex or json_schema and its `value`", "grammar")
