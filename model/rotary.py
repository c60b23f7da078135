"""Rotary position embedding and its long-context variants.

Su et al. 2021 (arXiv:2104.09864), in the half-split form of Llama's published weights: dimension i is paired
with i + H/2. Frequencies are computed once, on the host, from the configuration; only with `dynamic`
scaling do they depend on the sequence, and then on `lengths_T`, so that a token's key does not depend on how
its prompt was split into chunks.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from .config import ModelConfig, RopeScaling


def rotary_tables(
    config: ModelConfig, positions_T: jax.Array, lengths_T: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for the rotation of queries and keys.

    Args:
      positions_T: i32 `[T]`, absolute positions.
      lengths_T: i32 `[T]`, the length of the sequence when the token entered: its prompt's length, or
        position + 1 for a generated token. Only `dynamic` scaling reads it.

    Returns:
      cos and sin, f32 `[T, H/2]`.
    """
    if config.rope is not None and follows_length(config):
        frequencies_TH, factor = _dynamic(config, config.rope, lengths_T), 1.0
    else:
        frequencies_H, factor = inverse_frequencies(config)
        frequencies_TH = jnp.asarray(frequencies_H)[None, :]
    angles_TH = positions_T.astype(jnp.float32)[:, None] * frequencies_TH
    return jnp.cos(angles_TH) * factor, jnp.sin(angles_TH) * factor


def follows_length(config: ModelConfig) -> bool:
    """Whether a token's key depends on how long its sequence's prompt is."""
    return config.rope is not None and config.rope.kind == "dynamic"


def rotate(x_TNH: jax.Array, cos_TH: jax.Array, sin_TH: jax.Array) -> jax.Array:
    """Rotates every head of x by its position's angle; computed in f32, returned in x's dtype."""
    a_TNH, b_TNH = jnp.split(x_TNH.astype(jnp.float32), 2, axis=-1)
    cos_TNH, sin_TNH = cos_TH[:, None, :], sin_TH[:, None, :]
    rotated_TNH = jnp.concatenate(
        [a_TNH * cos_TNH - b_TNH * sin_TNH, b_TNH * cos_TNH + a_TNH * sin_TNH], axis=-1
    )
    return rotated_TNH.astype(x_TNH.dtype)


def inverse_frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """Radians per position, f32 `[H/2]`, and the factor on cos and sin, for all kinds but `dynamic`."""
    rope = config.rope
    plain_H = _plain(config)
    if rope is None:
        return plain_H, 1.0
    if rope.kind == "linear":
        return plain_H / np.float32(rope.factor), 1.0
    if rope.kind == "llama3":
        return _llama3(plain_H, rope), 1.0
    if rope.kind == "yarn":
        return _yarn(plain_H, config, rope), _yarn_factor(rope)
    raise AssertionError(f"{rope.kind} frequencies depend on the sequence")


def _plain(config: ModelConfig) -> np.ndarray:
    exponents_H = np.arange(0, config.head_size, 2, dtype=np.float32) / np.float32(config.head_size)
    return (1.0 / np.float32(config.rope_theta) ** exponents_H).astype(np.float32)


def _dynamic(config: ModelConfig, rope: RopeScaling, lengths_T: jax.Array) -> jax.Array:
    """NTK-aware scaling: the base grows with the sequence, when it is longer than the trained context."""
    size, context = config.head_size, rope.original_context
    length_T = jnp.maximum(lengths_T, context).astype(jnp.float32)
    stretch_T = rope.factor * length_T / context - (rope.factor - 1.0)
    base_T = config.rope_theta * stretch_T ** (size / (size - 2))
    exponents_H = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    return 1.0 / base_T[:, None] ** exponents_H[None, :]


def _llama3(plain_H: np.ndarray, rope: RopeScaling) -> np.ndarray:
    """Long waves are stretched by the factor, short ones are kept, those in between are blended."""
    periods_H = rope.original_context * plain_H / (2 * math.pi)
    blend_H = (periods_H - rope.low_frequency) / (rope.high_frequency - rope.low_frequency)
    blend_H = np.clip(blend_H, 0.0, 1.0)
    return ((1 - blend_H) * plain_H / rope.factor + blend_H * plain_H).astype(np.float32)


def _yarn(plain_H: np.ndarray, config: ModelConfig, rope: RopeScaling) -> np.ndarray:
    """Blends kept and stretched frequencies along a ramp over dimensions (YaRN, section 3.2)."""
    size = config.head_size

    def dimension(rotations: float) -> float:
        span = math.log(rope.original_context / (rotations * 2 * math.pi))
        return size * span / (2 * math.log(config.rope_theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low or 0.001
    ramp_H = np.clip((np.arange(size // 2, dtype=np.float32) - low) / width, 0.0, 1.0)
    return (plain_H / rope.factor * ramp_H + plain_H * (1 - ramp_H)).astype(np.float32)


def _yarn_factor(rope: RopeScaling) -> float:
    """YaRN's factor on cos and sin (section 3.4), with DeepSeek's pair of mscales if both are set."""
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)
