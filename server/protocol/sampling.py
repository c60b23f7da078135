"""The sampling parameters that chat completions, completions and responses share: declared, checked, typed.

Prompts and the shapes of answers are in other modules. None means that the request has no value. The
parameters are read in the order in which OpenAI checks them, so that of two errors the same one is reported.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ...runtime.request import SamplingParams
from ..errors import BadRequest
from .fields import Fields, check_array, check_length, wrong_type
from .kinds import MOST_TOKENS, Boolean, Described, Integer, Kind, Limits, Number, Schema, Shape, String
from .token_ids import bias_schema, ids_schema, no_such_token, read_bias, read_distinct_ids

MOST_STOPS = 64
STRICT_STOPS = 4
"""OpenAI's limit, and that of a strict server."""
LONGEST_STOP = 1024
LONGEST_SALT = 512
_COLDEST = 1e-5
"""Colder than this, logits divided by the temperature overflow: it is greedy."""

_EARLY_LIMIT = "max_completion_tokens"
_LATE_LIMITS = ("max_tokens", "max_new_tokens")


def _most_stops(limits: Limits) -> int:
    return STRICT_STOPS if limits.strict else MOST_STOPS


def _stop_schema(limits: Limits) -> Schema:
    one = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
    return {"anyOf": [one, {"type": "array", "items": one, "maxItems": _most_stops(limits)}]}


TOKENS = Integer(1, MOST_TOKENS, known=lambda limits: limits.context if limits.strict else MOST_TOKENS)
"""A limit of a reply's tokens. A strict server refuses more than the context holds behind the prompt."""
TOKENS_OR_NONE = Integer(0, MOST_TOKENS, known=lambda limits: limits.context)
"""The same of a raw text, where every server refuses it."""


def _temperature(fields: Described, name: str) -> float | None:
    value = fields.take(name)
    return 0.0 if value is not None and value < _COLDEST else value


def _top_k(fields: Described, name: str) -> int | None:
    """-1 and 0 both mean no limit."""
    value = fields.take(name)
    return 0 if value == -1 else value


def _stop(fields: Described, name: str) -> tuple[str, ...]:
    value = fields.get(name)
    if value is None:
        return ()
    if isinstance(value, str):
        _check_stop(name, value)
        return (value,)
    if not isinstance(value, list):
        raise wrong_type(name, "one of a string or array of strings", value)
    check_array(name, value, _most_stops(fields.limits), empty=True)
    for item in value:
        if not isinstance(item, str):
            raise wrong_type(name, "one of a string or array of strings", value)
        _check_stop(name, item)
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


Stage = Literal["early", "extra", "late"]


@dataclass(frozen=True, slots=True)
class Declared:
    """What the server knows of a sampling parameter, in addition to its name, type and default in `Sampling`.

    Attributes:
      kind: the values that it accepts. meaning: its line in the API's documentation.
      name: the JSON name, where it differs.
      stage: when it is read (`read_early`, `read_extras`, `read_late`).
      read: reads the value from a body; None for a parameter that is absent.
      engine: the engine has a parameter of the same name and receives the value unchanged. If the request has
        none, the model's recommendation or the engine's default applies.
    """

    kind: Kind
    meaning: str
    name: str = ""
    stage: Stage = "extra"
    read: Callable[[Described, str], Any] = Described.take
    engine: bool = False


def _parameter(kind: Kind, meaning: str, *, default: Any = None, **more: Any) -> Any:
    return field(default=default, metadata={"declared": Declared(kind, meaning, **more)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How each choice is continued.

    Each parameter is declared once, here. The parsers, the documents of the API and what the engine receives
    follow from the declaration. In each stage the parameters are read in this order.

    Attributes:
      max_tokens: read from three names, see `read_late`.
      logit_bias: `(id, value)` pairs. stop_token_ids: end ids in addition to the model's own.
      allowed_token_ids: no other id is generated; None for no such limit.
      include_stop: the text keeps the stop string that ended it.
      show_special: special tokens are part of the text.
      logprobs: how many alternatives to report; None reports no log-probabilities. Each route reads its own.
      cache_salt: requests with the same salt share cached prompts.
    """

    max_tokens: int | None = None
    n: int = _parameter(
        Integer(1, lambda limits: limits.most_choices),
        "choices; the prompt is computed once",
        default=1,
        stage="early",
    )
    temperature: float | None = _parameter(
        Number(0, 2),
        "0 to 2; 0 takes the likeliest token; silent: what the model recommends, else 1",
        stage="early",
        read=_temperature,
        engine=True,
    )
    top_p: float | None = _parameter(
        Number(0, 1), "0 to 1; 0 takes the likeliest token", stage="early", engine=True
    )
    presence_penalty: float = _parameter(
        Number(-2, 2),
        "-2 to 2, once for a token that was generated",
        default=0.0,
        stage="early",
        engine=True,
    )
    frequency_penalty: float = _parameter(
        Number(-2, 2),
        "-2 to 2, times how often a token was generated",
        default=0.0,
        stage="early",
        engine=True,
    )
    show_special: bool = _parameter(
        Boolean(),
        "false writes special tokens out",
        default=False,
        name="skip_special_tokens",
        read=lambda fields, name: fields.take(name) is False,
    )
    seed: int | None = _parameter(
        Integer(-(2**63), 2**63 - 1), "the same seed, request and fingerprint give the same text"
    )
    top_k: int | None = _parameter(
        Integer(-1, 2**31 - 1),
        "so many of the likeliest tokens; 0 and -1 for no limit",
        read=_top_k,
        engine=True,
    )
    min_p: float | None = _parameter(
        Number(0, 1),
        "drops tokens less likely than this part of the likeliest one's probability",
        engine=True,
    )
    repetition_penalty: float | None = _parameter(
        Number(0.01, 100),
        "0.01 to 100; divides logits of tokens seen; silent: as recommended, else 1",
        engine=True,
    )
    min_tokens: int = _parameter(
        Integer(0, MOST_TOKENS),
        "no end token before so many tokens, at most `max_tokens`; a grammar's end comes first",
        default=0,
        engine=True,
    )
    stop_token_ids: tuple[int, ...] = _parameter(
        Shape(ids_schema),
        "token ids that end the answer, beside the model's own",
        default=(),
        read=read_distinct_ids,
    )
    allowed_token_ids: tuple[int, ...] | None = _parameter(
        Shape(lambda limits: ids_schema(limits, 1)), "no other token is generated", read=read_distinct_ids
    )
    ignore_eos: bool = _parameter(Boolean(), "the model's end tokens do not end the answer", default=False)
    include_stop: bool = _parameter(
        Boolean(),
        "the stop string stays in the answer",
        default=False,
        name="include_stop_str_in_output",
    )
    cache_salt: str = _parameter(
        String(LONGEST_SALT), "only requests with the same salt share cached prompts", default=""
    )
    logit_bias: tuple[tuple[int, float], ...] = _parameter(
        Shape(bias_schema),
        "token id to -100 … 100, added to the logit",
        default=(),
        stage="late",
        read=read_bias,
        engine=True,
    )
    stop: tuple[str, ...] = _parameter(
        Shape(_stop_schema),
        "up to 64 strings that end the answer, without them; up to 4 with `--strict`",
        default=(),
        stage="late",
        read=_stop,
    )
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Raises BadRequest if the least number of tokens is above the most."""
        if self.max_tokens is not None:
            Fields({"min_tokens": self.min_tokens}).integer("min_tokens", 0, self.max_tokens)

    @property
    def room(self) -> int | None:
        """Tokens that must fit behind the prompt; None where any number will do."""
        return self.max_tokens if self.max_tokens is not None else self.min_tokens or None


DECLARED: dict[str, Declared] = {
    each.name: each.metadata["declared"] for each in fields(Sampling) if "declared" in each.metadata
}
"""By the field's name in `Sampling`."""

KINDS: dict[str, Kind] = {
    **dict.fromkeys(_LATE_LIMITS, TOKENS),
    **{each.name or name: each.kind for name, each in DECLARED.items()},
}
"""The parameters that chats and completions share, by their JSON names."""

MEANINGS = {each.name or name: each.meaning for name, each in DECLARED.items()}
"""The meaning of each parameter declared here, by its JSON name."""

ENGINE_PARAMETERS = tuple(name for name, each in DECLARED.items() if each.engine)
"""The parameters that the engine receives unchanged."""

_DEFAULTS = {each.name: each.default for each in fields(Sampling)}


def neutral() -> dict[str, Any]:
    """The values with which the engine's parameters change nothing: the engine's own defaults."""
    plain = SamplingParams()
    return {name: getattr(plain, name) for name in ENGINE_PARAMETERS}


def defaults(recommended: dict[str, Any]) -> dict[str, Any]:
    """The values, by their JSON names, of the parameters that a request leaves out.

    Args:
      recommended: the model's values for parameters that the engine receives.
    """
    values = _DEFAULTS | neutral() | recommended
    found = {each.name or name: values[name] for name, each in DECLARED.items()}
    return found | {"skip_special_tokens": not values["show_special"], "logit_bias": {}}


def _read(fields: Described, stage: Stage) -> dict[str, Any]:
    values = {}
    for name, each in DECLARED.items():
        if each.stage == stage:
            value = each.read(fields, each.name or name)
            values[name] = _DEFAULTS[name] if value is None else value
    return values


def read_early(fields: Described) -> dict[str, Any]:
    """The parameters that OpenAI checks first, up to the penalties. Raises BadRequest."""
    return {_EARLY_LIMIT: fields.take(_EARLY_LIMIT)} | _read(fields, "early")


def read_extras(fields: Described) -> dict[str, Any]:
    """The seed, and other servers' additions to OpenAI's parameters. Raises BadRequest."""
    return _read(fields, "extra")


def read_late(fields: Described, early: dict[str, Any]) -> dict[str, Any]:
    """The old limits, biases and stops. Takes the newest limit out of `early`. Raises BadRequest."""
    limits = [early.pop(_EARLY_LIMIT), *(fields.take(name) for name in _LATE_LIMITS)]
    limit = next((each for each in limits if each is not None), None)
    return {"max_tokens": limit} | _read(fields, "late")


def read_as(fields: Described, names: dict[str, str]) -> dict[str, Any]:
    """Some of the parameters, which have these names in another protocol. Raises BadRequest."""
    found = {name: DECLARED[name].read(fields, other) for name, other in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def check_token_ids(sampling: Sampling, vocabulary: int) -> None:
    """Raises BadRequest for the first id that the model does not have."""
    lists = {
        "logit_bias": [token for token, _ in sampling.logit_bias],
        "allowed_token_ids": sampling.allowed_token_ids or (),
        "stop_token_ids": sampling.stop_token_ids,
    }
    for name, ids in lists.items():
        for token in ids:
            if token >= vocabulary:
                raise no_such_token(name, token, vocabulary)
