"""Experts on a GPU: two Pallas kernels, compiled by Triton, that multiply sorted rows by weights in place.

Rows (token, choice) are sorted by expert, and each expert's rows are cut into blocks of C rows or fewer
(MegaBlocks: Gale et al. 2022, arXiv:2211.15841). The first kernel computes the hidden values of SwiGLU
(Shazeer 2020, arXiv:2002.05202), the second one the outputs. A program takes one block and some columns. The
number of blocks has a bound that depends on the step's shape alone, so the host waits for nothing; programs
of unused blocks exit immediately. C depends on the shape alone too: a token's sums do not depend on how
others are routed.

Letters beside those of `model/config.py`: R rows, J blocks, C rows of a block; U rows of a kernel's input.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ...quantize import quantize_last
from ..block_experts import block_experts, sort_by_expert, sum_of_choices
from ..registry import ExpertWeights
from .triton_attention import is_addressable
from .triton_walk import FEWEST

MOST, MOST_F32 = 128, 32
"""Rows of a block: with more, a program's sums would not fit into its registers. Exact products of f32 are
made without tensor cores."""

LINE = 128
"""Bytes of a row of x, or of an int8 weight's output, in each iteration."""

_NAMES = ("gate", "up", "down")

Scaled = tuple[Any, Any]
"""Numbers and their f32 scales, or None: rows `[U, D]` and `[U]`; wide weights `[E, D, F]`; int8 ones
`[E, F, D]` and `[E, F]`."""


@dataclass(frozen=True)
class Tile:
    """What a program computes: for each weight `rows` x `outputs` sums, `inputs` terms in each iteration; and
    with what."""

    rows: int
    inputs: int
    outputs: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Blocks:
    """The blocks of a step, all i32.

    Attributes:
      expert_J: each one's expert. first_J: the place of its first row in `order_R`. length_J: how many rows;
        zero if it is not in use.
      order_R: the rows, sorted by expert.
    """

    expert_J: jax.Array
    first_J: jax.Array
    length_J: jax.Array
    order_R: jax.Array


def triton_experts(
    x_TD: jax.Array,
    expert_TX: jax.Array,
    weight_TX: jax.Array,
    experts: ExpertWeights,
    *,
    interpret: bool = False,
) -> jax.Array:
    """See `registry.ExpertsKernel`; int8 weights are `[E, outs, inputs]`, except in groups.

    Sums are f32, or int32 if the weights are int8; hidden values and outputs are rounded to x's type.

    Args:
      interpret: run the kernels' bodies as JAX operations, on any platform.
    """
    experts = _stacked(experts)
    if not fits(x_TD, experts):
        return block_experts(x_TD, expert_TX, weight_TX, _straight(experts))
    gate, up, down = (_weight(experts, name) for name in _NAMES)
    tokens, choices = expert_TX.shape
    rows = block_rows(tokens, choices, experts.count, gate[0].dtype.itemsize)
    blocks = cut(expert_TX, experts.count, rows)
    run = partial(_run, blocks=blocks, rows=rows, interpret=interpret)
    y_TXD = run(run(x_TD, gate, up), down).reshape(tokens, choices, -1)
    return sum_of_choices(y_TXD, expert_TX, weight_TX, experts.count).astype(x_TD.dtype)


def fits(x_TD: jax.Array, experts: ExpertWeights) -> bool:
    """Whether the kernels take these arrays: f32, bf16 or f16, the same for x and weights, or int8 weights
    that are not in groups, but no fp8, and all numbers of a weight within reach. D and F may have any size:
    what lies beyond them is masked."""
    if experts.grouped or experts.fp8:
        return False
    weights = [getattr(experts, name) for name in _NAMES]
    wide = x_TD.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    alike = experts.gate_scale is not None or weights[0].dtype == x_TD.dtype
    return wide and alike and all(map(is_addressable, weights))


def block_rows(tokens: int, choices: int, count: int, itemsize: int) -> int:
    """C, for a step's shape: twice as many rows as each expert gets if all get the same number, so that most
    experts need one block.

    Never many more than the number of tokens, because each token goes to an expert once at most.
    """
    share = pl.next_power_of_2(2 * tokens * choices // count)
    most = MOST_F32 if itemsize == 4 else MOST
    return max(FEWEST, min(most, share, pl.next_power_of_2(tokens)))


def tile_of(rows: int, itemsize: int, weights: int) -> Tile:
    """The tile for blocks of this many rows, and for one weight or two."""
    inputs = LINE // itemsize
    if itemsize == 4:
        return Tile(rows, inputs, 32, warps=4, stages=2)
    if rows < MOST:
        return Tile(rows, inputs, 64, warps=4, stages=4)
    return Tile(rows, inputs, 128 // weights, warps=8, stages=3)


def cut(expert_TX: jax.Array, count: int, size: int) -> Blocks:
    """Each expert's rows in blocks of `size`: as many as any routing can need."""
    order_R, size_E = sort_by_expert(expert_TX, count)
    rows = order_R.shape[0]
    most = (rows + min(rows, count) * (size - 1)) // size
    blocks_E = -(-size_E // size)
    end_E = jnp.cumsum(blocks_E)
    block_J = jnp.arange(most, dtype=jnp.int32)
    passed_J = (block_J[:, None] >= end_E[None, :]).sum(axis=1, dtype=jnp.int32)
    expert_J = jnp.minimum(passed_J, count - 1)
    skipped_J = (block_J - (end_E - blocks_E)[expert_J]) * size
    left_J = size_E[expert_J] - skipped_J
    length_J = jnp.where(passed_J < count, jnp.clip(left_J, 0, size), 0)
    first_J = (jnp.cumsum(size_E) - size_E)[expert_J] + skipped_J
    return Blocks(expert_J, first_J, length_J, order_R)


def _stacked(experts: ExpertWeights) -> ExpertWeights:
    """The same in stacks, which are copies if each expert was an array of its own."""
    if not isinstance(experts.gate, tuple):
        return experts
    return replace(experts, **{name: jnp.concatenate(getattr(experts, name)) for name in _NAMES})


def _weight(experts: ExpertWeights, name: str) -> Scaled:
    return getattr(experts, name), getattr(experts, f"{name}_scale")


def _straight(experts: ExpertWeights) -> ExpertWeights:
    """The same with int8 weights as the portable backend reads them: `[E, inputs, outs]`."""
    if experts.gate_scale is None or experts.grouped or experts.fp8:
        return experts
    return replace(experts, **{name: getattr(experts, name).swapaxes(1, 2) for name in _NAMES})


def _run(x_UD: jax.Array, *weights: Scaled, blocks: Blocks, rows: int, interpret: bool) -> jax.Array:
    """`[R, F]`, in x's type: each row times its expert's weight, or SwiGLU of its products with two weights.

    Row r of the output is computed from row r // (R / U) of x. Rows without an expert may hold any value.
    """
    w, scale_EF = weights[0]
    outputs, tile = w.shape[2 if scale_EF is None else 1], tile_of(rows, w.dtype.itemsize, len(weights))
    x = (x_UD, None) if scale_EF is None else quantize_last(x_UD)
    kind = "swiglu" if len(weights) == 2 else "down"
    return pl.pallas_call(
        partial(_kernel, tile=tile),
        out_shape=jax.ShapeDtypeStruct((blocks.order_R.shape[0], outputs), x_UD.dtype),
        grid=(pl.cdiv(outputs, tile.outputs), blocks.expert_J.shape[0]),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        name=f"experts_{kind}_{rows}x{tile.outputs}",
    )(blocks.expert_J, blocks.first_J, blocks.length_J, blocks.order_R, x, weights)


def _kernel(
    expert_ref: Any,
    first_ref: Any,
    length_ref: Any,
    order_ref: Any,
    x: Scaled,
    weights: tuple[Scaled, ...],
    out_ref: Any,
    *,
    tile: Tile,
) -> None:
    """One program: a block's rows times some columns of one weight or two.

    Programs of the same columns come one after another, so that the blocks of an expert read its weights at
    about the same time. Columns and terms beyond the arrays count as zero and are not stored.
    """
    part, block = pl.program_id(0), pl.program_id(1)
    rows, outputs = out_ref.shape

    @pl.when(length_ref[block] > 0)
    def compute() -> None:
        lane_C = lax.broadcasted_iota(jnp.int32, (tile.rows,), 0)
        live_C = lane_C < length_ref[block]
        row_C = triton.load(order_ref.at[first_ref[block] + lane_C], mask=live_C, other=rows)
        from_C = row_C // (rows // x[0].shape[0])
        column_F = part * tile.outputs + lax.broadcasted_iota(jnp.int32, (tile.outputs,), 0)
        parts = _products(x, weights, from_C, live_C, expert_ref[block], column_F, tile)
        y_CF = parts[0] if len(parts) == 1 else jax.nn.silu(parts[0]) * parts[1]
        live_CF = live_C[:, None] & (column_F < outputs)[None, :]
        triton.store(out_ref.at[row_C[:, None], column_F[None, :]], y_CF.astype(out_ref.dtype), mask=live_CF)


def _products(
    x: Scaled,
    weights: tuple[Scaled, ...],
    from_C: jax.Array,
    live_C: jax.Array,
    e: jax.Array,
    column_F: jax.Array,
    tile: Tile,
) -> list[jax.Array]:
    """Rows of x times columns of expert e's weights, f32 `[C, F]` for each weight."""
    x_ref, x_scale_ref = x
    width, kind = x_ref.shape[1], jnp.int32 if x_scale_ref is not None else jnp.float32

    def add(i: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        input_D = i * tile.inputs + lax.broadcasted_iota(jnp.int32, (tile.inputs,), 0)
        live_CD = live_C[:, None] & (input_D < width)[None, :]
        x_CD = triton.load(x_ref.at[from_C[:, None], input_D[None, :]], mask=live_CD, other=0)
        return tuple(
            sum_CF + _times(x_CD, w, e, input_D, column_F) for sum_CF, w in zip(sums, weights, strict=True)
        )

    zero_CF = jnp.zeros((tile.rows, tile.outputs), kind)
    sums = lax.fori_loop(0, pl.cdiv(width, tile.inputs), add, (zero_CF,) * len(weights))
    if x_scale_ref is None:
        return list(sums)
    scale_C = triton.load(x_scale_ref.at[from_C], mask=live_C, other=0.0)
    return [
        sum_CF.astype(jnp.float32) * scale_C[:, None] * _scales(scale_ref, e, column_F)
        for sum_CF, (_, scale_ref) in zip(sums, weights, strict=True)
    ]


def _times(x_CD: jax.Array, w: Scaled, e: jax.Array, input_D: jax.Array, column_F: jax.Array) -> jax.Array:
    """These terms of the sums: f32, exact for f32, or int32."""
    w_ref, scale_ref = w
    swapped = scale_ref is not None
    row, column = (column_F, input_D) if swapped else (input_D, column_F)
    inside = (row < w_ref.shape[1])[:, None] & (column < w_ref.shape[2])[None, :]
    values = triton.load(w_ref.at[e, row[:, None], column[None, :]], mask=inside, other=0)
    exact = lax.Precision.HIGHEST if x_CD.dtype == jnp.float32 else None
    return triton.dot(x_CD, values, trans_b=swapped, precision=exact)


def _scales(scale_ref: Any, e: jax.Array, column_F: jax.Array) -> jax.Array:
    """The scales of these columns, f32 `[1, F]`."""
    return triton.load(scale_ref.at[e, column_F], mask=column_F < scale_ref.shape[1], other=0.0)[None, :]
