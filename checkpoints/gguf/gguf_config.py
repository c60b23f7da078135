"""A GGUF's metadata to `ModelConfig`, and rotary factors to their formula.

Keys are those of the GGUF specification, with the meaning of llama.cpp's graphs; `gguf_architectures` has
what architectures differ in. As in config.json, every key of the architecture is known; an unknown key is
refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...model.config import ModelConfig, RopeScaling
from ...model.errors import ConfigError
from ..values import brief, integer, number, shortest
from .gguf_architectures import ARCHITECTURES, Architecture

_ROPE_FREQUENCIES = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = (_ROPE_FREQUENCIES, _LONG, _SHORT)
"""Tensors that belong to the configuration: they divide the rotary frequencies."""

_KEYS = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size",
    "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "rope.scaling.type",
    "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length",
    "rope.scaling.finetuned", "tensor_data_layout",
}  # fmt: skip


def read_gguf_config(
    path: Path,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, np.ndarray],
) -> ModelConfig:
    """The model that the metadata describes.

    Args:
      shapes: of the file's tensors; they show the vocabulary, the tied head and the biases.
      factors: those of `FACTORS` that the file has, float32 `[R/2]`.

    Raises:
      ConfigError: an unknown architecture or key, or mathematics that is not implemented.
    """
    try:
        architecture = architecture_of(metadata)
        keys = _own_keys(metadata, architecture)
        return _map(keys, architecture, metadata, shapes, factors)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def architecture_of(metadata: Mapping[str, Any]) -> Architecture:
    """The file's architecture.

    Raises:
      ConfigError: it is unknown.
    """
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ConfigError(f"general.architecture is {name!r}; expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def _own_keys(metadata: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    name = architecture.name
    keys = {k.removeprefix(f"{name}."): value for k, value in metadata.items() if k.startswith(f"{name}.")}
    for key in keys.keys() - _KEYS - architecture.keys:
        raise ConfigError(f"{name}.{key} is {brief(keys[key])}; this key is unknown")
    return keys


def _map(
    keys: dict[str, Any],
    architecture: Architecture,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, np.ndarray],
) -> ModelConfig:
    heads, context = integer(keys, "attention.head_count"), integer(keys, "context_length")
    head_size = _head_size(keys, heads, architecture)
    rotated = integer(keys, "rope.dimension_count") if "rope.dimension_count" in keys else head_size
    theta = number(keys, "rope.freq_base", 10_000.0)
    scaling = _scaling(keys, architecture, theta, head_size, factors)
    fields = architecture.read(keys, shapes)
    if "feed_forward" not in fields:
        fields["feed_forward"] = integer(keys, "feed_forward_length")
    return ModelConfig(
        vocabulary=_vocabulary(keys, metadata, architecture),
        layers=integer(keys, "block_count"),
        width=integer(keys, "embedding_length"),
        heads=heads,
        kv_heads=integer(keys, "attention.head_count_kv") if "attention.head_count_kv" in keys else heads,
        head_size=head_size,
        context=scaling.reach(context) if scaling else context,
        norm_epsilon=shortest(number(keys, "attention.layer_norm_rms_epsilon")),
        rope_theta=shortest(theta),
        rope=scaling,
        rotary_size=None if rotated == head_size else rotated,
        tied_head="output.weight" not in shapes,
        **fields,
    )


def _head_size(keys: dict[str, Any], heads: int, architecture: Architecture) -> int:
    width = integer(keys, "embedding_length")
    if "attention.key_length" not in keys and width % heads:
        raise ConfigError(f"embedding_length is {width}; expected a multiple of head_count {heads}")
    head_size = integer(keys, "attention.key_length") if "attention.key_length" in keys else width // heads
    same = (
        ("attention.value_length",)
        if architecture.partial
        else ("attention.value_length", "rope.dimension_count")
    )
    for key in same:
        if keys.get(key, head_size) != head_size:
            raise ConfigError(
                f"{architecture.name}.{key} is {keys[key]!r}; expected the head size {head_size}"
            )
    return head_size


def _vocabulary(keys: dict[str, Any], metadata: Mapping[str, Any], architecture: Architecture) -> int:
    tokens = len(metadata.get("tokenizer.ggml.tokens", ()))
    vocabulary = integer(keys, "vocab_size") if "vocab_size" in keys else tokens
    if tokens > vocabulary:
        name = architecture.name
        raise ConfigError(f"{name}.vocab_size is {vocabulary}; expected at least the tokenizer's {tokens}")
    return vocabulary


def _scaling(
    keys: dict[str, Any],
    architecture: Architecture,
    theta: float,
    head_size: int,
    factors: Mapping[str, np.ndarray],
) -> RopeScaling | None:
    context = integer(keys, "context_length")
    if _LONG in factors or _SHORT in factors:
        return _longrope(keys, context, factors)
    scaling = _stated_scaling(keys, context, architecture)
    if _ROPE_FREQUENCIES not in factors:
        return scaling
    if scaling is not None:
        raise ConfigError(f"{_ROPE_FREQUENCIES} and rope.scaling.type are both set; expected one of them")
    return llama3_scaling(factors[_ROPE_FREQUENCIES], theta, head_size)


def _longrope(keys: dict[str, Any], context: int, factors: Mapping[str, np.ndarray]) -> RopeScaling:
    """Phi's; llama.cpp takes the long factors for all sequences of a long context, we do for long ones."""
    if not {_LONG, _SHORT} <= factors.keys():
        raise ConfigError(f"one of {_LONG} and {_SHORT} is missing; expected both")
    original = integer(keys, "rope.scaling.original_context_length")
    stated = "rope.scaling.attn_factor" in keys
    return RopeScaling(
        kind="longrope",
        factor=context / original,
        original_context=original,
        short_factors=tuple(map(shortest, factors[_SHORT].tolist())),
        long_factors=tuple(map(shortest, factors[_LONG].tolist())),
        attention_factor=shortest(number(keys, "rope.scaling.attn_factor")) if stated else None,
    )


def _stated_scaling(keys: dict[str, Any], context: int, architecture: Architecture) -> RopeScaling | None:
    """llama.cpp's `linear` and `yarn`, the same as transformers' (arXiv:2309.00071, limits rounded
    outwards)."""
    kind = keys.get("rope.scaling.type", "linear" if "rope.scale_linear" in keys else "none")
    key = "rope.scaling.factor" if "rope.scaling.factor" in keys else "rope.scale_linear"
    if kind == "none" or (kind == "linear" and keys.get(key, 1.0) == 1.0):
        return None
    if kind not in ("linear", "yarn"):
        raise ConfigError(f"{architecture.name}.rope.scaling.type is {kind!r}; expected none, linear or yarn")
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
