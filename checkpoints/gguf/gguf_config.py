"""A GGUF's metadata (architecture `llama`) to `ModelConfig`, and rotary factors to their formula.

Keys are those of the GGUF specification, with the meaning of llama.cpp's `llama` graph. As in config.json,
every key of the architecture is known; an unknown key is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...model.config import ModelConfig, MoEConfig, RopeScaling
from ...model.errors import ConfigError
from ..values import brief, integer, number

_ROPE_FREQUENCIES = "rope_freqs.weight"

_KEYS = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size",
    "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "rope.scaling.type",
    "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length",
    "rope.scaling.finetuned", "tensor_data_layout", "expert_count", "expert_used_count",
}  # fmt: skip


def read_gguf_config(
    path: Path, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], factors: np.ndarray | None
) -> ModelConfig:
    """The model that the metadata describes.

    Args:
      shapes: of the file's tensors; they show the vocabulary, the tied head and the biases.
      factors: `rope_freqs.weight`, float32 `[H/2]`, which divides the rotary frequencies; None if absent.

    Raises:
      ConfigError: not architecture llama, an unknown key, or mathematics that is not implemented.
    """
    try:
        return _map(_llama_keys(metadata), metadata, shapes, factors)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _llama_keys(metadata: Mapping[str, Any]) -> dict[str, Any]:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ConfigError(f"general.architecture is {architecture!r}; expected 'llama'")
    keys = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    for key in keys.keys() - _KEYS:
        raise ConfigError(f"llama.{key} is {brief(keys[key])}; this key is unknown")
    return keys


def _map(
    keys: dict[str, Any],
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: np.ndarray | None,
) -> ModelConfig:
    heads, context = integer(keys, "attention.head_count"), integer(keys, "context_length")
    head_size = _head_size(keys, heads)
    theta = number(keys, "rope.freq_base", 10_000.0)
    scaling = _scaling(keys, context)
    if factors is not None:
        if scaling is not None:
            raise ConfigError(f"{_ROPE_FREQUENCIES} and rope.scaling.type are both set; expected one of them")
        scaling = llama3_scaling(factors, theta, head_size)
    return ModelConfig(
        vocabulary=_vocabulary(keys, metadata),
        layers=integer(keys, "block_count"),
        width=integer(keys, "embedding_length"),
        feed_forward=integer(keys, "feed_forward_length"),
        heads=heads,
        kv_heads=integer(keys, "attention.head_count_kv") if "attention.head_count_kv" in keys else heads,
        head_size=head_size,
        context=scaling.reach(context) if scaling else context,
        norm_epsilon=shortest(number(keys, "attention.layer_norm_rms_epsilon")),
        rope_theta=shortest(theta),
        rope=scaling,
        tied_head="output.weight" not in shapes,
        attention_bias="blk.0.attn_q.bias" in shapes,
        feed_forward_bias="blk.0.ffn_gate.bias" in shapes,
        moe=_mixture(keys),
    )


def _mixture(keys: dict[str, Any]) -> MoEConfig | None:
    """The mixture of experts; Mixtral's files have architecture `llama` with experts."""
    if not keys.get("expert_count"):
        return None
    experts, chosen = integer(keys, "expert_count"), integer(keys, "expert_used_count")
    return MoEConfig(experts=experts, experts_per_token=chosen)


def shortest(value: float) -> float:
    """The shortest decimal of this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _head_size(keys: dict[str, Any], heads: int) -> int:
    width = integer(keys, "embedding_length")
    if "attention.key_length" not in keys and width % heads:
        raise ConfigError(f"embedding_length is {width}; expected a multiple of head_count {heads}")
    head_size = integer(keys, "attention.key_length") if "attention.key_length" in keys else width // heads
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.get(key, head_size) != head_size:
            raise ConfigError(f"llama.{key} is {keys[key]!r}; expected the head size {head_size}")
    return head_size


def _vocabulary(keys: dict[str, Any], metadata: Mapping[str, Any]) -> int:
    tokens = len(metadata.get("tokenizer.ggml.tokens", ()))
    vocabulary = integer(keys, "vocab_size") if "vocab_size" in keys else tokens
    if tokens > vocabulary:
        raise ConfigError(f"llama.vocab_size is {vocabulary}; expected at least the tokenizer's {tokens}")
    return vocabulary


def _scaling(keys: dict[str, Any], context: int) -> RopeScaling | None:
    """llama.cpp's `linear` and `yarn`, the same as transformers' (arXiv:2309.00071, limits rounded
    outwards)."""
    kind = keys.get("rope.scaling.type", "linear" if "rope.scale_linear" in keys else "none")
    key = "rope.scaling.factor" if "rope.scaling.factor" in keys else "rope.scale_linear"
    if kind == "none" or (kind == "linear" and keys.get(key, 1.0) == 1.0):
        return None
    if kind not in ("linear", "yarn"):
        raise ConfigError(f"llama.rope.scaling.type is {kind!r}; expected none, linear or yarn")
    original = "rope.scaling.original_context_length"
    trained = integer(keys, original) if original in keys else context
    return RopeScaling(kind=kind, factor=number(keys, key), original_context=trained)


def llama3_scaling(factors: np.ndarray, theta: float, head_size: int) -> RopeScaling | None:
    """The `llama3` formula that has the divisors `factors`; None if all are 1.

    llama.cpp's converter keeps only the divisors. Every published Llama 3 has bands 1 and 4; the factor is
    the largest divisor, and the trained context is searched among the powers of two.

    Raises:
      ConfigError: no such formula gives these divisors to within float32's rounding.
    """
    if factors.shape != (head_size // 2,) or not np.all(np.isfinite(factors)):
        raise ConfigError(f"{_ROPE_FREQUENCIES} has shape {list(factors.shape)}; expected [{head_size // 2}]")
    if np.all(factors == 1.0):
        return None
    for power in range(9, 21):
        scaling = RopeScaling(kind="llama3", factor=shortest(float(factors.max())), original_context=2**power)
        if np.allclose(factors, llama3_divisors(scaling, theta, head_size), rtol=1e-5, atol=0):
            return scaling
    raise ConfigError(f"{_ROPE_FREQUENCIES} has divisors that are not Llama 3's; they are not supported")


def llama3_divisors(scaling: RopeScaling, theta: float, head_size: int) -> np.ndarray:
    """The divisor of each rotary frequency with `llama3` scaling, float64 `[H/2]` (Llama 3.1's code)."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_size, 2) / head_size)
    periods = scaling.original_context / wavelength
    low, high = scaling.low_frequency, scaling.high_frequency
    smooth = np.clip((periods - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / scaling.factor + smooth)
