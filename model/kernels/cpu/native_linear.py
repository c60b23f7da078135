"""Linear maps by the native kernels: weights in panels are read once per step, whatever the number of rows.

A row's products are added in the same order in any company, so its bits depend on nothing but the row and the
weights. Rows that are padding are not computed.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ...parameters import BLOCK, GROUP
from ...quantize import GroupedWeight
from .. import linear as portable
from ..fp8 import Fp8Weight, fp8_plain
from ..panels import PANEL, QUAD

WIDE = (jnp.float32, jnp.bfloat16)


def linear(x_TD: jax.Array, *weights: jax.Array, rows: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """The products with weights in panels of f32 or bf16 (see `panels.py`); portable ones with others."""
    packed = [w for w in weights if w.ndim == 3]
    for w in packed:
        _check(w.shape[1:] == (x_TD.shape[1], PANEL) and w.dtype in WIDE, x_TD, w)
    ys = iter(_call("distaff_linear", x_TD, rows, packed, [len(w) * PANEL for w in packed]))
    return tuple(next(ys) if w.ndim == 3 else portable.split_k(x_TD, w)[0] for w in weights)


def int8_linear(
    x_TD: jax.Array, *weights: portable.Int8Weight, rows: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """The products with weights in u8 panels and their scales; portable ones with other weights."""
    packed = [(w, scale_F) for w, scale_F in weights if w.ndim == 4]
    quads = -(-x_TD.shape[1] // QUAD)
    for w, scale_F in packed:
        right = w.shape[1:] == (quads, PANEL, QUAD) and w.dtype == jnp.uint8
        _check(right and scale_F.shape == (len(w) * PANEL,), x_TD, w)
    operands = [operand for pair in packed for operand in pair]
    ys = iter(_call("distaff_int8_linear", x_TD, rows, operands, [len(w) * PANEL for w, _ in packed]))
    return tuple(next(ys) if w[0].ndim == 4 else portable.int8_padded(x_TD, w)[0] for w in weights)


def fp8_linear(x_TD: jax.Array, *weights: Fp8Weight, rows: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """The products with fp8 weights in panels and their scales; portable ones with other weights."""
    packed = [(w, scale) for w, scale in weights if w.ndim == 3]
    for w, scale in packed:
        _check(fits_fp8(x_TD.shape[1], len(w) * PANEL, w, scale), x_TD, w)
    operands = [operand for pair in packed for operand in pair]
    ys = iter(_call("distaff_fp8_linear", x_TD, rows, operands, [len(w) * PANEL for w, _ in packed]))
    return tuple(next(ys) if w[0].ndim == 3 else fp8_plain(x_TD, w)[0] for w in weights)


def fits_fp8(inputs: int, outputs: int, w: jax.Array, scale: jax.Array) -> bool:
    """Whether fp8 panels, stacked or not, are of this width, and their scales belong to them."""
    *stack, panels, depth, _ = w.shape
    belong = scale.shape in ((*stack, outputs), (*stack, panels, inputs // BLOCK, PANEL))
    shape = (*stack, outputs // PANEL, inputs, PANEL)
    return belong and depth == inputs and w.shape == shape and w.dtype == jnp.uint8


def grouped_linear(
    x_TD: jax.Array, *weights: GroupedWeight, rows: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """The products with weights in panels of groups; portable ones with other weights."""
    packed = [weight for weight in weights if weight[0].ndim == 5]
    for weight in packed:
        _check(fits_groups(x_TD.shape[1], *weight), x_TD, weight[0])
    operands = [operand for weight in packed for operand in weight if operand is not None]
    sizes = [len(w) * PANEL for w, *_ in packed]
    ys = iter(_call("distaff_grouped_linear", x_TD, rows, operands, sizes))
    return tuple(next(ys) if w[0].ndim == 5 else portable.grouped_plain(x_TD, w)[0] for w in weights)


def fits_groups(inputs: int, w: jax.Array, scale: jax.Array, low: jax.Array | None) -> bool:
    """Whether panels of groups, stacked or not, are of this width, and their scales belong to them."""
    loads = GROUP // QUAD if low is None else GROUP // QUAD // 2
    halves = [scale] if low is None else [scale, low]
    belong = all(h.shape == (*w.shape[:-3], PANEL) and h.dtype == jnp.float16 for h in halves)
    shape = (inputs // GROUP, loads, PANEL, QUAD)
    return belong and inputs % GROUP == 0 and w.shape[-4:] == shape and w.dtype == jnp.uint8


def _call(
    target: str,
    x_TD: jax.Array,
    rows: jax.Array | None,
    operands: Sequence[jax.Array],
    outputs: Sequence[int],
) -> tuple[jax.Array, ...]:
    if not operands:
        return ()
    results = [jax.ShapeDtypeStruct((x_TD.shape[0], size), jnp.float32) for size in outputs]
    used = jnp.int32(x_TD.shape[0]) if rows is None else rows
    return tuple(jax.ffi.ffi_call(target, results)(x_TD.astype(jnp.float32), used, *operands))


def _check(right: bool, x_TD: jax.Array, w: jax.Array) -> None:
    if not right:
        raise ValueError(
            f"panels {w.dtype}{list(w.shape)} for x {list(x_TD.shape)}; expected panels of its width"
        )
