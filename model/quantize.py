"""int8 weights: each output of a linear map has one scale, the largest magnitude of its column over 127.

Activations are quantised when they are used, with one scale per token (dynamic quantisation, as in LLM.int8()
without the outlier path: Dettmers et al. 2022, arXiv:2208.07339), so that the product is int8 x int8 ->
int32. TPUs, GPUs and CPUs compute that faster than anything wider. Norms, the router, biases and the
embedding keep their type; a head that is tied to the embedding becomes a separate weight.

Weights can also be quantised in groups of 32 inputs, each with a scale for each output, as GGUF's types Q4_0,
Q4_1 and Q8_0 are; activations then have a scale per token and group. This file has the portable form of such
weights, which checkpoints store; `kernels/panels.py` has the form that the native kernels read.

Or they are fp8 (e4m3: Micikevicius et al. 2022, arXiv:2209.05433) with a scale for each output or, as in
DeepSeek-V3 (arXiv:2412.19437), for each block of 128 inputs of an output. Activations are not rounded then:
an fp8 number is exact in every wider type.
"""

from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp

from .parameters import (
    BLOCK,
    FLOAT8,
    FP8,
    FP8_BLOCKS,
    GROUP,
    INT4,
    INT8,
    INT8_GROUPS,
    Kind,
    Quantization,
    is_grouped,
    is_linear,
    kind_of,
    quantization_by_parts,
)

_LARGEST = 127.0
_LARGEST_FP8 = 448.0

_HIGHEST = 15
_CUTS = (0.0, 0.06)
"""The parts of a group's range that are cut off at both ends in the first range of a series."""
_FITS = 3
"""The ranges that follow the first of a series."""

GroupedWeight = tuple[jax.Array, jax.Array, jax.Array | None]
"""A weight `[D, F]` in groups: q, scale and low.

4 bits: q u8 `[D/2, F]`, input 2i in the low half of byte i and input 2i + 1 in its high half; scale and low
f16 `[D/32, F]`; a weight is q * scale + low. 8 bits: q int8 `[D, F]`, scale f16 `[D/32, F]`, and low is None.
"""


def quantize_weight(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A weight `[..., inputs, outputs]` as int8 and its scales, f32 `[..., outputs]`."""
    return _rounded(w, axis=-2)


def quantize_fp8(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A weight `[..., inputs, outputs]` as fp8 and the scales of its outputs, f32 `[..., outputs]`."""
    w = w.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(w).max(-2, keepdims=True), 1e-30) * (1 / _LARGEST_FP8)
    return (w / scale).astype(FLOAT8), jnp.squeeze(scale, -2)


def quantize_fp8_blocks(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same with scales of blocks of 128 inputs, f32 `[..., inputs / 128, outputs]`."""
    inputs, outputs = w.shape[-2:]
    q, scale = quantize_fp8(w.reshape(*w.shape[:-2], inputs // BLOCK, BLOCK, outputs))
    return q.reshape(w.shape), scale


def widen_fp8(w: jax.Array, scale: jax.Array) -> jax.Array:
    """The weight, f32 `[..., D, F]`, of fp8 and its scales, `[..., F]` or `[..., D/128, F]`."""
    if scale.ndim < w.ndim:
        return w.astype(jnp.float32) * scale[..., None, :]
    return w.astype(jnp.float32) * jnp.repeat(scale, BLOCK, axis=-2)


def quantize_last(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Activations `[…, D]`, or keys and values `[…, H]`, as int8 and their scales, f32 `[…]`."""
    return _rounded(x, axis=-1)


def _rounded(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis, keepdims=True), 1e-30) / _LARGEST
    return jnp.round(x / scale).astype(jnp.int8), jnp.squeeze(scale, axis)


@jax.jit
def quantize_groups4(w: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights `[..., D, F]` in groups of 4 bits: u8 `[..., D/2, F]`, scale and low f16 `[..., D/32, F]`.

    As GGUF's Q4_1, but weights are rounded with the f16 scale and low that are stored, and these are the ones
    with the smallest squared error among a few.
    """
    grouped = _in_groups(w)
    least = grouped.min(-2).astype(jnp.float16)
    best = (jnp.full(least.shape, jnp.inf), least, least)
    for scale, low in _ranges(grouped):
        error = jnp.square(_widen(_nibbles(grouped, scale, low), scale, low) - grouped).sum(-2)
        better, tried = error < best[0], (error, scale, low)
        best = tuple(jnp.where(better, new, old) for new, old in zip(tried, best, strict=True))
    _, scale, low = best
    q = _nibbles(grouped, scale, low).reshape(w.shape)
    return join_nibbles(q), scale, low


def _ranges(grouped: jax.Array) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The scales and lows that are tried. After the first of a series, each is the least squares fit to the
    values that were rounded with the one before it (Lloyd's method)."""
    least, most = grouped.min(-2), grouped.max(-2)
    for cut in _CUTS:
        low = (least + cut * (most - least)).astype(jnp.float16)
        scale = ((1 - 2 * cut) / _HIGHEST * (most - least)).astype(jnp.float16)
        yield scale, low
        for _ in range(_FITS):
            scale, low = _fitted(grouped, _nibbles(grouped, scale, low))
            yield scale, low


def _fitted(grouped: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The scale and low with which rounded values are closest to a group's weights."""
    wide = q.astype(jnp.float32)
    mean = wide.mean(-2)
    away = wide - mean[..., None, :]
    scale = (away * grouped).sum(-2) / jnp.maximum(jnp.square(away).sum(-2), 1e-30)
    scale = scale.astype(jnp.float16)
    return scale, (grouped.mean(-2) - scale.astype(jnp.float32) * mean).astype(jnp.float16)


def quantize_groups8(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights `[..., D, F]` in groups of 8 bits, as GGUF's Q8_0: int8 of the same shape, scale f16
    `[..., D/32, F]`."""
    grouped = _in_groups(w)
    scale = (jnp.abs(grouped).max(-2) / _LARGEST).astype(jnp.float16)
    q = jnp.round(grouped / _divisor(scale)).clip(-_LARGEST, _LARGEST)
    return q.reshape(w.shape).astype(jnp.int8), scale


def dequantize_groups(w: jax.Array, scale: jax.Array, low: jax.Array | None) -> jax.Array:
    """The weight, f32 `[..., D, F]`, of its portable form."""
    q = w if low is None else split_nibbles(w)
    return _widen(_in_groups(q), scale, low).reshape(q.shape)


def quantize_groups_of_activations(x_TD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Activations as int8 `[T, D]` and their scales, f32 `[T, D/32]`; 32 must divide D.

    The native kernels round in the same way: with reciprocals, which XLA uses anyway for some shapes.
    """
    x_TG32 = x_TD.astype(jnp.float32).reshape(len(x_TD), -1, GROUP)
    scale_TG = jnp.maximum(jnp.abs(x_TG32).max(-1), 1e-30) * (1 / _LARGEST)
    q_TG32 = jnp.round(x_TG32 * (1 / scale_TG)[:, :, None]).astype(jnp.int8)
    return q_TG32.reshape(x_TD.shape), scale_TG


def split_nibbles(w: jax.Array) -> jax.Array:
    """The values u8 `[..., D, F]` of bytes `[..., D/2, F]`."""
    pairs = jnp.stack([w & _HIGHEST, w >> 4], axis=-2)
    return pairs.reshape(*w.shape[:-2], 2 * w.shape[-2], w.shape[-1])


def join_nibbles(q: jax.Array) -> jax.Array:
    """The bytes u8 `[..., D/2, F]` of values `[..., D, F]` up to 15."""
    return q[..., 0::2, :] | q[..., 1::2, :] << 4


def _in_groups(w: jax.Array) -> jax.Array:
    """f32 `[..., D/32, 32, F]`."""
    inputs, outputs = w.shape[-2:]
    return w.astype(jnp.float32).reshape(*w.shape[:-2], inputs // GROUP, GROUP, outputs)


def _nibbles(grouped: jax.Array, scale: jax.Array, low: jax.Array) -> jax.Array:
    offset = grouped - low.astype(jnp.float32)[..., None, :]
    return jnp.round(offset / _divisor(scale)).clip(0, _HIGHEST).astype(jnp.uint8)


def _divisor(scale: jax.Array) -> jax.Array:
    """If a group's scale rounds to zero, its weights become zero."""
    wide = scale.astype(jnp.float32)[..., None, :]
    return jnp.where(wide == 0, jnp.inf, wide)


def _widen(q: jax.Array, scale: jax.Array, low: jax.Array | None) -> jax.Array:
    values = q.astype(jnp.float32) * scale.astype(jnp.float32)[..., None, :]
    return values if low is None else values + low.astype(jnp.float32)[..., None, :]


def quantization_of(parameters: Mapping[str, jax.Array]) -> Quantization | None:
    """How the linear weights of these parameters are quantised."""
    parts = {name: (values.dtype.name, values.shape) for name, values in parameters.items()}
    return quantization_by_parts(parts)


def quantize(parameters: Mapping[str, jax.Array], quantization: Quantization = INT8) -> dict[str, jax.Array]:
    """A model's parameters with its linear weights quantised, each followed by its scales."""
    quantized: dict[str, jax.Array] = {}
    wide, head = dict(parameters), kind_of("head", quantization)
    if "head" not in parameters and head:
        wide["head"] = parameters["embed"].T
        if is_grouped(head):
            del wide["embed"]
    for name, weight in wide.items():
        kind = kind_of(name, quantization) if is_linear(name) else None
        quantized |= quantize_linear(name, weight, kind) if kind else {name: weight}
    return quantized


def quantize_linear(name: str, w: jax.Array, kind: Kind) -> dict[str, jax.Array]:
    """The parameters of a quantised linear weight, by name: `parameters.parameter_shapes` lists them."""
    parts = _ROUNDED[kind](w)
    return dict(zip((name, f"{name}_scale", f"{name}_low"), parts, strict=False))


_ROUNDED: dict[Kind, Callable[[jax.Array], tuple[jax.Array, ...]]] = {
    INT8: quantize_weight,
    INT4: quantize_groups4,
    INT8_GROUPS: quantize_groups8,
    FP8: quantize_fp8,
    FP8_BLOCKS: quantize_fp8_blocks,
}
