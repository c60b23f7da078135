"""Draws on a GPU: the whole draw of a row in one Pallas kernel, compiled by Triton.

`draw.py` sorts every row for its thresholds. Here a program searches the thresholds of one row bit by bit:
of numbers that are not negative, the larger one has the larger bits, so 30 bits determine a weight from 0 to
1, and a pass over the row decides on two. So the threshold is the weight of an id, as after a sort. A row
that does not draw reads nothing, one without top-k and top-p searches nothing, and the host never waits.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ..draw import DrawSettings, arrival_times

CHUNK = 4096
"""Ids that a program reads at once."""

_WARPS = 8
_BITS = 30
"""Bits of a number from 0 to 1: those of 1.0 are below 2^30."""


def draw(logits_BV: jax.Array, settings: DrawSettings, *, interpret: bool = False) -> jax.Array:
    """See `registry.DrawKernel`.

    Args:
      interpret: run the kernel's body as JAX operations, on any platform.
    """
    rows, size = logits_BV.shape
    return pl.pallas_call(
        partial(_kernel, size=size),
        out_shape=jax.ShapeDtypeStruct((rows,), jnp.int32),
        grid=(rows,),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=2),
        name="draw",
    )(logits_BV, *settings)


def _kernel(
    logits_ref: Any,
    temperature_ref: Any,
    top_k_ref: Any,
    top_p_ref: Any,
    min_p_ref: Any,
    key_ref: Any,
    id_ref: Any,
    *,
    size: int,
) -> None:
    """One program: a row."""
    row = pl.program_id(0)
    temperature, top_k, top_p = temperature_ref[row], top_k_ref[row], top_p_ref[row]
    chunks = (temperature > 0).astype(jnp.int32) * pl.cdiv(size, CHUNK)
    first_C = lax.broadcasted_iota(jnp.int32, (CHUNK,), 0)

    def fold(step: Callable[..., Any], start: Any) -> Any:
        """`step(so far, ids, logits)` for every chunk of the row."""

        def one(i: jax.Array, found: Any) -> Any:
            id_C = i * CHUNK + first_C
            logit_C = triton.load(logits_ref.at[row, id_C], mask=id_C < size, other=-jnp.inf)
            return step(found, id_C, logit_C)

        return lax.fori_loop(0, chunks, one, start)

    zero_C = jnp.zeros(CHUNK, jnp.float32)
    peak = jnp.max(fold(lambda top_C, _, logit_C: jnp.maximum(top_C, logit_C), zero_C - jnp.inf))

    def weigh(logit_C: jax.Array) -> jax.Array:
        return jnp.exp((logit_C - peak) / temperature)

    def mass(floors: tuple[jax.Array, ...], *, counts: bool) -> tuple[jax.Array, ...]:
        """The sum of the weights from each floor on, or how many there are."""

        def add(sums: tuple[jax.Array, ...], _, logit_C: jax.Array) -> tuple[jax.Array, ...]:
            weight_C = weigh(logit_C)
            value_C = zero_C + 1.0 if counts else weight_C
            pairs = zip(sums, floors, strict=True)
            return tuple(sum_C + jnp.where(weight_C >= floor, value_C, 0.0) for sum_C, floor in pairs)

        return tuple(map(jnp.sum, fold(add, (zero_C,) * len(floors))))

    wanted = jnp.minimum(top_k, size).astype(jnp.float32)
    by_rank = _search(partial(mass, counts=True), wanted, top_k > 0)
    (total,) = mass((by_rank,), counts=False)
    by_mass = _search(partial(mass, counts=False), top_p * total, top_p < 1)
    floor = jnp.maximum(jnp.maximum(by_rank, by_mass), min_p_ref[row])
    keys = key_ref[row, 0], key_ref[row, 1]

    def race(best: tuple[jax.Array, jax.Array], id_C: jax.Array, logit_C: jax.Array):
        weight_C = weigh(logit_C)
        speed_C = jnp.where(weight_C >= floor, weight_C, 0.0) / arrival_times(id_C.astype(jnp.uint32), *keys)
        ahead_C = speed_C > best[0]
        return jnp.where(ahead_C, speed_C, best[0]), jnp.where(ahead_C, id_C, best[1])

    best_C, id_C = fold(race, (zero_C - 1.0, jnp.zeros(CHUNK, jnp.int32)))
    id_ref[row] = jnp.min(jnp.where(best_C == jnp.max(best_C), id_C, size))


def _search(measure: Callable[..., tuple[jax.Array, ...]], wanted: jax.Array, needed: jax.Array) -> jax.Array:
    """The largest floor with a measure of at least `wanted`, f32 `[]`; 0 if it is not needed.

    Args:
      measure: of up to three floors at once; smaller for a larger floor.
    """

    def decide(i: jax.Array, known: jax.Array) -> jax.Array:
        shift = _BITS - 2 - 2 * i
        floors = (known + (jnp.int32(part) << shift) for part in (1, 2, 3))
        found = measure(tuple(lax.bitcast_convert_type(bits, jnp.float32) for bits in floors))
        passed = sum((each >= wanted).astype(jnp.int32) for each in found)
        return known + (passed << shift)

    passes = needed.astype(jnp.int32) * (_BITS // 2)
    bits = lax.fori_loop(0, passes, decide, jnp.int32(0))
    return lax.bitcast_convert_type(bits, jnp.float32)
