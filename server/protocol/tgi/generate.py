"""The body of TGI's /generate -> a typed `GenerateCall`, or an error in TGI's words.

Source: text-generation-inference's router (v3.3). Its rules differ from OpenAI's: a temperature of 0 is an
error, and without sampling parameters decoding is greedy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ....runtime.request import MAX_TEMPERATURE
from ...errors import BadRequest
from ..kinds import (
    TEXT,
    Boolean,
    Described,
    Kind,
    Limits,
    Object,
    Refused,
    Schema,
    Shape,
    String,
    array,
    constant,
    record,
)
from ..sampling import MOST_STOPS, Sampling, neutral
from ..structured import Constraint, regex_constraint, schema_constraint
from ..table import Parameters

MOST_TOP_TOKENS = 5
DEFAULT_TOKENS = 100

_LARGEST = 3e38
"""The largest value, within float32's range."""
_SAMPLES = ("temperature", "top_k", "top_p", "typical_p")


@dataclass(frozen=True, slots=True)
class _Integer:
    """An integer within bounds, refused in TGI's words; `known`: a bound that depends on the model."""

    low: int
    high: int | Callable[[Limits], int] | None = None
    known: Callable[[Limits], int] | None = None

    def read(self, fields: Described, name: str) -> int | None:
        value = fields.integer(name, -(2**63), 2**64)
        high = self.high(fields.limits) if callable(self.high) else self.high
        if value is None or (self.low <= value and (high is None or value <= high)):
            return value
        bound = (
            "must be strictly positive" if value < self.low == 1 else f"must be >= {self.low} and <= {high}"
        )
        raise BadRequest(f"`{name}` {bound}. Given: {value}", name)

    def schema(self, limits: Limits) -> Schema:
        high = self.high(limits) if callable(self.high) else self.high
        if high is None:
            high = self.known(limits) if self.known else 2**64
        return {"type": "integer", "minimum": self.low, "maximum": high}


@dataclass(frozen=True, slots=True)
class _Number:
    """A decimal within bounds, or strictly within, refused in TGI's words."""

    expected: str
    above: float | None = None
    below: float | None = None
    low: float = -_LARGEST
    high: float = _LARGEST

    def read(self, fields: Described, name: str) -> float | None:
        value = fields.number(name, -_LARGEST, _LARGEST)
        if value is None or self._holds(value):
            return value
        expected = "must be strictly positive" if value <= 0 < self.low else self.expected
        raise BadRequest(f"`{name}` {expected}", name)

    def _holds(self, value: float) -> bool:
        inside = (self.above is None or value > self.above) and (self.below is None or value < self.below)
        return inside and self.low <= value <= self.high

    def schema(self, limits: Limits) -> Schema:
        bounds = {
            "exclusiveMinimum": self.above,
            "exclusiveMaximum": self.below,
            "minimum": None if self.above is not None else self.low,
            "maximum": None if self.below is not None else self.high,
        }
        return {"type": "number"} | {name: bound for name, bound in bounds.items() if bound is not None}


def _stop_schema(limits: Limits) -> Schema:
    return array({"type": "string", "minLength": 1}, MOST_STOPS, 0)


def _grammar_schema() -> Schema:
    schema = {"type": "string", "enum": ["json", "json_schema"]}
    kinds = [
        record({"type": constant("regex"), "value": TEXT}),
        record({"type": schema, "value": {"type": "object"}}),
    ]
    return {"anyOf": kinds}


_PARAMETERS: dict[str, Kind] = {
    "best_of": _Integer(1, lambda limits: limits.most_choices),
    "decoder_input_details": Boolean(),
    "details": Boolean(),
    "do_sample": Boolean(),
    "frequency_penalty": _Number("must be >= -2.0 and <= 2.0", low=-2, high=2),
    "grammar": Shape(_grammar_schema()),
    "max_new_tokens": _Integer(1, known=lambda limits: limits.context),
    "repetition_penalty": _Number("must be >= 0.01 and <= 100.0", low=0.01, high=100),
    "return_full_text": Boolean(),
    "seed": _Integer(0, 2**64 - 1),
    "stop": Shape(_stop_schema),
    "temperature": _Number(
        f"must be > 0.0 and <= {MAX_TEMPERATURE}", above=0, low=math.ulp(0.0), high=MAX_TEMPERATURE
    ),
    "top_k": _Integer(1, 2**31 - 1),
    "top_n_tokens": _Integer(0, MOST_TOP_TOKENS),
    "top_p": _Number("must be > 0.0 and < 1.0", above=0, below=1),
    "truncate": _Integer(1),
    "typical_p": Refused(),
    "watermark": Refused((False,)),
    "adapter_id": String(),
}
GENERATE = Parameters(
    {"inputs": Shape(TEXT | {"minLength": 1}), "parameters": Object(_PARAMETERS), "stream": Boolean()},
    {},
    {},
    ("inputs",),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateCall:
    """One checked request.

    Attributes:
      unknown: keys that are not parameters of this route.
      truncate: how many tokens at most are kept, from the end of the prompt.
      adapter: the id of the model's adapter; empty for none.
      full_text: the answer begins with the prompt. details, prefill: report its tokens, and the prompt's.
    """

    inputs: str
    sampling: Sampling
    best_of: int
    truncate: int | None
    adapter: str
    full_text: bool
    details: bool
    prefill: bool
    constraint: Constraint | None
    stream: bool
    unknown: tuple[str, ...]


def parse_generate(body: dict[str, Any], *, most_choices: int, stream: bool | None = None) -> GenerateCall:
    """Checks a request and types it. `stream`: the route's own value, used instead of the body's.

    Raises:
      BadRequest: the first fault found, in TGI's words.
    """
    fields = GENERATE.fields(body, Limits(most_choices=most_choices))
    inputs = fields.string("inputs")
    if not inputs:
        raise BadRequest("`inputs` cannot be empty", "inputs")
    given = fields.take("parameters") or Described({}, _PARAMETERS, fields.limits)
    for name, kind in _PARAMETERS.items():
        if isinstance(kind, Refused) and not kind.passes(given.get(name)):
            raise BadRequest(f"`{name}` is not supported", name)
    best_of = given.take("best_of") or 1
    asked = fields.take("stream") or False
    streams: bool = asked if stream is None else stream
    if best_of > 1 and streams:
        raise BadRequest("`best_of` != 1 is not supported when streaming tokens", "best_of")
    return GenerateCall(
        inputs=inputs,
        sampling=_sampling(given),
        best_of=best_of,
        truncate=given.take("truncate"),
        adapter=given.take("adapter_id") or "",
        full_text=given.take("return_full_text") or False,
        details=given.take("details") or False,
        prefill=given.take("decoder_input_details") or False,
        constraint=_constraint(given),
        stream=streams,
        unknown=GENERATE.unknown_keys(fields)
        + tuple(name for name in given.values if name not in _PARAMETERS),
    )


def _sampling(given: Described) -> Sampling:
    samples = given.take("do_sample") or any(given.get(name) is not None for name in _SAMPLES)
    values: dict[str, Any] = neutral() | {"include_stop": True} | ({} if samples else {"temperature": 0.0})
    values |= _taken(given, "temperature", "top_p", "repetition_penalty", "frequency_penalty")
    values["max_tokens"] = given.take("max_new_tokens")
    values |= _taken(given, "top_k", "seed")
    return Sampling(**values, stop=_stop(given), logprobs=given.take("top_n_tokens") or 0)


def _taken(given: Described, *names: str) -> dict[str, Any]:
    """The parameters that the request has, of those with these names."""
    return {name: value for name in names if (value := given.take(name)) is not None}


def _stop(given: Described) -> tuple[str, ...]:
    value = given.get("stop")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise BadRequest("`stop` must be a list of strings that are not empty", "stop")
    if len(value) > MOST_STOPS:
        raise BadRequest(f"`stop` supports up to {MOST_STOPS} stop sequences. Given: {len(value)}", "stop")
    return tuple(value)


def _constraint(given: Described) -> Constraint | None:
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
