"""Joined weights compute what their parts compute, are joined device by device, and take little memory."""

import weakref
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.model import transformer
from distaff.model.config import ModelConfig
from distaff.model.joining import join, parts_of
from distaff.model.kernels.registry import choose
from distaff.model.parameters import Quantization, parameter_shapes
from distaff.model.quantize import quantize
from distaff.model.sharding import Placement, create_mesh, place_all, placements
from distaff.model.target import Target
from distaff.model.transformer import Skeleton

from .reference import FLOAT32, Driver
from .test_sharding import GROUPS, MODELS, generate, spread

pytestmark = pytest.mark.accelerators
KERNELS = {
    "linear": "plain",
    "int8_linear": "transposed",
    "grouped_linear": "plain",
}
"""Linear maps as on a GPU."""
BIASED_GROUPS = replace(GROUPS, attention_bias=True, feed_forward_bias=True)
CASES = [
    (MODELS["biased"], None),
    (MODELS["biased"], "int8"),
    (MODELS["biased"], "fp8"),
    (MODELS["mixtral"], None),
    (BIASED_GROUPS, "int4"),
]
PADDED = [(MODELS["nine-three"], None), (MODELS["one-kv"], "int8")]
"""Heads are padded or copied on two devices."""


def drawn(config: ModelConfig, quantization: Quantization | None) -> dict[str, jax.Array]:
    return quantize(spread(config), quantization) if quantization else spread(config)


def skeleton_of(config: ModelConfig, quantization: Quantization | None, shards: int) -> Skeleton:
    kernels = replace(choose("cpu", KERNELS), joined=True)
    return Skeleton.of(config, Target(kernels=kernels, shards=shards, quantization=quantization))


@pytest.mark.parametrize(
    "config, quantization, shards",
    [(MODELS["biased"], None, 1)] + [(*case, 2) for case in CASES + PADDED],
)
def test_joined_weights_compute_the_same(
    config: ModelConfig, quantization: Quantization | None, shards: int
) -> None:
    """Within the last bits: XLA may add up columns of another width in another order. Where rows are rounded,
    such a bit moves a few values to the next integer."""
    parameters = drawn(config, quantization)
    options = dict(mesh=create_mesh(shards), kernels=KERNELS, quantization=quantization, optimized=False)
    apart, tokens = generate(Driver(config, parameters, **options), config)
    joined, _ = generate(Driver(config, parameters, joined=True, **options), config, tokens)
    worst = np.abs(joined - apart).max(-1) / np.abs(apart).max()
    assert np.median(worst) <= 1e-5 and worst.max() <= (0.05 if quantization else 1e-5)


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("name", ["biased", "nine-three", "one-kv"])
def test_a_device_holds_its_shares_of_the_parts(
    name: str, quantization: Quantization | None, shards: int
) -> None:
    """One after another along the outputs; the others are where they were. Shapes and types are known
    before."""
    config = MODELS[name]
    skeleton, parameters = skeleton_of(config, quantization, shards), drawn(config, quantization)
    placed = place_all(parameters, config, create_mesh(shards), quantization)
    leaves, table = skeleton.flatten(placed), placements(config, shards, quantization)
    abstract = skeleton.abstract(FLOAT32)
    for name, leaf, expected in zip(skeleton.names, leaves, abstract, strict=True):
        assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype), name
        values = [(table[part], np.asarray(parameters[part])) for part in parts_of(name)]
        for device, shard in enumerate(leaf.addressable_shards):
            parts = [where.share(each, device, shards) for where, each in values]
            whole = np.concatenate(parts, axis=-1)
            turned = leaf.dtype == jnp.int8
            np.testing.assert_array_equal(shard.data, whole.T if turned else whole, err_msg=name)


@pytest.mark.parametrize("config, quantization", CASES)
def test_every_stored_parameter_is_in_one_place(
    config: ModelConfig, quantization: Quantization | None
) -> None:
    names = skeleton_of(config, quantization, 1).names
    assert sorted(part for name in names for part in parts_of(name)) == sorted(
        parameter_shapes(config, quantization)
    )
    count = config.layers * (1 if config.moe else 2)
    assert sum(name.endswith((".qkv", ".gate_up")) for name in names) == count


@pytest.mark.parametrize("shards", [1, 2])
def test_parts_are_freed_before_the_next_ones_are_joined(
    monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    """So beside all weights there is at most one joined one, however many layers there are."""
    config, parted = MODELS["biased"], []

    def watch(parts: list[jax.Array], where: Placement) -> jax.Array:
        assert not any(part() is not None for part in parted)
        parted.extend(map(weakref.ref, parts if len(parts) > 1 else ()))
        return join(parts, where)

    monkeypatch.setattr(transformer, "join", watch)
    skeleton, parameters = skeleton_of(config, "int8", shards), drawn(config, "int8")
    placed = place_all(parameters, config, create_mesh(shards), "int8")
    skeleton.flatten(placed)
    assert len(parted) == config.layers * 5 * 3  # weights, scales and biases


def test_gpus_have_joined_weights() -> None:
    joined = {platform: choose(platform).joined for platform in ("cpu", "tpu", "gpu", "cuda", "other")}
    assert joined == {"cpu": False, "tpu": False, "gpu": True, "cuda": True, "other": False}
