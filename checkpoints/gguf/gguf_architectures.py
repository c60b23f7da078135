"""The architectures of GGUF files: one row each, with what differs from `llama`.

The keys and their meaning are those of llama.cpp's converter and graphs. As in
`huggingface/families.py`, an architecture is data: its keys, and a function from them to fields of
`ModelConfig`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...model.config import MoEConfig
from ..values import integer, number, shortest

Keys = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
Fields = dict[str, Any]

_EXPERTS = frozenset({"expert_count", "expert_used_count"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """What differs between an architecture and `llama`.

    Attributes:
      name: in `general.architecture`, and before its keys.
      keys: its own keys, without the name. read: these keys to fields of `ModelConfig`.
      pairs: adjacent dimensions of a head are rotated together, so the converter has permuted the rows of q
        and k; otherwise dimensions i and i + R/2, as ours.
      partial: `rope.dimension_count` may be less than the head size.
    """

    name: str
    keys: frozenset[str] = frozenset()
    read: Callable[[Keys, Shapes], Fields]
    pairs: bool = False
    partial: bool = False


def _llama(keys: Keys, shapes: Shapes) -> Fields:
    return {
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "feed_forward_bias": "blk.0.ffn_gate.bias" in shapes,
        "moe": _mixture(keys),
    }


def _mixture(keys: Keys) -> MoEConfig | None:
    """The mixture of experts; Mixtral's files have architecture `llama` with experts."""
    if not keys.get("expert_count"):
        return None
    experts, chosen = integer(keys, "expert_count"), integer(keys, "expert_used_count")
    return MoEConfig(experts=experts, experts_per_token=chosen)


def _qwen2(keys: Keys, shapes: Shapes) -> Fields:
    return {"attention_bias": "blk.0.attn_q.bias" in shapes, "output_bias": False}


def _qwen3(keys: Keys, shapes: Shapes) -> Fields:
    return {"head_norms": True}


def _qwen3moe(keys: Keys, shapes: Shapes) -> Fields:
    integer(keys, "expert_count")
    width = integer(keys, "expert_feed_forward_length")
    return {"head_norms": True, "moe": _mixture(keys), "feed_forward": width}


def _granite(keys: Keys, shapes: Shapes) -> Fields:
    return {
        "embedding_scale": shortest(number(keys, "embedding_scale", 1.0)),
        "residual_scale": shortest(number(keys, "residual_scale", 1.0)),
        "attention_scale": shortest(number(keys, "attention.scale")) if keys.get("attention.scale") else None,
        "logits_divisor": shortest(number(keys, "logit_scale", 1.0)),
    }


def _smollm3(keys: Keys, shapes: Shapes) -> Fields:
    """Every fourth layer has no rotary embedding; llama.cpp has no key for it."""
    return {"unrotated_layers": tuple(range(3, integer(keys, "block_count"), 4))}


def _phi3(keys: Keys, shapes: Shapes) -> Fields:
    window = keys.get("attention.sliding_window")
    return {"window": integer(keys, "attention.sliding_window") if window else None}


ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture(name="llama", keys=_EXPERTS, read=_llama, pairs=True),
        Architecture(
            name="granite",
            keys=frozenset({"embedding_scale", "residual_scale", "attention.scale", "logit_scale"}),
            read=_granite,
            pairs=True,
        ),
        Architecture(
            name="phi3",
            keys=frozenset({"attention.sliding_window", "rope.scaling.attn_factor"}),
            read=_phi3,
            partial=True,
        ),
        Architecture(name="qwen2", read=_qwen2),
        Architecture(name="qwen3", read=_qwen3),
        Architecture(name="qwen3moe", keys=_EXPERTS | {"expert_feed_forward_length"}, read=_qwen3moe),
        Architecture(name="smollm3", read=_smollm3, pairs=True),
    )
}
"""By `general.architecture`."""
