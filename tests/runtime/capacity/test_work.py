"""The analytic model against placed arrays, XLA's costs and compiled collectives."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.model.cache import Batch, page_bytes
from distaff.model.config import ModelConfig, MoEConfig
from distaff.model.kernels.registry import ExpertWeights, choose
from distaff.model.parameters import Quantization, parameter_shapes
from distaff.model.quantize import quantize
from distaff.model.sharding import create_mesh, pad_config, place_all
from distaff.model.target import Target
from distaff.model.transformer import Skeleton, random_parameters
from distaff.runtime.capacity.hlo import collectives_of
from distaff.runtime.capacity.work import CostModel
from distaff.runtime.device.buckets import Bucket, Shapes
from distaff.runtime.device.executables import Executables
from distaff.runtime.device.memory import state_bytes
from distaff.runtime.device.steps import create_state

FLOAT32 = jnp.dtype("float32")
LLAMA = ModelConfig(
    vocabulary=1003, layers=2, width=128, feed_forward=352, heads=8, kv_heads=2, head_size=32, context=512
)
MIXTURE = replace(LLAMA, moe=MoEConfig(experts=4, experts_per_token=2))
MODELS = {
    "llama": LLAMA,
    "tied": replace(LLAMA, tied_head=True, attention_bias=True, feed_forward_bias=True),
    "nine-three": replace(LLAMA, heads=9, kv_heads=3),
    "one-kv": replace(LLAMA, kv_heads=1),
    "mixtral": MIXTURE,
    "three-experts": replace(LLAMA, moe=MoEConfig(experts=3, experts_per_token=1)),
}
GROUPS = replace(LLAMA, width=64, feed_forward=128, heads=4, kv_heads=2, head_size=32)
"""Every map's inputs are groups of 32, also on two devices."""
SHAPES = Shapes(slots=8, budget=64, page_size=16, table=32, tile=16)
DECODE = Bucket(kind="decode", tokens=8, rows=8)


def cost_model(config: ModelConfig, shards: int = 1, **options: Any) -> CostModel:
    return CostModel(
        config=config, shards=shards, dtype="float32", page_size=16, **{"quantization": None, **options}
    )


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_weights_are_the_bytes_on_a_device(name: str, shards: int, quantization: Quantization | None) -> None:
    """On a mesh, each device holds exactly this number of bytes of parameters."""
    compare_bytes(MODELS[name], shards, quantization)


@pytest.mark.parametrize("quantization", ["int4", "int8-groups"])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_in_groups_are_the_bytes_on_a_device(
    tied: bool, shards: int, quantization: Quantization
) -> None:
    compare_bytes(replace(GROUPS, tied_head=tied), shards, quantization)


@pytest.mark.parametrize("quantization", ["int4", "int8-groups"])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("experts", [4, 3], ids=["whole experts", "parts of experts"])
def test_experts_in_groups_are_the_bytes_on_a_device(
    experts: int, shards: int, quantization: Quantization
) -> None:
    config = replace(GROUPS, moe=MoEConfig(experts=experts, experts_per_token=2))
    compare_bytes(config, shards, quantization)


def compare_bytes(config: ModelConfig, shards: int, quantization: Quantization | None) -> None:
    parameters = random_parameters(config, 1, FLOAT32)
    if quantization:
        parameters = quantize(parameters, quantization)
    placed = place_all(parameters, config, create_mesh(shards), quantization)
    held: Counter[int] = Counter()
    for array in placed.values():
        for shard in array.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    assert set(held.values()) == {cost_model(config, shards, quantization=quantization).weight_bytes()}


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_pages_are_those_of_the_pool(name: str, shards: int) -> None:
    """The parts of a page on all devices add up to a page of the padded model."""
    padded = pad_config(MODELS[name], shards)
    for dtype in (FLOAT32, jnp.dtype("int8")):
        size = cost_model(MODELS[name], shards, int8_cache=dtype == jnp.int8).token_bytes() * 16 * shards
        assert size == page_bytes(padded, 16, dtype)


@pytest.mark.parametrize("name", MODELS)
def test_state_is_that_of_the_step(name: str) -> None:
    """All parts of the state that do not grow with the pool."""
    skeleton = Skeleton.of(MODELS[name])
    shapes = replace(SHAPES, mask=-(-MODELS[name].vocabulary // 32))
    state = jax.eval_shape(lambda: create_state(skeleton, shapes, 9, FLOAT32))
    beside = jax.tree.leaves(state._replace(cache=(), broken_P=()))
    assert state_bytes(MODELS[name], 8) == sum(x.size * x.dtype.itemsize for x in beside)


KEYS = 64


def dense_attention(q_TNH: jax.Array, pool: jax.Array, batch: Batch, *, window: int | None) -> jax.Array:
    """All queries against the first `KEYS` slots of the pool: one product per key, without a loop."""
    kv_SEH = pool.reshape(-1, *pool.shape[2:])[:KEYS]
    group = q_TNH.shape[1] // (pool.shape[2] // 2)
    k_SNH, v_SNH = (jnp.repeat(kv_SEH[:, part::2], group, axis=1) for part in (0, 1))
    p_NTS = jax.nn.softmax(jnp.einsum("TNH,SNH->NTS", q_TNH, k_SNH))
    return jnp.einsum("NTS,SNH->TNH", p_NTS, v_SNH)


def gathered_experts(
    x_TD: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, experts: ExpertWeights
) -> jax.Array:
    """Each token times its own experts' weights: one product per chosen expert, without a loop."""
    gate, up, down = (jnp.asarray(w)[expert_TX] for w in (experts.gate, experts.up, experts.down))
    h_TXF = jax.nn.silu(jnp.einsum("TD,TXDF->TXF", x_TD, gate)) * jnp.einsum("TD,TXDF->TXF", x_TD, up)
    return jnp.einsum("TXF,TXFD,TX->TD", h_TXF, down, weight_TX)


def costs(config: ModelConfig, tokens: int) -> dict[str, float]:
    """XLA's cost analysis of a forward pass of `tokens` rows with `KEYS` keys each, without loops."""
    kernels = replace(choose("cpu"), attention=dense_attention, experts=gathered_experts)
    plain = replace(kernels, linear=choose("other").linear)
    skeleton = Skeleton.of(config, Target(kernels=plain))
    ids = jax.ShapeDtypeStruct((tokens,), jnp.int32)
    batch = Batch(
        positions_T=ids,
        lengths_T=ids,
        entries_T=ids,
        tables_BM=jax.ShapeDtypeStruct((tokens, 4), jnp.int32),
        starts_R=jax.ShapeDtypeStruct((tokens + 1,), jnp.int32),
        rows=jax.ShapeDtypeStruct((), jnp.int32),
        singles_B=ids,
        tiles=None,
    )
    pool = jax.ShapeDtypeStruct((8, 16, 2 * config.kv_heads, config.head_size), FLOAT32)
    shapes = parameter_shapes(config)
    leaves = tuple(jax.ShapeDtypeStruct(shapes[name], FLOAT32) for name in skeleton.names)

    def forward(leaves, cache, tokens_T, batch):
        model = skeleton.merge(leaves)
        hidden_TD, cache = model.hidden(tokens_T, cache, batch)
        return model.logits(hidden_TD), cache

    lowered = jax.jit(forward, donate_argnums=1).lower(leaves, (pool,) * config.layers, ids, batch)
    found = lowered.compile().cost_analysis()
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_operations_are_those_that_xla_counts(name: str) -> None:
    """Up to 2 % more: XLA also counts norms, rotary embedding, softmax and activations."""
    config = MODELS[name]
    for tokens in (4, 32):
        work = cost_model(config).step([(1, KEYS)] * tokens, tokens=tokens, sampled=tokens)
        assert 1.0 <= costs(config, tokens)["flops"] / sum(work.operations.values()) <= 1.02


@pytest.mark.parametrize("growth", [{"feed_forward": 704}, {"vocabulary": 2006}, {"width": 256}])
def test_bytes_grow_as_xla_counts_them(growth: dict[str, int]) -> None:
    """A wider model reads as many more bytes as its weights have; XLA adds one row's activations.

    With more rows XLA changes the layout of weights on a CPU and counts that as well.
    """
    wide = replace(LLAMA, **growth)
    ours = [
        sum(cost_model(config).step([(1, KEYS)], tokens=1, sampled=1).bytes.values())
        for config in (LLAMA, wide)
    ]
    theirs = [costs(config, 1)["bytes accessed"] for config in (LLAMA, wide)]
    assert 1.0 <= (theirs[1] - theirs[0]) / (ours[1] - ours[0]) <= 1.02


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("name", ["nine-three", "mixtral"])
def test_collectives_are_those_of_the_compiled_step(name: str, shards: int) -> None:
    """Kind, number and size of all collectives in the real step."""
    config, mesh = MODELS[name], create_mesh(shards)
    skeleton = Skeleton.of(config, Target(kernels=choose("cpu"), shards=shards))
    placed = skeleton.placements()
    leaves = tuple(jax.ShapeDtypeStruct(placed[each].shape, FLOAT32) for each in skeleton.names)
    state = jax.eval_shape(lambda: create_state(skeleton, SHAPES, 9, FLOAT32))
    compiled = Executables(skeleton, SHAPES, mesh).lower(DECODE, leaves, state).compile()
    work = cost_model(config, shards).decode([KEYS] * 8)
    expected = {(each.kind, each.count, each.bytes) for each in work.collectives}
    assert set(collectives_of(compiled.as_text() or "")) == expected


def test_one_device_sends_nothing() -> None:
    assert cost_model(LLAMA).decode([1]).collectives == ()


spans = st.lists(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, 400))), min_size=1)


@given(spans, st.integers(1, 400) | st.none())
def test_attention_counts_every_pair_once(spans: Sequence[tuple[int, int]], window: int | None) -> None:
    """Pairs of a query and a visible key, one by one."""
    config = replace(LLAMA, window=window)
    tokens = sum(count for count, _ in spans)
    with_pairs, without = (
        sum(cost_model(each).step(spans, tokens=tokens, sampled=1).operations.values())
        - 4 * config.layers * config.heads * config.head_size * pairs
        for each, pairs in (
            (config, sum(_pairs(count, end, window) for count, end in spans)),
            (replace(config, window=1), tokens),
        )
    )
    assert with_pairs == pytest.approx(without)


def _pairs(count: int, end: int, window: int | None) -> int:
    visible = [
        sum(1 for key in range(query + 1) if window is None or query - key < window)
        for query in range(end - count, end)
    ]
    return sum(visible)


@given(st.integers(0, 200), st.integers(1, 8), st.integers(1, 8))
def test_experts_used_is_an_expectation(tokens: int, experts: int, chosen: int) -> None:
    """No tokens use no expert, one token uses its own experts, and more tokens use more."""
    moe = MoEConfig(experts=max(experts, chosen), experts_per_token=chosen)
    used = cost_model(replace(LLAMA, moe=moe))._experts_used
    assert used(0) == 0 and used(1) == pytest.approx(chosen / moe.experts)
    assert used(tokens) <= used(tokens + 1) <= 1


def test_layers_without_a_window_read_all_keys() -> None:
    """Half of the layers read the window's pages, the others all of them."""
    config = replace(LLAMA, window=32, full_layers=tuple(range(0, LLAMA.layers, 2)))
    halves = [replace(LLAMA, window=window) for window in (32, None)]
    every, windowed, whole = (
        cost_model(each).decode([200]).bytes["cache read"] for each in (config, *halves)
    )
    assert every == pytest.approx((windowed + whole) / 2)
