"""Rotary position embedding and its long-context variants.

Su et al. 2021 (arXiv:2104.09864), in the half-split form of Llama's published weights: of the R dimensions
that are rotated (often all H), dimension i is paired with i + R/2. Frequencies are computed once, on the
host, from the configuration; only with `dynamic` and `longrope` scaling do they depend on the sequence, and
then on `lengths_T`, so that a token's key does not depend on how its prompt was split into chunks.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .config import ModelConfig, RopeScaling


class Rotary(NamedTuple):
    """How the queries and keys of a step's tokens are rotated.

    Attributes:
      cos_TR, sin_TR: f32 `[T, R/2]`.
      growth_T: f32 `[T]`, the factors of queries; None: 1.
    """

    cos_TR: jax.Array
    sin_TR: jax.Array
    growth_T: jax.Array | None = None


def rotary_tables(config: ModelConfig, positions_T: jax.Array, lengths_T: jax.Array) -> Rotary:
    """The rotation of every token of a step.

    Args:
      positions_T: i32 `[T]`, absolute positions.
      lengths_T: i32 `[T]`, the length of the sequence when the token entered: its prompt's length, or
        position + 1 for a generated token. Only `dynamic` and `longrope` scaling read it.
    """
    rope = config.rope
    if rope is not None and rope.kind == "dynamic":
        frequencies_TR, factor = _dynamic(config, rope, lengths_T), 1.0
    elif rope is not None and rope.kind == "longrope":
        frequencies_TR, factor = _longrope(config, rope, lengths_T)
    else:
        frequencies_R, factor = inverse_frequencies(config)
        frequencies_TR = jnp.asarray(frequencies_R)[None, :]
    angles_TR = positions_T.astype(jnp.float32)[:, None] * frequencies_TR
    return Rotary(jnp.cos(angles_TR) * factor, jnp.sin(angles_TR) * factor, _growth(config, positions_T))


def _growth(config: ModelConfig, positions_T: jax.Array) -> jax.Array | None:
    """The factors of queries, from a table: XLA's logarithm of one number may differ from that of several."""
    rope = config.rope
    if rope is None or rope.query_growth is None:
        return None
    periods = np.arange(config.context // rope.original_context + 1, dtype=np.float32)
    growth = jnp.asarray(1 + np.float32(rope.query_growth) * np.log1p(periods))
    return growth[jnp.maximum(positions_T, 0) // rope.original_context]


def follows_length(config: ModelConfig) -> bool:
    """Whether a token's key depends on how long its sequence's prompt is, for every length."""
    return config.rope is not None and config.rope.kind == "dynamic"


def is_long(config: ModelConfig, prompt: int) -> bool:
    """Whether a prompt of this many tokens has other keys than the shorter ones: with `longrope`."""
    rope = config.rope
    return rope is not None and rope.kind == "longrope" and prompt > rope.original_context


def rotate(x_TNH: jax.Array, rotary: Rotary) -> jax.Array:
    """Rotates every head of x by its position's angle; computed in f32, returned in x's dtype."""
    rotated = 2 * rotary.cos_TR.shape[1]
    if rotated < x_TNH.shape[2]:
        return jnp.concatenate([rotate(x_TNH[:, :, :rotated], rotary), x_TNH[:, :, rotated:]], axis=-1)
    a_TNR, b_TNR = jnp.split(x_TNH.astype(jnp.float32), 2, axis=-1)
    cos_TNR, sin_TNR = rotary.cos_TR[:, None, :], rotary.sin_TR[:, None, :]
    rotated_TNR = jnp.concatenate(
        [a_TNR * cos_TNR - b_TNR * sin_TNR, b_TNR * cos_TNR + a_TNR * sin_TNR], axis=-1
    )
    return rotated_TNR.astype(x_TNH.dtype)


def inverse_frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """Radians per position, f32 `[R/2]`, and the factor on cos and sin, of the kinds that do not depend on
    the sequence."""
    rope = config.rope
    plain_R = _plain(config)
    if rope is None:
        return plain_R, 1.0
    if rope.kind == "linear":
        return plain_R / np.float32(rope.factor), 1.0
    if rope.kind == "llama3":
        return _llama3(plain_R, rope), 1.0
    if rope.kind == "yarn":
        return _yarn(plain_R, config, rope), _yarn_factor(rope)
    raise AssertionError(f"{rope.kind} frequencies depend on the sequence")


def _plain(config: ModelConfig) -> np.ndarray:
    exponents_R = np.arange(0, config.rotated, 2, dtype=np.float32) / np.float32(config.rotated)
    return (1.0 / np.float32(config.rope_theta) ** exponents_R).astype(np.float32)


def _dynamic(config: ModelConfig, rope: RopeScaling, lengths_T: jax.Array) -> jax.Array:
    """NTK-aware scaling: the base grows with the sequence, when it is longer than the trained context."""
    size, context = config.rotated, rope.original_context
    length_T = jnp.maximum(lengths_T, context).astype(jnp.float32)
    stretch_T = rope.factor * length_T / context - (rope.factor - 1.0)
    base_T = config.rope_theta * stretch_T ** (size / (size - 2))
    exponents_R = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    return 1.0 / base_T[:, None] ** exponents_R[None, :]


def _longrope(config: ModelConfig, rope: RopeScaling, lengths_T: jax.Array) -> tuple[jax.Array, float]:
    """LongRoPE: each frequency is divided by its factor, of two sets: for trained lengths and for longer
    ones."""
    plain_R = _plain(config)
    short_R = plain_R / np.asarray(rope.short_factors, np.float32)
    long_R = plain_R / np.asarray(rope.long_factors, np.float32)
    long_T1 = (lengths_T > rope.original_context)[:, None]
    factor = rope.attention_factor
    if factor is None:
        stretch = math.log(rope.factor) / math.log(rope.original_context)
        factor = 1.0 if rope.factor <= 1 else math.sqrt(1 + stretch)
    return jnp.where(long_T1, jnp.asarray(long_R)[None, :], jnp.asarray(short_R)[None, :]), factor


def _llama3(plain_R: np.ndarray, rope: RopeScaling) -> np.ndarray:
    """Long waves are stretched by the factor, short ones are kept, those in between are blended."""
    periods_R = rope.original_context * plain_R / (2 * math.pi)
    blend_R = (periods_R - rope.low_frequency) / (rope.high_frequency - rope.low_frequency)
    blend_R = np.clip(blend_R, 0.0, 1.0)
    return ((1 - blend_R) * plain_R / rope.factor + blend_R * plain_R).astype(np.float32)


def _yarn(plain_R: np.ndarray, config: ModelConfig, rope: RopeScaling) -> np.ndarray:
    """Blends kept and stretched frequencies along a ramp over dimensions (YaRN, section 3.2)."""
    size = config.rotated

    def dimension(rotations: float) -> float:
        span = math.log(rope.original_context / (rotations * 2 * math.pi))
        return size * span / (2 * math.log(config.rope_theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low or 0.001
    ramp_R = np.clip((np.arange(size // 2, dtype=np.float32) - low) / width, 0.0, 1.0)
    return (plain_R / rope.factor * ramp_R + plain_R * (1 - ramp_R)).astype(np.float32)


def _yarn_factor(rope: RopeScaling) -> float:
    """YaRN's factor on cos and sin (section 3.4), with DeepSeek's pair of mscales if both are set."""
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)
