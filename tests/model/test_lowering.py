"""The model lowers for TPU and CUDA on a machine that has neither: nothing in it is for one platform alone.

Lowering runs every rule of every operation for the platform named; it stops short of that platform's
compiler.
"""

import jax
import jax.numpy as jnp
import pytest

from distaff.model.cache import Batch, Tiles, create_cache
from distaff.model.config import ModelConfig, MoEConfig, RopeScaling
from distaff.model.parameters import parameter_shapes
from distaff.model.transformer import Skeleton

TOKENS, ROWS, COLUMNS, TILES = 128, 8, 4, 10
SIZES = dict(vocabulary=256, layers=2, width=128, feed_forward=256, heads=4, kv_heads=2, head_size=64)
MODELS = {
    "llama": ModelConfig(**SIZES, context=512, tied_head=True),
    "dynamic-window": ModelConfig(
        **SIZES,
        context=512,
        window=100,
        attention_bias=True,
        feed_forward_bias=True,
        rope=RopeScaling(kind="dynamic", factor=2.0, original_context=64),
    ),
    "mixtral": ModelConfig(**SIZES, context=512, moe=MoEConfig(experts=4, experts_per_token=2)),
}


def integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def abstract_batch(kind: str) -> Batch:
    """A batch of rows alone, or one with tiles."""
    tokens = ROWS if kind == "rows" else TOKENS
    names = ("start_C", "length_C", "row_C")
    tiles = Tiles(**{name: integers(TILES) for name in names}, count=integers())
    return Batch(
        positions_T=integers(tokens),
        lengths_T=integers(tokens),
        slots_T=integers(tokens),
        tables_BM=integers(ROWS, COLUMNS),
        starts_R=integers(ROWS + 1),
        rows=integers(),
        singles_B=integers(ROWS),
        tiles=None if kind == "rows" else tiles,
    )


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["rows", "tiles"])
@pytest.mark.parametrize("name", MODELS)
def test_step_lowers_for_accelerators(name: str, kind: str, dtype: str, platform: str) -> None:
    """A step of rows and a step with tiles lower in both dtypes, down to the logits."""
    config, batch, width = MODELS[name], abstract_batch(kind), jnp.dtype(dtype)
    skeleton = Skeleton.of(config)
    shapes = {name: jax.ShapeDtypeStruct(s, width) for name, s in parameter_shapes(config).items()}
    cache = jax.eval_shape(lambda: create_cache(config, 32, 64, width))

    def step(leaves, cache, tokens_T, batch):
        model = skeleton.merge(leaves)
        hidden_TD, cache = model(tokens_T, cache, batch)
        return model.logits(hidden_TD), cache

    traced = jax.jit(step).trace(skeleton.flatten(shapes), cache, batch.positions_T, batch)
    lowered = traced.lower(lowering_platforms=(platform,))
    logits, cache_out = lowered.out_info
    assert logits.shape == (batch.positions_T.shape[0], config.vocabulary) and logits.dtype == jnp.float32
    assert [(pool.shape, pool.dtype) for pool in cache_out] == [(pool.shape, pool.dtype) for pool in cache]
