"""A mixture of experts by the native kernels: an expert's panels are read in place, once for all of its rows.

A token's bits depend on its own row and the weights alone. All is computed in f32, whatever the type of x and
of the weights; those of int8 and in groups round their inputs, as linear maps do.
"""

import jax
import jax.numpy as jnp

from ..block_experts import block_experts
from ..panels import PANEL, QUAD
from ..registry import ExpertWeights
from .native_linear import WIDE, fits_fp8, fits_groups


def native_experts(
    x_TD: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, experts: ExpertWeights
) -> jax.Array:
    """See `registry.ExpertsKernel`; the portable backend computes experts that are not in panels."""
    if isinstance(experts.gate, tuple) or experts.gate.ndim == 3:
        return block_experts(x_TD, expert_TX, weight_TX, experts)
    assert not isinstance(experts.up, tuple) and not isinstance(experts.down, tuple)
    width, inner = x_TD.shape[1], experts.gate.shape[1] * PANEL
    sizes = {"gate": (width, inner), "up": (width, inner), "down": (inner, width)}
    for name, (inputs, outputs) in sizes.items():
        if not _fits(experts, name, inputs, outputs):
            w = getattr(experts, name)
            raise ValueError(f"experts {w.dtype}{list(w.shape)}; expected panels {inputs} to {outputs}")
    result = jax.ShapeDtypeStruct(x_TD.shape, jnp.float32)
    call = jax.ffi.ffi_call("distaff_experts", result)
    parts = [getattr(experts, f"{name}{part}") for part in ("", "_scale", "_low") for name in sizes]
    operands = [part for part in parts if part is not None]
    return call(x_TD.astype(jnp.float32), expert_TX, weight_TX, *operands).astype(x_TD.dtype)


def _fits(experts: ExpertWeights, name: str, inputs: int, outputs: int) -> bool:
    """Whether one of the three is in panels of so many inputs and outputs, and has its scales."""
    w, scale, low = (getattr(experts, f"{name}{part}") for part in ("", "_scale", "_low"))
    stack = (experts.count, outputs // PANEL)
    if scale is None:
        return w.shape == (*stack, inputs, PANEL) and w.dtype in WIDE
    if w.ndim == 4:
        return w.shape[:2] == stack and fits_fp8(inputs, outputs, w, scale)
    if experts.grouped:
        return w.ndim == 6 and w.shape[:2] == stack and fits_groups(inputs, w, scale, low)
    packed = (*stack, inputs // QUAD, PANEL, QUAD)
    return w.shape == packed and w.dtype == jnp.uint8 and scale.shape == (experts.count, outputs)
