"""A mixture of experts by the native kernels: an expert's panels are read in place, once for all of its rows.

A token's bits depend on its own row and the weights alone. All is computed in f32, whatever the type of x and
of the weights.
"""

import jax
import jax.numpy as jnp

from ..block_experts import block_experts
from ..panels import PANEL, QUAD
from ..registry import ExpertWeights
from .native_linear import WIDE


def native_experts(
    x_TD: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, experts: ExpertWeights
) -> jax.Array:
    """See `registry.ExpertsKernel`; the portable backend computes experts that are not in panels."""
    if isinstance(experts.gate, tuple) or experts.gate.ndim == 3:
        return block_experts(x_TD, expert_TX, weight_TX, experts)
    assert not isinstance(experts.up, tuple) and not isinstance(experts.down, tuple)
    panels = [experts.gate, experts.up, experts.down]
    scales = [experts.gate_scale, experts.up_scale, experts.down_scale]
    width, inner = x_TD.shape[1], experts.gate.shape[1] * PANEL
    for w, scale, inputs, outputs in zip(
        panels, scales, (width, width, inner), (inner, inner, width), strict=True
    ):
        if not _fits(w, scale, (experts.count, inputs, outputs)):
            raise ValueError(f"experts {w.dtype}{list(w.shape)}; expected panels {inputs} to {outputs}")
    result = jax.ShapeDtypeStruct(x_TD.shape, jnp.float32)
    call = jax.ffi.ffi_call("distaff_experts", result)
    operands = panels + [scale for scale in scales if scale is not None]
    return call(x_TD.astype(jnp.float32), expert_TX, weight_TX, *operands).astype(x_TD.dtype)


def _fits(w: jax.Array, scale_EF: jax.Array | None, sizes: tuple[int, int, int]) -> bool:
    """Whether these are panels of so many experts, inputs and outputs, and have their scales."""
    count, inputs, outputs = sizes
    if scale_EF is None:
        return w.shape == (count, outputs // PANEL, inputs, PANEL) and w.dtype in WIDE
    packed = (count, outputs // PANEL, inputs // QUAD, PANEL, QUAD)
    return w.shape == packed and w.dtype == jnp.uint8 and scale_EF.shape == (count, outputs)
