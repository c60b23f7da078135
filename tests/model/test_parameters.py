"""The list of parameters, the module, and the flat tuple between them; and what the pool stores."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distaff.model.cache import create_cache, page_bytes, write_pages
from distaff.model.config import ModelConfig, MoEConfig
from distaff.model.kernels.registry import choose
from distaff.model.kernels.zeros import zeros
from distaff.model.parameters import Quantization, parameter_shapes
from distaff.model.target import Target
from distaff.model.transformer import Skeleton, Transformer, random_parameters

F32 = jnp.dtype("float32")


def small(*, layers: int = 2, **options: object) -> ModelConfig:
    sizes = dict(vocabulary=11, width=6, feed_forward=10, heads=4, kv_heads=2, head_size=8, context=32)
    return ModelConfig(**sizes, layers=layers, **options)


VARIANTS = [
    small(tied_head=tied, attention_bias=attention, feed_forward_bias=feed_forward)
    for tied, attention, feed_forward in itertools.product([False, True], repeat=3)
]


MIXTURE = small(moe=MoEConfig(experts=4, experts_per_token=2))


def module_shapes(config: ModelConfig, target: Target | None = None) -> dict[str, tuple[int, ...]]:
    """The parameters of the NNX module itself, by path."""
    module = nnx.eval_shape(lambda: Transformer(config, target, dtype=F32))
    found = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): param.shape for path, param in found}


@pytest.mark.parametrize("config", [*VARIANTS, small(layers=12), MIXTURE], ids=lambda c: f"{c.layers} layers")
def test_list_equals_module(config: ModelConfig) -> None:
    """The list that readers and the store use equals the module's parameters, names and shapes."""
    assert parameter_shapes(config) == module_shapes(config)
    assert parameter_shapes(config, "int8") == module_shapes(config, Target(quantization="int8"))


@pytest.mark.parametrize("quantization", ["int4", "int8-groups", "fp8", "fp8-blocks"])
@pytest.mark.parametrize("config", [*VARIANTS, MIXTURE], ids=str)
def test_list_equals_module_in_groups_and_blocks(config: ModelConfig, quantization: Quantization) -> None:
    config = replace(config, width=128, feed_forward=256, head_size=32)
    assert parameter_shapes(config, quantization) == module_shapes(config, Target(quantization=quantization))


@pytest.mark.parametrize("config", [*VARIANTS, small(layers=12), MIXTURE], ids=lambda c: f"{c.layers} layers")
def test_flat_tuple_round_trip(config: ModelConfig) -> None:
    """Every parameter is in the module under its own name, also with more than ten layers. Portable kernels
    read it as it is."""
    shapes, skeleton = parameter_shapes(config), Skeleton.of(config, Target(kernels=choose("other")))
    assert sorted(skeleton.names) == sorted(shapes)
    numbered = {name: jnp.full(shape, i, F32) for i, (name, shape) in enumerate(shapes.items())}
    module = skeleton.merge(skeleton.flatten(dict(numbered)))
    for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        number = numbered[".".join(map(str, path))].ravel()[0]
        assert (param[...] == number).all(), path


def test_missing_parameter_is_an_error() -> None:
    """A mapping without one of the names is not accepted as a model."""
    config = small(tied_head=True)
    parameters = random_parameters(config, 0, F32)
    del parameters["layers.1.attention.k"]
    with pytest.raises(KeyError, match=r"layers\.1\.attention\.k"):
        Skeleton.of(config).flatten(parameters)


def test_random_parameters_have_listed_shapes_and_repeat() -> None:
    """Random parameters are all the listed ones, in the requested dtype, the same for the same seed."""
    config = small(attention_bias=True)
    first, again = (random_parameters(config, 5, jnp.dtype("bfloat16")) for _ in range(2))
    assert {name: x.shape for name, x in first.items()} == parameter_shapes(config)
    assert {x.dtype for x in first.values()} == {jnp.dtype("bfloat16")}
    assert all((first[name] == again[name]).all() for name in first)
    other = random_parameters(config, 6, jnp.dtype("bfloat16"))
    assert (first["layers.0.attention.q"] != other["layers.0.attention.q"]).any()
    assert (first["layers.0.attention.q"] != first["layers.1.attention.q"]).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pool_stays_finite(dtype: str) -> None:
    """NaN and infinities of an overflowed row never get into the pool that the next sequence uses."""
    (pool,) = create_cache(small(layers=1), 3, 4, jnp.dtype(dtype), zeros)
    bad_TKH = jnp.asarray([np.nan, np.inf, -np.inf, 1.0], dtype)[:, None, None] * jnp.ones((4, 2, 8), dtype)
    entries_T = jnp.asarray([0, 5, 6, 7])
    written = jax.jit(write_pages)(pool, bad_TKH, bad_TKH, entries_T)
    assert jnp.isfinite(written).all()
    assert (written.reshape(12, -1)[7] == 1.0).all()


def test_write_pages_changes_its_entries_only() -> None:
    """Keys and values are adjacent in their entries; every other entry is unchanged, also for an index
    that is too high."""
    (pool,) = create_cache(small(layers=1), 3, 4, F32, zeros)
    k_TKH = 1.0 + jnp.arange(32, dtype=F32).reshape(2, 2, 8)
    flat = np.asarray(write_pages(pool - 9, k_TKH, -k_TKH, jnp.asarray([6, 99]))).reshape(12, 2, 2, 8)
    np.testing.assert_array_equal(flat[6], np.stack([k_TKH[0], -k_TKH[0]], axis=1))
    assert (np.delete(flat, 6, axis=0) == -9).all()


def test_page_bytes_equal_the_cache() -> None:
    """The bytes of a page are those that a cache really has."""
    for dtype in (F32, jnp.dtype("bfloat16")):
        config = small(layers=3)
        assert page_bytes(config, 4, dtype) * 7 == sum(
            pool.nbytes for pool in create_cache(config, 7, 4, dtype, zeros)
        )
