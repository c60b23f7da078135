"""Every backend of a mixture of experts against a plain sum over them, and what no backend may do.

Products of some tens of terms of order one: f32 agrees with float64 to 1e-5.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.model.kernels.block_experts import block_experts, block_rows
from distaff.model.kernels.gpu import triton_experts, triton_products
from distaff.model.kernels.registry import ExpertWeights
from distaff.model.kernels.tpu.ragged_experts import ragged_experts
from distaff.model.quantize import quantize_weight
from distaff.model.sharding import unstack

pytestmark = pytest.mark.accelerators
WIDTH, INNER, EXPERTS, CHOICES = 24, 40, 4, 2
NAMES = ("gate", "up", "down")


def interpreted(x_TD, expert_TX, weight_TX, experts: ExpertWeights) -> jax.Array:
    """The kernels for GPUs, with int8 weights as `Layout` stores them: `[E, outs, inputs]`."""
    if experts.gate_scale is not None:
        laid = {n: jax.tree.map(lambda w: w.swapaxes(-1, -2), getattr(experts, n)) for n in NAMES}
        experts = dataclasses.replace(experts, **laid)
    return triton_experts.triton_experts(x_TD, expert_TX, weight_TX, experts, interpret=True)


BACKENDS = {"blocks": block_experts, "triton": interpreted, "ragged": ragged_experts}
TOKENS = [1, 2, 7, 64]


@cache
def wide(width: int = WIDTH, inner: int = INNER) -> ExpertWeights:
    rng = np.random.default_rng(0)
    shapes = ((width, inner), (width, inner), (inner, width))
    drawn = [rng.standard_normal((EXPERTS, *shape)) * shape[0] ** -0.5 for shape in shapes]
    return ExpertWeights(**{name: jnp.asarray(w, jnp.float32) for name, w in zip(NAMES, drawn, strict=True)})


@cache
def rounded(width: int = WIDTH, inner: int = INNER) -> ExpertWeights:
    """The same in int8."""
    parts = {name: quantize_weight(getattr(wide(width, inner), name)) for name in NAMES}
    scales = {f"{name}_scale": scale for name, (_, scale) in parts.items()}
    return ExpertWeights(**{name: weight for name, (weight, _) in parts.items()}, **scales)


def unstacked(experts: ExpertWeights) -> ExpertWeights:
    """The same, each expert an array of its own."""
    scales = {f"{name}_scale": getattr(experts, f"{name}_scale") for name in NAMES}
    return ExpertWeights(**{name: unstack(getattr(experts, name)) for name in NAMES}, **scales)


FORMS = {"stacked": lambda experts: experts, "unstacked": unstacked}


def inputs(tokens: int, seed: int = 1, width: int = WIDTH) -> tuple[jax.Array, np.ndarray, jax.Array]:
    """Tokens, their experts (some have one or none), their weights."""
    rng = np.random.default_rng(seed)
    x_TD = jnp.asarray(rng.standard_normal((tokens, width)), jnp.float32)
    expert_TX = np.stack([rng.permutation(EXPERTS)[:CHOICES] for _ in range(tokens)])
    expert_TX[rng.random((tokens, CHOICES)) < 0.2] = EXPERTS
    return x_TD, expert_TX.astype(np.int32), jnp.asarray(rng.random((tokens, CHOICES)), jnp.float32)


def oracle(
    x_TD: jax.Array, expert_TX: np.ndarray, weight_TX: jax.Array, experts: ExpertWeights
) -> np.ndarray:
    """Token by token in float64; with int8 weights, inputs are rounded as in `quantize.py`."""
    out_TD = np.zeros(x_TD.shape)
    for t, x in zip(*np.nonzero(expert_TX < EXPERTS), strict=True):
        e = expert_TX[t, x]
        gate, up = (_map(np.asarray(x_TD[t]), experts, name, e) for name in ("gate", "up"))
        hidden = np.asarray(jax.nn.silu(jnp.asarray(gate, jnp.float32)) * jnp.asarray(up, jnp.float32))
        out_TD[t] += float(weight_TX[t, x]) * _map(hidden, experts, "down", e)
    return out_TD


def _map(x_D: np.ndarray, experts: ExpertWeights, name: str, e: int) -> np.ndarray:
    weight_DF, scale_EF = np.asarray(getattr(experts, name)[e]), getattr(experts, f"{name}_scale")
    if scale_EF is None:
        return x_D.astype(np.float64) @ weight_DF.astype(np.float64)
    scale = np.float32(np.abs(x_D).max()) / np.float32(127)
    product_F = np.round(x_D / scale).astype(np.int32) @ weight_DF.astype(np.int32)
    return product_F * np.float64(scale) * np.asarray(scale_EF[e], np.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_every_backend_is_the_sum_over_experts(tokens: int, backend: str, form: str) -> None:
    """In f32, for tokens with two experts, one and none."""
    x_TD, expert_TX, weight_TX = inputs(tokens)
    found_TD = jax.jit(BACKENDS[backend])(x_TD, jnp.asarray(expert_TX), weight_TX, FORMS[form](wide()))
    np.testing.assert_allclose(found_TD, oracle(x_TD, expert_TX, weight_TX, wide()), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_tokens_for_one_expert_take_several_blocks(backend: str) -> None:
    """Every token goes to one expert, and every fifth to the last as well."""
    x_TD, expert_TX, weight_TX = inputs(200)
    expert_TX[:, 0], expert_TX[:, 1] = 1, EXPERTS
    expert_TX[::5, 1] = EXPERTS - 1
    found_TD = jax.jit(BACKENDS[backend])(x_TD, jnp.asarray(expert_TX), weight_TX, wide())
    np.testing.assert_allclose(found_TD, oracle(x_TD, expert_TX, weight_TX, wide()), atol=1e-5)


@pytest.mark.parametrize("experts", [wide, rounded], ids=["f32", "int8"])
@pytest.mark.parametrize("sizes", [(16, 32), (72, 200), (160, 96)], ids=str)
def test_tiles_of_any_model(sizes: tuple[int, int], experts: Callable[..., ExpertWeights]) -> None:
    """Widths of less than a tile, of whole tiles, and of whole tiles and a part, in the kernels for GPUs; an
    expert has 33 rows, so a block is full or all but empty."""
    width, inner = sizes
    x_TD, expert_TX, weight_TX = inputs(64, width=width)
    expert_TX[:33, 0], expert_TX[:, 1] = 1, EXPERTS
    expert_TX[33:, 0] = np.arange(31) % 3 + 1
    expert_TX[34::3, 0] = EXPERTS
    found_TD = jax.jit(interpreted)(x_TD, jnp.asarray(expert_TX), weight_TX, experts(width, inner))
    expected_TD = oracle(x_TD, expert_TX, weight_TX, experts(width, inner))
    np.testing.assert_allclose(found_TD, expected_TD, atol=1e-5 if experts is wide else 5e-3)


@pytest.mark.parametrize(
    ("tokens", "choices", "count", "size"), [(1, 1, 1, 16), (3, 2, 9, 16), (80, 2, 5, 32), (70, 3, 8, 16)]
)
def test_blocks_hold_every_row_once(tokens: int, choices: int, count: int, size: int) -> None:
    """With its expert and no other, however tokens are routed, also to a few experts or to none; a step of R
    rows has at most R blocks."""
    cutting = jax.jit(lambda expert_TX: dataclasses.astuple(triton_experts.cut(expert_TX, count, size)))

    @settings(deadline=None, derandomize=True)
    @given(st.integers(0, 999), st.integers(0, count))
    def check(seed: int, first: int) -> None:
        expert_R = np.random.default_rng(seed).integers(first, count + 1, tokens * choices).astype(np.int32)
        found = map(np.asarray, cutting(jnp.asarray(expert_R.reshape(tokens, choices))))
        expert_J, first_J, length_J, order_R = found
        held: dict[int, list[int]] = {e: [] for e in range(count)}
        for e, start, length in zip(expert_J.tolist(), first_J, length_J, strict=True):
            held[e] += order_R[start : start + length].tolist()
        assert held == {e: np.flatnonzero(expert_R == e).tolist() for e in range(count)}
        assert ((length_J >= 0) & (length_J <= size)).all() and len(length_J) <= len(expert_R)
        assert (length_J > 0).sum() == sum(-(-len(rows) // size) for rows in held.values())

    check()


@pytest.mark.parametrize("experts", [wide, rounded], ids=["f32", "int8"])
def test_blocks_run_in_any_order(
    experts: Callable[[], ExpertWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits from the last block to the first: no block writes a row of another one's."""
    x_TD, expert_TX, weight_TX = inputs(64)
    arguments = x_TD, jnp.asarray(expert_TX), weight_TX, experts()
    found_TD, cut = interpreted(*arguments), triton_experts.cut

    def backwards(*each) -> triton_experts.Blocks:
        blocks = cut(*each)
        turned = (blocks.expert_J[::-1], blocks.first_J[::-1], blocks.length_J[::-1])
        return triton_experts.Blocks(*turned, blocks.order_R)

    monkeypatch.setattr(triton_experts, "cut", backwards)
    np.testing.assert_array_equal(interpreted(*arguments), found_TD)


@pytest.mark.parametrize("experts", [wide, rounded], ids=["f32", "int8"])
def test_kernels_stay_within_their_arrays(
    experts: Callable[..., ExpertWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a mask admits is inside; the interpreter itself would clamp or drop what is not."""
    found: list[bool] = []

    def watched(access: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def checked(ref, *values, mask, **settings) -> jax.Array:
            inside = mask
            for index, size in zip(ref.transforms[-1].indices, ref.ref.shape, strict=True):
                inside = inside & (index >= 0) & (index < size)
            jax.debug.callback(found.append, (inside == mask).all())
            return access(ref, *values, mask=mask, **settings)

        return checked

    for name in ("load", "store"):
        monkeypatch.setattr(triton_experts.triton, name, watched(getattr(triton_experts.triton, name)))
    x_TD, expert_TX, weight_TX = inputs(64, width=72)
    interpreted(x_TD, jnp.asarray(expert_TX), weight_TX, experts(72, 200)).block_until_ready()
    jax.effects_barrier()
    assert len(found) > 100 and all(found)


@pytest.mark.parametrize("experts", [wide, rounded], ids=["f32", "int8"])
def test_what_does_not_fit_goes_to_the_portable_kernel(
    experts: Callable[[], ExpertWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, from weights in either order."""
    monkeypatch.setattr(triton_experts, "is_addressable", lambda w: False)
    x_TD, expert_TX, weight_TX = inputs(7)
    arguments = x_TD, jnp.asarray(expert_TX), weight_TX, experts()
    found_TD, portable_TD = jax.jit(lambda *each: interpreted(*each))(*arguments), block_experts(*arguments)
    np.testing.assert_array_equal(found_TD, portable_TD)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 7])
def test_every_backend_is_the_sum_over_experts_in_int8(tokens: int, backend: str, form: str) -> None:
    """Rounded as the oracle rounds; a hidden value on an edge may be rounded to the other side, so a
    step of a 127th is allowed, times a weight and the number of such terms."""
    x_TD, expert_TX, weight_TX = inputs(tokens)
    found_TD = jax.jit(BACKENDS[backend])(x_TD, jnp.asarray(expert_TX), weight_TX, FORMS[form](rounded()))
    np.testing.assert_allclose(found_TD, oracle(x_TD, expert_TX, weight_TX, rounded()), atol=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_stays_close(backend: str) -> None:
    x_TD, expert_TX, weight_TX = inputs(7)
    narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), wide())
    found_TD = jax.jit(BACKENDS[backend])(
        x_TD.astype(jnp.bfloat16), jnp.asarray(expert_TX), weight_TX, narrow
    )
    assert found_TD.dtype == jnp.bfloat16
    expected_TD = oracle(x_TD, expert_TX, weight_TX, wide())
    np.testing.assert_allclose(
        found_TD.astype(jnp.float32), expected_TD, atol=0.03 * np.abs(expected_TD).max()
    )


@pytest.mark.parametrize("experts", [wide, rounded], ids=["f32", "int8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_affects_no_token(backend: str, experts: Callable[[], ExpertWeights]) -> None:
    """Tokens without an expert come out as zero whatever they hold, also NaN, and do not affect other
    tokens."""
    x_TD, expert_TX, weight_TX = inputs(64)
    expert_TX[5::3] = EXPERTS
    poisoned_TD = x_TD.at[5::3].set(jnp.nan)
    run = jax.jit(BACKENDS[backend])
    clean_TD, found_TD = (run(x, jnp.asarray(expert_TX), weight_TX, experts()) for x in (x_TD, poisoned_TD))
    np.testing.assert_array_equal(found_TD, clean_TD)
    assert not np.asarray(found_TD[5::3]).any()


@pytest.mark.parametrize("experts", [wide, rounded], ids=["f32", "int8"])
@pytest.mark.parametrize("tokens", [2, 7, 64])
@pytest.mark.parametrize("backend", ["blocks", "triton"])
def test_other_tokens_and_place_change_no_bit(
    backend: str, tokens: int, experts: Callable[[], ExpertWeights]
) -> None:
    """A token gets the same bits whatever else is in the step and whatever its place is."""
    own, *_ = inputs(tokens)
    run, mine_X, weights = jax.jit(BACKENDS[backend]), np.asarray([2, 0], np.int32), unstacked(experts())
    expected_D = None

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(st.integers(0, 1000), st.integers(0, tokens - 1), st.sampled_from([None, 0, 2, EXPERTS]))
    def check(seed: int, place: int, crowd: int | None) -> None:
        nonlocal expected_D
        x_TD, expert_TX, weight_TX = inputs(tokens, seed)
        if crowd is not None:
            expert_TX[:, 0], expert_TX[:, 1] = crowd, EXPERTS
        expert_TX[place] = mine_X
        x_TD, weight_TX = x_TD.at[place].set(own[0]), weight_TX.at[place].set(jnp.float32([0.25, 0.75]))
        found_D = np.asarray(run(x_TD, jnp.asarray(expert_TX), weight_TX, weights))[place]
        expected_D = found_D if expected_D is None else expected_D
        np.testing.assert_array_equal(found_D, expected_D)

    check()


def turns(expert_TX: np.ndarray) -> int:
    """How many blocks the loop computes."""
    counted: list[int] = []
    x_TD, _, weight_TX = inputs(len(expert_TX))

    def count(x_CD, experts, e, grouped):
        jax.debug.callback(lambda: counted.append(1))
        return x_CD

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distaff.model.kernels.block_experts._expert", count)
        block_experts(x_TD, jnp.asarray(expert_TX), weight_TX, wide()).block_until_ready()
    jax.effects_barrier()
    return len(counted)


def test_work_follows_the_tokens() -> None:
    """No block for experts without rows or for tokens without an expert; otherwise as few as hold each
    expert's rows."""
    tokens = 64
    block = block_rows(tokens, CHOICES, EXPERTS)
    nobody = np.full((tokens, CHOICES), EXPERTS, np.int32)
    assert turns(nobody) == 0
    one, three, all_one = nobody.copy(), nobody.copy(), nobody.copy()
    one[9, 1], three[:3, 0] = 3, [0, 3, 1]
    all_one[:, 0] = 2
    assert [turns(one), turns(three), turns(all_one)] == [1, 3, -(-tokens // block)]


def test_unstacked_experts_are_not_copied() -> None:
    """The compiled loop reads unstacked experts' weights in place; it copies stacked ones first."""
    x_TD, expert_TX, weight_TX = inputs(64)
    arguments = x_TD, jnp.asarray(expert_TX), weight_TX
    made = re.compile(rf"= f32\[(?:1,)?{WIDTH},{INNER}\]\S* (\w[\w-]*)\(")
    compiled = {
        form: jax.jit(block_experts).lower(*arguments, lay(wide())).compile() for form, lay in FORMS.items()
    }
    kinds = {form: set(made.findall(found.as_text())) for form, found in compiled.items()}
    assert kinds["unstacked"] <= {"parameter", "get-tuple-element", "bitcast"}
    assert "fusion" in kinds["stacked"]


def test_unstacked_experts_share_memory() -> None:
    """Unstacking experts copies nothing."""
    stacked = wide().gate
    size = stacked[0].nbytes
    for i, expert in enumerate(unstack(stacked)):
        assert expert.unsafe_buffer_pointer() == stacked.unsafe_buffer_pointer() + i * size


@given(st.integers(1, 5000), st.integers(1, 8), st.integers(1, 64))
def test_blocks_are_of_sensible_size(tokens: int, choices: int, count: int) -> None:
    """Never more rows than tokens, never more than 40, and in a full step not fewer than 8."""
    block = block_rows(tokens, choices, count)
    assert min(tokens, 8) <= block <= min(tokens, 40)


def test_products_of_f32_are_exact_in_the_kernels_for_gpus() -> None:
    """A lowered step does not show what is inside kernels; a GPU's default is TF32."""
    x_TD, expert_TX, weight_TX = inputs(7)
    arguments = x_TD, jnp.asarray(expert_TX), weight_TX, wide()
    text = str(jax.make_jaxpr(triton_experts.triton_experts)(*arguments))
    assert text.count("dot_general[") == text.count("(Precision.HIGHEST, Precision.HIGHEST)") == 3


@pytest.mark.parametrize(
    ("x", "weights", "size", "expected"),
    [
        ("bfloat16", "bfloat16", 1 << 30, True),
        ("float32", "float32", 1 << 33, True),
        ("float32", "bfloat16", 1 << 20, False),
        ("bfloat16", "int8", 1 << 31, True),
        ("bfloat16", "int8", 3 << 30, False),
        ("bfloat16", "int8", 5 << 30, True),
        ("int32", "int8", 1 << 20, False),
    ],
)
def test_the_kernels_for_gpus_take_what_they_can(x: str, weights: str, size: int, expected: bool) -> None:
    """One type for rows and wide weights; not int8 weights of 2 to 4 GiB, which Pallas cannot reach."""
    array, scale = jax.ShapeDtypeStruct((8, 1024, size >> 13), weights), None
    if weights == "int8":
        scale = jax.ShapeDtypeStruct((8, 1024), "float32")
    experts = ExpertWeights(**dict.fromkeys(NAMES, array), **{f"{name}_scale": scale for name in NAMES})
    assert triton_experts.fits(jax.ShapeDtypeStruct((4, 1024), x), experts) == expected


@given(st.integers(1, 5000), st.integers(1, 8), st.integers(1, 64), st.sampled_from([1, 2, 4]))
def test_tiles_are_of_sensible_size(tokens: int, choices: int, count: int, itemsize: int) -> None:
    """Powers of two, at least 16 rows and 32 inputs, as tensor cores need for bytes; few rows for few
    tokens."""
    rows = triton_experts.block_rows(tokens, choices, count, itemsize)
    assert 16 <= rows <= max(16, min(128, 2 * tokens))
    for tile in (triton_products.tile_of(rows, itemsize, weights) for weights in (1, 2)):
        assert tile.rows == rows and tile.terms >= 32 and tile.outputs >= 16
        assert all(size & (size - 1) == 0 for size in (tile.rows, tile.terms, tile.outputs))
