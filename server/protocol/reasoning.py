"""What a request says of reasoning: whether it is separated from the answer and returned.

How a model marks its reasoning is a matter of `server/reasoning`, and of the flag `--reasoning-format`.
"""

from dataclasses import dataclass

from .kinds import Boolean, Described, Kind, Words


@dataclass(frozen=True, slots=True)
class ReasoningUse:
    """How a reply's reasoning is treated.

    Attributes:
      separate: it is split from the answer. shown: it is returned, if it is split.
    """

    separate: bool = True
    shown: bool = True


PLAIN_USE = ReasoningUse()

KINDS: dict[str, Kind] = {
    "include_reasoning": Boolean(),
    "separate_reasoning": Boolean(),
    "reasoning_format": Words(("auto", "deepseek", "none")),
}
"""vLLM's, SGLang's and llama.cpp's parameters; `deepseek` is llama.cpp's word for any separation."""


def read_reasoning(fields: Described) -> ReasoningUse:
    """The parameters of other servers. Raises BadRequest."""
    shown = fields.take("include_reasoning") is not False
    separate = fields.take("separate_reasoning") is not False
    return ReasoningUse(separate and fields.take("reasoning_format") != "none", shown)
