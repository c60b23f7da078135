"""The body of a (legacy) completion -> a typed `CompletionCall`, or OpenAI's 400.

Source: OpenAI's OpenAPI description of `/v1/completions`; the wider bounds of `logprobs` are our engine's.
"""

from dataclasses import dataclass
from typing import Any

from ...runtime.request import MAX_TOP_LOGPROBS
from ..errors import BadRequest
from . import parameters
from .chat import read_model
from .delivery import Delivery, read_delivery
from .fields import Fields, check_array, wrong_type
from .sampling import MOST_IDS, Sampling, read_early, read_extras, read_late
from .structured import Constraint, read_constraint

MOST_PROMPTS = 128
DEFAULT_TOKENS = 16
"""What a silent request gets."""

RawPrompt = str | tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionCall:
    """One checked request.

    Attributes:
      best_of: choices that are generated for each prompt, of which the best `sampling.n` are answered.
      special: a string prompt begins as the model wants a whole text to.
    """

    model: str
    prompts: tuple[RawPrompt, ...]
    sampling: Sampling
    best_of: int
    echo: bool
    special: bool
    constraint: Constraint | None
    delivery: Delivery
    unknown: tuple[str, ...]

    @property
    def scores_prompt(self) -> bool:
        """The prompt's log-probabilities are part of the answer."""
        return self.echo and self.sampling.logprobs is not None


def parse_completion(body: dict[str, Any], *, most_choices: int, strict: bool) -> CompletionCall:
    """Checks a request and types it. `strict` refuses unknown keys.

    Raises:
      BadRequest: the first fault found.
    """
    fields = Fields(body)
    model = read_model(fields)
    unknown = parameters.COMPLETIONS.unknown_keys(fields, strict=strict)
    prompts = read_prompts("prompt", fields.get("prompt"), MOST_PROMPTS)
    parameters.COMPLETIONS.refuse_unsupported(fields)
    values = read_early(fields, most_choices)
    values["logprobs"] = fields.integer("logprobs", 0, MAX_TOP_LOGPROBS)
    parameters.check_identity(fields)
    parameters.check_service_tier(fields)
    parameters.check_storage(fields)
    values |= read_extras(fields)
    values |= read_late(fields, values, strict=strict, least=0)
    constraint = read_constraint(fields)
    echo, special = fields.boolean("echo") or False, fields.boolean("add_special_tokens")
    delivery = read_delivery(fields)
    best_of = _best_of(fields, values["n"], most_choices, delivery)
    return CompletionCall(
        model=model,
        prompts=prompts,
        sampling=Sampling(**values),
        best_of=best_of,
        echo=echo,
        special=special is not False,
        constraint=constraint,
        delivery=delivery,
        unknown=unknown,
    )


def read_prompts(path: str, value: Any, most: int) -> tuple[RawPrompt, ...]:
    """A string, a list of strings, a list of ids, or a list of such lists. Nothing is the empty string.

    Raises:
      BadRequest: anything else, or more than `most` of them.
    """
    if value is None or isinstance(value, str):
        return (value or "",)
    if not isinstance(value, list):
        raise wrong_type(path, "one of a string or array", value)
    check_array(path, value, MOST_IDS)
    if type(value[0]) is int:
        return (_ids(value, path),)
    check_array(path, value, most)
    strings = isinstance(value[0], str)
    return tuple(_one(item, f"{path}[{index}]", strings) for index, item in enumerate(value))


def _one(value: Any, path: str, strings: bool) -> RawPrompt:
    if strings:
        if not isinstance(value, str):
            raise wrong_type(path, "a string", value)
        return value
    if not isinstance(value, list):
        raise wrong_type(path, "an array of integers", value)
    check_array(path, value, MOST_IDS)
    return _ids(value, path)


def _ids(value: list[Any], path: str) -> tuple[int, ...]:
    for index, item in enumerate(value):
        if type(item) is not int:
            raise wrong_type(f"{path}[{index}]", "an integer", item)
    return tuple(value)


def _best_of(fields: Fields, n: int, most: int, delivery: Delivery) -> int:
    best_of = fields.integer("best_of", 0, most) or n
    if best_of < n:
        raise BadRequest(f"Invalid 'best_of': expected at least 'n', {n}, but got {best_of}.", "best_of")
    if best_of > n and delivery.stream:
        raise BadRequest("'best_of' cannot be used with 'stream'.", "best_of")
    return best_of
