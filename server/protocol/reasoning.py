"""What a request says of reasoning: how much there may be, whether it is separated and returned.

How a model marks its reasoning is a matter of `server/reasoning`, and of the flag `--reasoning-format`.
"""

from dataclasses import dataclass

from ..errors import BadRequest
from .kinds import MOST_TOKENS, Boolean, Described, Integer, Kind, Words


@dataclass(frozen=True, slots=True)
class ReasoningUse:
    """How a reply's reasoning is treated.

    Attributes:
      separate: it is split from the answer. shown: it is returned, if it is split.
      effort: how much the model should reason, for templates that read it.
      most: the most tokens of it; 0 for an answer without reasoning, None for no limit.
    """

    separate: bool = True
    shown: bool = True
    effort: str | None = None
    most: int | None = None


PLAIN_USE = ReasoningUse()

_UNSPLIT = (
    "Reasoning has a limit only if it is separated from the answer; expected no limit, or a separation."
)

KINDS: dict[str, Kind] = {
    "include_reasoning": Boolean(),
    "separate_reasoning": Boolean(),
    "reasoning_format": Words(("auto", "deepseek", "none")),
}
"""vLLM's, SGLang's and llama.cpp's parameters; `deepseek` is llama.cpp's word for any separation."""

LIMIT = "max_reasoning_tokens"
_LIMITS = (LIMIT, "thinking_token_budget")
LIMITS: dict[str, Kind] = dict.fromkeys(_LIMITS, Integer(0, MOST_TOKENS))
"""The most tokens of reasoning; the second name is vLLM's."""


def read_reasoning(fields: Described, effort: str | None) -> ReasoningUse:
    """The parameters of chats; `effort` has another place in the Responses API. Raises BadRequest."""
    shown = fields.take("include_reasoning") is not False
    separate = fields.take("separate_reasoning") is not False
    separate = fields.take("reasoning_format") != "none" and separate
    limits = {name: limit for name in _LIMITS if (limit := fields.take(name)) is not None}
    if len(limits) > 1:
        raise BadRequest(f"Only one of '{LIMIT}' and '{_LIMITS[1]}' can be given.", _LIMITS[1])
    most = 0 if effort == "none" else next(iter(limits.values()), None)
    if most and not separate:
        raise BadRequest(_UNSPLIT, next(iter(limits)))
    return ReasoningUse(separate, shown, effort, most)
