"""Experts on a GPU: two Pallas kernels, compiled by Triton, that multiply sorted rows by weights in place.

Rows (token, choice) are sorted by expert, and each expert's rows are cut into blocks of C rows or fewer
(MegaBlocks: Gale et al. 2022, arXiv:2211.15841). The first kernel computes the hidden values of SwiGLU
(Shazeer 2020, arXiv:2002.05202), the second one the outputs. A program takes one block and some columns. The
number of blocks has a bound that depends on the step's shape alone, so the host waits for nothing; programs
of unused blocks exit immediately. C depends on the shape alone too: a token's sums do not depend on how
others are routed.

Letters beside those of `model/config.py`: R rows, J blocks, C rows of a block; U rows of a kernel's input.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ..block_experts import block_experts, sort_by_expert, sum_of_choices
from ..fp8 import as_bytes
from ..registry import ExpertWeights
from . import triton_fp8, triton_groups, triton_products
from .triton_attention import is_addressable
from .triton_products import MOST, MOST_F32, Tile, Work
from .triton_walk import FEWEST

_NAMES = ("gate", "up", "down")


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

    Sums are f32, or int32 if the weights are int8. Hidden values, outputs and weights in groups are rounded
    to x's type; fp8 weights need no rounding.

    Args:
      interpret: run the kernels' bodies as JAX operations, on any platform.
    """
    experts = _stacked(experts)
    if not fits(x_TD, experts):
        return block_experts(x_TD, expert_TX, weight_TX, _straight(experts))
    gate, up, down = (_weight(experts, name) for name in _NAMES)
    tokens, choices = expert_TX.shape
    multiplied = x_TD if experts.grouped or experts.fp8 else gate[0]
    rows = block_rows(tokens, choices, experts.count, multiplied.dtype.itemsize)
    run = partial(
        _run, _work_of(experts), blocks=cut(expert_TX, experts.count, rows), rows=rows, interpret=interpret
    )
    parts = triton_groups.parts_of(down) if experts.grouped else 1
    y_TXD = run(run(x_TD, gate, up, parts=parts), down).reshape(tokens, choices, -1)
    return sum_of_choices(y_TXD, expert_TX, weight_TX, experts.count).astype(x_TD.dtype)


def fits(x_TD: jax.Array, experts: ExpertWeights) -> bool:
    """Whether the kernels take these arrays: f32, bf16 or f16, the same for x and weights, or quantised
    weights, and all numbers of a weight within reach. D and F may have any size: what lies beyond them is
    masked."""
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


def _weight(experts: ExpertWeights, name: str) -> tuple[Any, ...]:
    """The weight and its scales, and its lows if it is in groups; fp8 as bytes."""
    parts = ("", "_scale", "_low") if experts.grouped else ("", "_scale")
    w, *scales = (getattr(experts, f"{name}{part}") for part in parts)
    return as_bytes(w) if experts.fp8 else w, *scales


def _work_of(experts: ExpertWeights) -> Callable[..., Work]:
    """What makes the products with weights of this kind."""
    if experts.fp8:
        return triton_fp8.work
    return triton_groups.work if experts.grouped else triton_products.work


def _straight(experts: ExpertWeights) -> ExpertWeights:
    """The same with int8 weights as the portable backend reads them: `[E, inputs, outs]`."""
    if experts.gate_scale is None or experts.grouped or experts.fp8:
        return experts
    return replace(experts, **{name: getattr(experts, name).swapaxes(1, 2) for name in _NAMES})


def _run(
    work: Callable[..., Work],
    x: jax.Array,
    *weights: tuple[Any, ...],
    blocks: Blocks,
    rows: int,
    interpret: bool,
    parts: int = 1,
) -> jax.Array:
    """`[R, F]`, in x's type: each row times its expert's weight, or SwiGLU of its products with two weights.

    Row r of the output is computed from row r // (R / U) of x. Rows without an expert may hold any value.
    With two parts, the output is as `triton_groups.split_inputs` would make it; x may be so too.
    """
    todo, count = work(x, weights, rows), blocks.order_R.shape[0]
    tile, kind = todo.tile, "swiglu" if len(weights) == 2 else "down"
    y_PRI = pl.pallas_call(
        partial(_kernel, tile=tile, products=todo.products, shared=count // x.shape[-2]),
        out_shape=jax.ShapeDtypeStruct((parts, count, todo.outputs // parts), x.dtype),
        grid=(pl.cdiv(todo.outputs, tile.outputs), blocks.expert_J.shape[0]),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        name=f"experts_{kind}_{rows}x{tile.outputs}",
    )(blocks.expert_J, blocks.first_J, blocks.length_J, blocks.order_R, todo.x, weights)
    return y_PRI[0] if parts == 1 else y_PRI


def _kernel(
    expert_ref: Any,
    first_ref: Any,
    length_ref: Any,
    order_ref: Any,
    x: Any,
    weights: tuple[Any, ...],
    out_ref: Any,
    *,
    tile: Tile,
    products: Callable[..., list[jax.Array]],
    shared: int,
) -> None:
    """One program: a block's rows times some columns of one weight or two; as many output rows as `shared`
    have one row of x.

    Programs of the same columns come one after another, so that the blocks of an expert read its weights at
    about the same time. Columns and terms beyond the arrays count as zero and are not stored.
    """
    columns, block = pl.program_id(0), pl.program_id(1)
    parts, rows, lines = out_ref.shape

    @pl.when(length_ref[block] > 0)
    def compute() -> None:
        lane_C = lax.broadcasted_iota(jnp.int32, (tile.rows,), 0)
        live_C = lane_C < length_ref[block]
        row_C = triton.load(order_ref.at[first_ref[block] + lane_C], mask=live_C, other=rows)
        column_F = columns * tile.outputs + lax.broadcasted_iota(jnp.int32, (tile.outputs,), 0)
        found = products(x, weights, row_C // shared, live_C, expert_ref[block], column_F, tile)
        y_CF = found[0] if len(found) == 1 else jax.nn.silu(found[0]) * found[1]
        live_CF = live_C[:, None] & (column_F < parts * lines)[None, :]
        half, line = (0, column_F[None, :]) if parts == 1 else (column_F[None, :] & 1, column_F[None, :] >> 1)
        triton.store(out_ref.at[half, row_C[:, None], line], y_CF.astype(out_ref.dtype), mask=live_CF)
