"""A model over several devices computes the same as on one, and sends only what the design allows between
them."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.model.config import ModelConfig, MoEConfig
from distaff.model.errors import ConfigError
from distaff.model.kernels import registry
from distaff.model.kernels.gpu import triton_experts
from distaff.model.parameters import Mixed, Quantization
from distaff.model.quantize import dequantize_groups, quantize, widen_fp8
from distaff.model.sharding import copies, create_mesh, pad_config, place, placements
from distaff.model.transformer import random_parameters

from .reference import FLOAT32, Driver

LLAMA = ModelConfig(
    vocabulary=102, layers=2, width=24, feed_forward=30, heads=8, kv_heads=2, head_size=8, context=256
)
MODELS = {
    "llama": LLAMA,
    "biased": replace(LLAMA, attention_bias=True, feed_forward_bias=True, tied_head=True),
    "nine-three": replace(LLAMA, heads=9, kv_heads=3, tied_head=True),
    "one-kv": replace(LLAMA, heads=4, kv_heads=1, window=11),
    "vocabulary": replace(LLAMA, vocabulary=32_002, layers=1),
    "mixtral": replace(LLAMA, moe=MoEConfig(experts=8, experts_per_token=2), window=17),
    "three-experts": replace(LLAMA, moe=MoEConfig(experts=3, experts_per_token=2)),
    "mixtral-panels": replace(
        LLAMA, width=32, feed_forward=96, moe=MoEConfig(experts=8, experts_per_token=2)
    ),
    "three-experts-panels": replace(
        LLAMA, width=32, feed_forward=128, moe=MoEConfig(experts=3, experts_per_token=2)
    ),
}
PROMPTS = {0: 40, 2: 9}
TOLERANCE = 1e-4


def spread(config: ModelConfig, seed: int = 6) -> dict[str, jax.Array]:
    """Random parameters, none of them at its default, large enough that each changes the logits."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, weight in random_parameters(config, seed, FLOAT32).items():
        w = np.asarray(weight)
        if w.ndim == 1:
            w = w + 0.3 * rng.normal(size=w.shape).astype(np.float32)
        else:
            w = w * np.float32(50 * 1.5 * w.shape[-2] ** -0.5)
        found[name] = jax.device_put(w)
    return found


def generate(
    driver: Driver, config: ModelConfig, follow: list[int] | None = None
) -> tuple[np.ndarray, list[int]]:
    """Logits of two prompts and of six more steps, and the greedy tokens; the steps `follow` given tokens."""
    rng = np.random.default_rng(1)
    prompts = {row: rng.integers(0, config.vocabulary, n).tolist() for row, n in PROMPTS.items()}
    for row, prompt in prompts.items():
        driver.start(row, len(prompt))
    logits = driver.mixed(prompts)
    found, tokens = [logits[0], logits[2]], []
    for i in range(6):
        tokens += [int(logits[row][-1].argmax()) for row in prompts]
        logits = driver.decode(dict(zip(prompts, (follow or tokens)[2 * i : 2 * i + 2], strict=True)))
        found += [logits[0], logits[2]]
    return np.concatenate(found), tokens


def meshed(config: ModelConfig, parameters: dict[str, jax.Array], shards: int, **options: Any) -> Driver:
    """A driver over some devices; what it computes is compared within a tolerance."""
    return Driver(config, parameters, mesh=create_mesh(shards), optimized=False, **options)


@cache
def alone_on_one(name: str) -> tuple[np.ndarray, list[int]]:
    """What `generate` gives for a model with wide weights on one device."""
    config = MODELS[name]
    return generate(Driver(config, spread(config), optimized=False), config)


@pytest.mark.parametrize("name", MODELS)
def test_any_mesh_computes_the_same(name: str) -> None:
    """Over 1, 2 and 4 devices: the same greedy tokens, logits within 1e-4 of the largest."""
    config, parameters = MODELS[name], spread(MODELS[name])
    alone, tokens = alone_on_one(name)
    for shards in (2, 4):
        logits, found = generate(meshed(config, parameters, shards), config, tokens)
        assert np.abs(logits - alone).max() <= TOLERANCE * np.abs(alone).max()
        assert found == tokens


GPUS = {"experts": "triton", "int8_linear": "transposed"}
"""Weights as they are stored on a GPU."""


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The experts' kernel for GPUs runs on a CPU."""
    load, kernel = registry._load, partial(triton_experts.triton_experts, interpret=True)
    monkeypatch.setattr(
        registry, "_load", lambda at: kernel if at.startswith("gpu.triton_experts:") else load(at)
    )


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("llama", {}),
        ("mixtral", {}),
        ("mixtral-panels", {}),
        ("three-experts-panels", {}),
        ("three-experts", GPUS),
    ],
)
@pytest.mark.usefixtures("interpreted")
def test_int8_is_close_on_any_mesh(name: str, kernels: dict[str, str]) -> None:
    """Over 1, 2 and 4 devices int8 weights give about the same logits as the wide ones.

    Each device rounds a row by its own share's largest value, so the meshes differ a little; a router with a
    near tie may send a token elsewhere, so the median over positions is compared.
    """
    config, parameters = MODELS[name], spread(MODELS[name])
    wide, tokens = alone_on_one(name)
    for shards in (1, 2, 4):
        driver = meshed(config, quantize(parameters), shards, quantization="int8", kernels=kernels)
        logits, _ = generate(driver, config, tokens)
        worst = np.abs(logits - wide).max(-1) / np.abs(wide).max()
        assert np.median(worst) <= 0.05


GROUPS = replace(LLAMA, vocabulary=66, width=64, feed_forward=192, heads=6, kv_heads=3, head_size=32)
"""Every map's inputs are groups of 32, on two devices too; the vocabulary is no whole number of panels."""


@pytest.mark.parametrize(
    "kernels", [{}, {"grouped_linear": "plain"}, {"grouped_linear": "unrounded"}], ids=str
)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quantization", ["int4", "int8-groups"])
def test_groups_are_close_on_any_mesh(
    quantization: Quantization, tied: bool, kernels: dict[str, str]
) -> None:
    """Over one device and two the logits of the same weights in f32, nearly: only rows are rounded."""
    compare_groups(replace(GROUPS, tied_head=tied), quantization, kernels)


PORTABLE = {"grouped_linear": "plain", "experts": "blocks"}
UNROUNDED = {"grouped_linear": "unrounded", "experts": "ragged"}
"""As on a TPU."""


@pytest.mark.parametrize(
    ("experts", "quantization", "kernels"),
    [
        (4, "int4", {}),
        (3, "int4", {}),
        (3, "int8-groups", {}),
        (4, "int4", PORTABLE),
        (3, "int8-groups", PORTABLE),
        (3, "int4", UNROUNDED),
    ],
)
def test_experts_in_groups_are_close_on_any_mesh(
    experts: int, quantization: Quantization, kernels: dict[str, str]
) -> None:
    """Whole experts on each of two devices, or with three of them a part of each. A router with a near tie
    may send a token elsewhere, but not the median one."""
    config = replace(GROUPS, moe=MoEConfig(experts=experts, experts_per_token=2), window=17)
    compare_groups(config, quantization, kernels)


def compare_groups(config: ModelConfig, quantization: Quantization, kernels: dict[str, str]) -> None:
    """Rounding a row to 127 steps in each group moves its product by about a 300th of its size, and two
    layers and the head have seven of them one after another."""
    quantized = quantize(spread(config), quantization)
    exact, tokens = generate(Driver(config, widened(quantized, config), optimized=False), config)
    for shards in (1, 2):
        driver = meshed(config, quantized, shards, quantization=quantization, kernels=kernels)
        logits, _ = generate(driver, config, tokens)
        assert np.median(np.abs(logits - exact).max(-1) / np.abs(exact).max()) <= 0.03


def widened(quantized: dict[str, jax.Array], config: ModelConfig) -> dict[str, jax.Array]:
    """The same weights as f32."""
    wide = {name: w for name, w in quantized.items() if not name.endswith(("_scale", "_low"))}
    for name in (name for name in wide if f"{name}_scale" in quantized):
        scale = quantized[f"{name}_scale"]
        if wide[name].dtype == jnp.float8_e4m3fn:
            wide[name] = widen_fp8(wide[name], scale)
        else:
            wide[name] = dequantize_groups(wide[name], scale, quantized.get(f"{name}_low"))
    return wide | {"embed": wide.pop("head").T} if config.tied_head else wide


BLOCKS = replace(GROUPS, width=128, feed_forward=512, heads=8, kv_heads=4, head_size=64)
"""Every map's inputs are blocks of 128, on two devices too."""
FOUR, THREE = (MoEConfig(experts=experts, experts_per_token=2) for experts in (4, 3))


@pytest.mark.parametrize(
    "kernels", [{}, {"fp8_linear": "plain", "experts": "blocks"}, {"experts": "triton"}], ids=str
)
@pytest.mark.parametrize("moe", [None, FOUR, THREE], ids=["dense", "whole experts", "parts of experts"])
@pytest.mark.parametrize("quantization", ["fp8", "fp8-blocks"])
@pytest.mark.usefixtures("interpreted")
def test_fp8_is_exact_on_any_mesh(
    quantization: Quantization, moe: MoEConfig | None, kernels: dict[str, str]
) -> None:
    """Over one device and two the logits of the same weights in f32, but for the order of sums."""
    config = replace(BLOCKS, moe=moe)
    quantized = quantize(spread(config), quantization)
    exact, tokens = generate(Driver(config, widened(quantized, config), optimized=False), config)
    for shards in (1, 2):
        driver = meshed(config, quantized, shards, quantization=quantization, kernels=kernels)
        logits, _ = generate(driver, config, tokens)
        assert np.abs(logits - exact).max() <= TOLERANCE * np.abs(exact).max()


@pytest.mark.parametrize(
    "config, shards, message",
    [
        (replace(GROUPS, feed_forward=100), 1, "down has 100 inputs on a device; expected a multiple of 32"),
        (GROUPS, 4, "down has 48 inputs on a device"),
        (replace(GROUPS, moe=MoEConfig(experts=3, experts_per_token=2)), 4, "down has 48 inputs on a device"),
    ],
)
def test_parts_of_groups_are_refused(config: ModelConfig, shards: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        placements(config, shards, "int4")


def test_parts_of_blocks_are_refused() -> None:
    """But not of weights of another kind."""
    with pytest.raises(ConfigError, match="o has 64 inputs on a device; expected a multiple of 128"):
        placements(BLOCKS, 8, "fp8-blocks")
    narrow = replace(BLOCKS, feed_forward=64 * 3, layers=1)
    assert placements(narrow, 1, Mixed("fp8", (("layers.0.attention.q", "fp8-blocks"),)))
    with pytest.raises(ConfigError, match="down has 192 inputs"):
        placements(narrow, 1, Mixed("fp8", (("layers.0.feed_forward.down", "fp8-blocks"),)))


def test_whole_experts_have_whole_groups() -> None:
    """On four devices a dense model of this width has parts of groups; four experts have none."""
    config = replace(GROUPS, moe=MoEConfig(experts=4, experts_per_token=2))
    where = placements(config, 4, "int4")
    for part, inputs in {"": 96, "_scale": 6, "_low": 6}.items():
        placed = where[f"layers.0.feed_forward.down{part}"]
        assert (placed.shape, placed.axis) == ((4, inputs, 64), 0)


def collectives(driver: Driver) -> Counter[tuple[str, str]]:
    """The collectives in a compiled step of three rows: (kind, operand type) -> how many."""
    driver.start(0, 1)
    driver.decode({0: 1})
    compiled = driver.jitted.lower(*driver.last).compile().as_text()
    pattern = r"= (\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    return Counter((kind, kind_of) for kind_of, kind in re.findall(pattern, compiled))


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
@pytest.mark.parametrize("name", ["llama", "nine-three", "mixtral", "three-experts"])
def test_a_step_sends_what_the_design_allows(name: str, joined: bool) -> None:
    """Two sums per layer and one for the embedding, each of hidden states; the logits once; nothing else."""
    config, shards = MODELS[name], 4
    driver = Driver(config, spread(config), mesh=create_mesh(shards), joined=joined)
    found = Counter()
    for (kind, operand), count in collectives(driver).items():
        found[kind, re.sub(r"\{.*", "", operand)] += count
    vocabulary = pad_config(config, shards).vocabulary
    assert found == {
        ("all-reduce", f"f32[3,{config.width}]"): 2 * config.layers + 1,
        ("all-gather", f"f32[3,{vocabulary}]"): 1,
    }


@given(
    st.sampled_from([(8, 2), (9, 3), (4, 1), (6, 6), (32, 8), (5, 5), (12, 3)]),
    st.sampled_from([1, 2, 3, 4, 6, 8, 16]),
    st.integers(1, 300),
    st.sampled_from([None, 2, 3, 8]),
)
def test_shares_are_a_partition(heads: tuple[int, int], shards: int, odd: int, experts: int | None) -> None:
    """Whole heads, even shares; concatenated, without padding and copies, they are the parameter."""
    config = replace(
        LLAMA,
        heads=heads[0],
        kv_heads=heads[1],
        vocabulary=odd,
        feed_forward=odd,
        attention_bias=True,
        moe=experts and MoEConfig(experts=experts, experts_per_token=1),
    )
    padded, whole = pad_config(config, shards), placements(config, 1)
    assert padded.heads % shards == padded.kv_heads % shards == padded.vocabulary % shards == 0
    assert pad_config(padded, shards) == padded or copies(config, shards) > 1
    for name, placement in placements(config, shards).items():
        values = np.random.default_rng(0).random(whole[name].shape)
        shares = [placement.share(values, device, shards) for device in range(shards)]
        assert {share.shape for share in shares} == {
            tuple(n // (shards if axis == placement.axis else 1) for axis, n in enumerate(placement.shape))
        }
        if placement.axis is None:
            continue
        together = np.concatenate(shares[:: placement.copies], axis=placement.axis)
        kept, rest = np.split(together, [values.shape[placement.axis]], axis=placement.axis)
        np.testing.assert_array_equal(kept, values)
        assert not rest.any()


def test_place_sends_each_device_its_share() -> None:
    """What is on each device of a mesh is what `share` returns."""
    config, mesh = MODELS["nine-three"], create_mesh(4)
    values = np.random.default_rng(0).random((24, 24)).astype(np.float32)
    where = placements(config, 4)["layers.0.attention.k"]
    array = place(values, where, mesh)
    assert array.shape == where.shape == (24, 32)
    for device, shard in enumerate(array.addressable_shards):
        np.testing.assert_array_equal(np.asarray(shard.data), where.share(values, device, 4))


def test_too_large_a_mesh_is_refused() -> None:
    with pytest.raises(ConfigError, match="mesh model=5; expected at most 4"):
        create_mesh(5)
