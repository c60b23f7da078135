"""int8 weights: each output of a linear map has one scale, the largest magnitude of its column over 127.

Activations are quantised when they are used, with one scale per token (dynamic quantisation, as in LLM.int8()
without the outlier path: Dettmers et al. 2022, arXiv:2208.07339), so that the product is int8 x int8 ->
int32. TPUs, GPUs and CPUs compute that faster than anything wider. Norms, the router, biases and the
embedding keep their type; a head that is tied to the embedding becomes a separate weight.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from .parameters import is_linear

_LARGEST = 127.0


def quantize_weight(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A weight `[..., inputs, outputs]` as int8 and its scales, f32 `[..., outputs]`."""
    return _rounded(w, axis=-2)


def quantize_last(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Activations `[…, D]`, or keys and values `[…, H]`, as int8 and their scales, f32 `[…]`."""
    return _rounded(x, axis=-1)


def _rounded(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis, keepdims=True), 1e-30) / _LARGEST
    return jnp.round(x / scale).astype(jnp.int8), jnp.squeeze(scale, axis)


def is_int8(parameters: Mapping[str, jax.Array]) -> bool:
    """Whether linear weights are int8."""
    return "head_scale" in parameters


def quantize(parameters: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A model's parameters with every linear weight as int8, followed by its `_scale`."""
    quantized: dict[str, jax.Array] = {}
    tied = {} if "head" in parameters else {"head": parameters["embed"].T}
    for name, weight in (parameters | tied).items():
        if is_linear(name):
            quantized[name], quantized[f"{name}_scale"] = quantize_weight(weight)
        else:
            quantized[name] = weight
    return quantized
