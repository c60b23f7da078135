"""Rows times a weight in groups, inside Pallas kernels for Triton: a tile is dequantised in registers.

Nothing is rounded but the weights, to the type of the rows, after a multiplication and an addition in f32. A
byte with two values is not taken apart into neighbouring inputs, because that would move values between
threads: its low halves are multiplied by the even inputs and its high halves by the odd ones, and the two
products are added up. So the rows come in as many parts as a byte has values.

Letters beside those of `model/config.py`: P parts; I = D / P inputs of a part, the lines of a weight; C rows,
L lines, G groups and F outputs of a tile; U rows of a kernel's input.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton

from ...parameters import GROUP

Stack = tuple[Any, Any, Any]
"""A stack of `quantize.GroupedWeight`, as arrays or as references: q `[E, I, F]`, scale and low
`[E, D / 32, F]`."""


def split_inputs(x_UD: jax.Array, weight: Stack) -> jax.Array:
    """The rows for this weight, `[P, U, I]`."""
    parts = _parts(weight)
    return x_UD.reshape(x_UD.shape[0], -1, parts).transpose(2, 0, 1)


def lines_of_group(weight: Stack) -> int:
    """The lines that a group of inputs has: the fewest of an iteration, and a power of two."""
    return GROUP // _parts(weight)


def add_up(
    x_ref: Any,
    weight: Stack,
    row_C: jax.Array,
    live_C: jax.Array,
    e: jax.Array | int,
    column_F: jax.Array,
    *,
    lines: int,
    steps: tuple[Any, Any],
) -> jax.Array:
    """Some rows of x times some columns of weight e, over some iterations of L lines each: f32 `[C, F]`.

    Lines and columns beyond the arrays, and rows that are not live, count as zero.

    Args:
      x_ref: see `split_inputs`. steps: the first iteration, and the one after the last.
    """
    parts, _, count = x_ref.shape

    def add(i: jax.Array, sum_CF: jax.Array) -> jax.Array:
        line_L = i * lines + lax.broadcasted_iota(jnp.int32, (lines,), 0)
        live_CL = live_C[:, None] & (line_L < count)[None, :]
        for part, w_LF in enumerate(_tile(weight, e, line_L, i, column_F, x_ref.dtype)):
            x_CL = triton.load(x_ref.at[part, row_C[:, None], line_L[None, :]], mask=live_CL, other=0)
            sum_CF += triton.dot(x_CL, w_LF, precision=_precision(x_ref.dtype))
        return sum_CF

    assert lines % (GROUP // parts) == 0
    zero_CF = jnp.zeros((row_C.shape[0], column_F.shape[0]), jnp.float32)
    return lax.fori_loop(*steps, add, zero_CF)


def _parts(weight: Stack) -> int:
    return 1 if weight[2] is None else 2


def _precision(dtype: jnp.dtype) -> lax.Precision | None:
    """Products of f32 are exact, not TF32."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _tile(
    weight: Stack, e: jax.Array | int, line_L: jax.Array, i: jax.Array, column_F: jax.Array, dtype: jnp.dtype
) -> list[jax.Array]:
    """These lines and columns of weight e, `[L, F]` for each part of the inputs."""
    q_ref, *halves = weight
    each = lines_of_group(weight)
    groups = line_L.shape[0] // each
    group_G = i * groups + lax.broadcasted_iota(jnp.int32, (groups,), 0)
    q_LF = _load(q_ref, e, line_L, column_F)
    halves = [_repeated(_load(ref, e, group_G, column_F), each) for ref in halves if ref is not None]
    return [_widened(values, *halves).astype(dtype) for values in _values(q_LF, _parts(weight))]


def _load(ref: Any, e: jax.Array | int, row: jax.Array, column: jax.Array) -> jax.Array:
    inside = (row < ref.shape[1])[:, None] & (column < ref.shape[2])[None, :]
    return triton.load(ref.at[e, row[:, None], column[None, :]], mask=inside, other=0)


def _repeated(half_GF: jax.Array, times: int) -> jax.Array:
    """A scale or a low for each line, f32."""
    groups, outputs = half_GF.shape
    each = jnp.broadcast_to(half_GF[:, None, :], (groups, times, outputs))
    return each.reshape(groups * times, outputs).astype(jnp.float32)


def _values(q_LF: jax.Array, parts: int) -> list[jax.Array]:
    return [q_LF] if parts == 1 else [q_LF & 15, q_LF >> 4]


def _widened(q_LF: jax.Array, scale_LF: jax.Array, low_LF: jax.Array | None = None) -> jax.Array:
    w_LF = q_LF.astype(jnp.float32) * scale_LF
    return w_LF if low_LF is None else w_LF + low_LF
