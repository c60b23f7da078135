"""The body of a (legacy) completion -> a typed `CompletionCall`, or OpenAI's 400.

Source: OpenAI's OpenAPI description of `/v1/completions`; the wider bounds of `logprobs` are the engine's.
"""

from dataclasses import dataclass
from typing import Any

from ...errors import BadRequest
from .. import labels
from ..cache_hints import CacheHints, read_hints
from ..delivery import Delivery, read_delivery
from ..kinds import Described, Limits
from ..prompts import RawPrompt, read_prompts
from ..sampling import Sampling, read_early, read_extras, read_late
from ..structured import Constraint, read_constraint
from . import parameters
from .chat import read_model
from .parameters import MOST_PROMPTS

DEFAULT_TOKENS = 16
"""For a request without a limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionCall:
    """One checked request.

    Attributes:
      best_of: choices to generate for each prompt; the best `sampling.n` are returned.
      special: a string prompt begins with the model's beginning token.
      hints: what is known of the conversation, for the cache. priority: None if it names none.
    """

    model: str
    prompts: tuple[RawPrompt, ...]
    sampling: Sampling
    best_of: int
    echo: bool
    special: bool
    constraint: Constraint | None
    delivery: Delivery
    hints: CacheHints
    priority: int | None
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
    limits = Limits(most_choices=most_choices, strict=strict)
    fields = parameters.COMPLETIONS.fields(body, limits)
    model = read_model(fields)
    unknown = parameters.COMPLETIONS.unknown_keys(fields)
    prompts = read_prompts("prompt", fields.get("prompt"), MOST_PROMPTS)
    parameters.COMPLETIONS.refuse_unsupported(fields)
    values = read_early(fields)
    values["logprobs"] = fields.take("logprobs")
    labels.check_identity(fields)
    labels.check_service_tier(fields)
    labels.check_storage(fields)
    parameters.COMPLETIONS.check(fields)
    values |= read_extras(fields)
    values |= read_late(fields, values)
    constraint = read_constraint(fields)
    echo, special = fields.take("echo") or False, fields.take("add_special_tokens")
    delivery = read_delivery(fields)
    best_of = _best_of(fields, values["n"], delivery)
    return CompletionCall(
        model=model,
        prompts=prompts,
        sampling=Sampling(**values),
        best_of=best_of,
        echo=echo,
        special=special is not False,
        constraint=constraint,
        delivery=delivery,
        hints=read_hints(fields),
        priority=fields.take("priority"),
        unknown=unknown,
    )


def _best_of(fields: Described, n: int, delivery: Delivery) -> int:
    best_of = fields.take("best_of") or n
    if best_of < n:
        raise BadRequest(f"Invalid 'best_of': expected at least 'n', {n}, but got {best_of}.", "best_of")
    if best_of > n and delivery.stream:
        raise BadRequest("'best_of' cannot be used with 'stream'.", "best_of")
    return best_of
