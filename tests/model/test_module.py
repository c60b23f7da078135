"""The model as a Flax module: logits of the served model, gradients of the reference, padding, meshes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.model.config import ModelConfig, MoEConfig, RopeScaling
from distaff.model.errors import ConfigError
from distaff.model.module import CausalLM
from distaff.model.sharding import create_mesh, place_all
from distaff.model.transformer import random_parameters
from distaff.runtime.scorer import Scorer

from .reference import build_reference, parameters_from

LLAMA = ModelConfig(
    vocabulary=64,
    layers=2,
    width=32,
    feed_forward=48,
    heads=4,
    kv_heads=2,
    head_size=8,
    context=64,
    attention_bias=True,
    feed_forward_bias=True,
)
MIXTRAL = replace(
    LLAMA,
    attention_bias=False,
    feed_forward_bias=False,
    moe=MoEConfig(experts=4, experts_per_token=2),
)
ODD = replace(
    MIXTRAL,
    window=3,
    full_layers=(1,),
    unrotated_layers=(0,),
    head_norms=True,
    tied_head=True,
    attention_scale=0.2,
    residual_scale=0.7,
    embedding_scale=3.0,
    logits_divisor=2.0,
    rope=RopeScaling(kind="dynamic", factor=2.0, original_context=6),
)
CONFIGS = {"llama": LLAMA, "mixtral": MIXTRAL, "odd": ODD}
SMALL = 2e-5
"""The largest difference from another order of sums, relative to the largest value."""


@jax.jit
def logits_of(model: CausalLM, tokens_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
    return model(tokens_BT, lengths_B)


def drawn(config: ModelConfig, seed: int = 0) -> CausalLM:
    """A model whose every part changes the logits."""
    parameters = random_parameters(config, seed, jnp.float32)
    return CausalLM(config, {name: w * 10 if w.ndim > 1 else w for name, w in parameters.items()})


def tokens_of(rows: int, size: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 64, (rows, size)), jnp.int32)


def mean_loss(model: CausalLM, tokens_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Cross entropy of each token after the first, as transformers computes it."""
    logits_BTV = model(tokens_BT, lengths_B)[:, :-1]
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BT[:, 1:])
    counted_BT = jnp.arange(1, tokens_BT.shape[1])[None] < lengths_B[:, None]
    return jnp.where(counted_BT, losses_BT, 0.0).sum() / counted_BT.sum(dtype=jnp.float32)


def assert_near(found: jax.Array | np.ndarray, expected: jax.Array | np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=SMALL * np.abs(expected).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_served_model(name: str):
    """Of each sequence of a batch, up to its length."""
    model, tokens_BT, lengths = drawn(CONFIGS[name]), tokens_of(2, 12), (12, 7)
    logits_BTV = logits_of(model, tokens_BT, jnp.array(lengths))
    assert logits_BTV.shape == (2, 12, 64) and logits_BTV.dtype == jnp.float32
    assert np.isfinite(logits_BTV).all()
    scorer = Scorer.of(model.config, model.parameters())
    for row, length in enumerate(lengths):
        assert_near(logits_BTV[row, :length], scorer.logits(tokens_BT[row, :length].tolist()))


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_gradients_are_those_of_transformers(name: str):
    """Of the mean loss of a padded batch, by every parameter."""
    config = CONFIGS[name]
    reference = build_reference(config, seed=1)
    model = CausalLM(config, parameters_from(reference, config))
    tokens_BT, lengths_B = tokens_of(2, 9, seed=2), jnp.array([9, 6])
    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(model, tokens_BT, lengths_B)

    ids, mask = torch.tensor(np.asarray(tokens_BT, np.int64)), torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    labels = torch.where(mask.bool(), ids, -100)
    reference.requires_grad_(True)
    expected = reference(input_ids=ids, attention_mask=mask, labels=labels).loss
    expected.backward()
    for weight in reference.parameters():
        assert weight.grad is not None
        weight.data = weight.grad
    reference.requires_grad_(False)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    theirs = parameters_from(reference, config)
    for each, gradient in gradients.parameters().items():
        assert np.abs(theirs[each]).max() > 0, each
        assert_near(gradient, theirs[each])


@settings(max_examples=20)
@given(st.lists(st.integers(1, 8), min_size=3, max_size=3), st.integers(0, 1000), st.sampled_from([*CONFIGS]))
def test_padding_has_no_influence(lengths: list[int], seed: int, name: str):
    """On logits and gradients: only which tokens belong to a sequence counts, not what comes after."""
    model = drawn(CONFIGS[name])
    plain_BT, lengths_B = tokens_of(3, 8, seed), jnp.array(lengths)
    real_BT = jnp.arange(8)[None] < lengths_B[:, None]
    other_BT = jnp.where(real_BT, plain_BT, tokens_of(3, 8, seed + 1))
    found, expected = (logits_of(model, tokens, lengths_B) for tokens in (other_BT, plain_BT))
    real = np.asarray(real_BT)
    np.testing.assert_array_equal(np.asarray(found)[real], np.asarray(expected)[real])
    for row, length in enumerate(lengths):
        alone = logits_of(model, plain_BT[row : row + 1], jnp.array([length]))
        assert_near(found[row, :length], alone[0, :length])


def test_it_is_an_ordinary_module():
    """It is split and merged, called by `nnx.jit`, and trained by an optimizer."""
    model, tokens_BT, lengths_B = drawn(MIXTRAL), tokens_of(4, 8), jnp.full(4, 8)
    expected = model(tokens_BT)
    graph, state = nnx.split(model)
    np.testing.assert_array_equal(nnx.merge(graph, state)(tokens_BT), expected)
    assert_near(nnx.jit(lambda model: model(tokens_BT))(model), expected)

    @nnx.jit
    def train(model: CausalLM, optimizer: nnx.Optimizer) -> jax.Array:
        loss, gradients = nnx.value_and_grad(mean_loss)(model, tokens_BT, lengths_B)
        optimizer.update(model, gradients)
        return loss

    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        losses = [float(train(model, optimizer)) for _ in range(10)]
    assert losses[-1] < 0.5 * losses[0]
    assert_near(logits_of(model, tokens_BT, lengths_B), model(tokens_BT))


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_mesh_computes_the_same(name: str):
    """Loss and gradients, with parameters that are divided."""
    config = CONFIGS[name]
    alone, tokens_BT, lengths_B = drawn(config), tokens_of(2, 9), jnp.array([9, 5])
    mesh = create_mesh(2)
    model = CausalLM(config, place_all(alone.parameters(), config, mesh))
    step = jax.jit(jax.value_and_grad(mean_loss))
    loss, gradients = step(model, tokens_BT, lengths_B)
    expected_loss, expected = step(alone, tokens_BT, lengths_B)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for each, gradient in gradients.parameters().items():
        assert_near(np.asarray(gradient), expected.parameters()[each])
    assert not all(values.is_fully_replicated for values in model.parameters().values())


def test_wrong_parameters_are_refused():
    """By name, with what was found and expected."""
    parameters = dict(random_parameters(LLAMA, 0, jnp.float32))
    with pytest.raises(ConfigError, match=r"norm is of the shape \[3\]; expected the shape \[32\]"):
        CausalLM(LLAMA, parameters | {"norm": jnp.ones(3)})
    with pytest.raises(ConfigError, match=r"parameter other is .*; expected no such parameter"):
        CausalLM(LLAMA, parameters | {"other": jnp.ones(3)})
    del parameters["head"]
    with pytest.raises(ConfigError, match=r"parameter head is missing"):
        CausalLM(LLAMA, parameters)
