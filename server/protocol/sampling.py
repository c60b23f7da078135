"""How a prompt is continued: the parameters that chat completions and completions share, checked and typed.

Says nothing of prompts and shapes of answers. None means that the client was silent. The readers stand for
the places where OpenAI looks at these parameters, so that of two faults the same one is reported.
"""

from dataclasses import dataclass
from typing import Any

from ...runtime.request import MAX_BIAS
from ..errors import BadRequest
from .fields import Fields, check_array, check_length, integers, shown, wrong_type
from .kinds import MOST_TOKENS, Boolean, Described, Integer, Kind, Limits, Number, Schema, Shape, String

MOST_STOPS = 64
STRICT_STOPS = 4
"""What OpenAI takes; a strict server takes no more."""
LONGEST_STOP = 1024
LONGEST_SALT = 512
MOST_IDS = 1 << 20
"""Ids in a list; the vocabulary is the true limit."""

_COLDEST = 1e-5
"""Colder than this, logits divided by the temperature overflow: it is greedy."""

_EARLY_LIMIT = "max_completion_tokens"
_LATE_LIMITS = ("max_tokens", "max_new_tokens")


def _most_stops(limits: Limits) -> int:
    return STRICT_STOPS if limits.strict else MOST_STOPS


def _stop_schema(limits: Limits) -> Schema:
    one = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
    return {"anyOf": [one, {"type": "array", "items": one, "maxItems": _most_stops(limits)}]}


def ids_schema(limits: Limits, least: int = 0) -> Schema:
    """Of a list of token ids."""
    id = {"type": "integer", "minimum": 0, "maximum": limits.vocabulary - 1}
    return {"type": "array", "items": id, "minItems": least, "maxItems": MOST_IDS}


def _bias_schema(limits: Limits) -> Schema:
    value = {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS}
    return {"type": "object", "propertyNames": {"pattern": "^[0-9]{1,9}$"}, "additionalProperties": value}


TOKENS = Integer(1, MOST_TOKENS, known=lambda limits: limits.context)
"""A limit of an answer's tokens: what the context cannot hold is refused with the prompt's length."""
TOKENS_OR_NONE = Integer(0, MOST_TOKENS, known=lambda limits: limits.context)

KINDS: dict[str, Kind] = {
    "max_tokens": TOKENS,
    "max_new_tokens": TOKENS,
    "temperature": Number(0, 2),
    "top_p": Number(0, 1),
    "top_k": Integer(-1, 2**31 - 1),
    "min_p": Number(0, 1),
    "seed": Integer(-(2**63), 2**63 - 1),
    "frequency_penalty": Number(-2, 2),
    "presence_penalty": Number(-2, 2),
    "repetition_penalty": Number(0.01, 100),
    "logit_bias": Shape(_bias_schema),
    "stop": Shape(_stop_schema),
    "stop_token_ids": Shape(ids_schema),
    "allowed_token_ids": Shape(lambda limits: ids_schema(limits, 1)),
    "min_tokens": Integer(0, MOST_TOKENS),
    "ignore_eos": Boolean(),
    "n": Integer(1, lambda limits: limits.most_choices),
    "include_stop_str_in_output": Boolean(),
    "skip_special_tokens": Boolean(),
    "cache_salt": String(LONGEST_SALT),
}
"""What chats and completions share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How each choice is continued.

    Attributes:
      logit_bias: `(id, value)` pairs. stop_token_ids: end ids beside the model's own.
      allowed_token_ids: no other id is generated; None for no such limit.
      include_stop: the stop string that ended the text is a part of it.
      show_special: special tokens are written out.
      logprobs: how many alternatives to report; None reports no log-probabilities at all.
      cache_salt: whom the prompt's cache is shared with: those who send the same.
    """

    max_tokens: int | None
    n: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float | None
    logit_bias: tuple[tuple[int, float], ...]
    allowed_token_ids: tuple[int, ...] | None
    seed: int | None
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    include_stop: bool
    min_tokens: int
    ignore_eos: bool
    show_special: bool
    logprobs: int | None
    cache_salt: str

    def __post_init__(self) -> None:
        """Raises BadRequest where more tokens must come than may."""
        if self.max_tokens is not None:
            Fields({"min_tokens": self.min_tokens}).integer("min_tokens", 0, self.max_tokens)

    @property
    def room(self) -> int | None:
        """Tokens that must fit behind the prompt; None where any number will do."""
        return self.max_tokens if self.max_tokens is not None else self.min_tokens or None


def read_early(fields: Described) -> dict[str, Any]:
    """What is looked at first, up to the penalties. Raises BadRequest."""
    values: dict[str, Any] = {
        _EARLY_LIMIT: fields.take(_EARLY_LIMIT),
        "n": fields.take("n") or 1,
        "temperature": _temperature(fields),
        "top_p": fields.take("top_p"),
        "presence_penalty": fields.take("presence_penalty") or 0.0,
        "frequency_penalty": fields.take("frequency_penalty") or 0.0,
    }
    return values


def read_extras(fields: Described) -> dict[str, Any]:
    """The seed, and what peers have beside OpenAI's parameters. Raises BadRequest."""
    skip = fields.take("skip_special_tokens")
    return {
        "seed": fields.take("seed"),
        "top_k": _top_k(fields),
        "min_p": fields.take("min_p"),
        "repetition_penalty": fields.take("repetition_penalty"),
        "min_tokens": fields.take("min_tokens") or 0,
        "stop_token_ids": _distinct(read_ids(fields, "stop_token_ids")) or (),
        "allowed_token_ids": _distinct(read_ids(fields, "allowed_token_ids")),
        "ignore_eos": fields.take("ignore_eos") or False,
        "include_stop": fields.take("include_stop_str_in_output") or False,
        "show_special": skip is False,
        "cache_salt": fields.take("cache_salt") or "",
    }


def read_late(fields: Described, early: dict[str, Any]) -> dict[str, Any]:
    """The old limits, biases and stops; `early` gives up its own limit. Raises BadRequest."""
    limits = {_EARLY_LIMIT: early.pop(_EARLY_LIMIT)}
    limits |= {name: fields.take(name) for name in _LATE_LIMITS}
    return {
        "max_tokens": next((limit for limit in limits.values() if limit is not None), None),
        "logit_bias": _logit_bias(fields),
        "stop": _stop(fields, _most_stops(fields.limits)),
    }


def read_ids(fields: Fields, name: str) -> tuple[int, ...] | None:
    """A list of token ids, whose upper end only the model knows. Raises BadRequest."""
    value = fields.get(name)
    if value is None:
        return None
    path = fields.where(name)
    if not isinstance(value, list):
        raise wrong_type(path, "an array of integers", value)
    check_array(path, value, MOST_IDS, empty=name != "allowed_token_ids")
    ids = integers(path, value)
    for index, item in enumerate(ids):
        if not 0 <= item < 2**31:
            raise BadRequest(f"Invalid '{path}[{index}]': no token has the id {shown(item)}.", path)
    return ids


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


def no_such_token(path: str, token: int, vocabulary: int) -> BadRequest:
    """The refusal of an id beyond the vocabulary."""
    message = f"Invalid '{path}': no token has the id {token}. Expected an id from 0 to {vocabulary - 1}."
    return BadRequest(message, path, "invalid_value")


def _distinct(ids: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Each id once, in order: so many as the vocabulary has are soon walked through."""
    return None if ids is None else tuple(dict.fromkeys(ids))


def _temperature(fields: Described) -> float | None:
    value = fields.take("temperature")
    return 0.0 if value is not None and value < _COLDEST else value


def _top_k(fields: Described) -> int | None:
    """-1 and 0 both say "no limit"."""
    value = fields.take("top_k")
    return 0 if value == -1 else value


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    found = fields.object("logit_bias")
    if found is None:
        return ()
    biases = []
    for key in found.values:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            message = f"Invalid key in 'logit_bias': '{shown(key)}'. Expected a token id such as '50256'."
            raise BadRequest(message, "logit_bias", "invalid_value")
        value = found.number(key, -MAX_BIAS, MAX_BIAS)
        if value is None:
            raise wrong_type(found.where(key), "a decimal", value)
        biases.append((int(key), value))
    return tuple(biases)


def _stop(fields: Fields, most: int) -> tuple[str, ...]:
    value = fields.get("stop")
    if value is None:
        return ()
    if isinstance(value, str):
        _check_stop("stop", value)
        return (value,)
    if not isinstance(value, list):
        raise wrong_type("stop", "one of a string or array of strings", value)
    check_array("stop", value, most, empty=True)
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
