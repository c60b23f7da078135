"""int8 on loading: the same model rotated, the same rule on host and device, int8 stores."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.checkpoints import CheckpointError, convert, load_parameters, open_checkpoint
from distaff.checkpoints.quantizing.quantized import quantize_host, rotated
from distaff.checkpoints.quantizing.rotation import Rotation
from distaff.model.parameters import is_linear, parameter_shapes
from distaff.model.quantize import quantize, quantize_weight
from distaff.model.sharding import create_mesh
from distaff.runtime.scorer import Scorer

from ..making import make_model, save_folder

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": dict(hidden_size=72, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True),
    "biased": dict(attention_bias=True, mlp_bias=True),
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
}
TOKENS = list(range(3, 60))


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory) -> Path:
    """A Hugging Face folder with uneven norms, so that folding them matters."""
    name: str = request.param
    model = make_model("mixtral" if name == "mixtral" else "llama", **MODELS[name])
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 0.25
    return save_folder(tmp_path_factory.mktemp(name), model)


@given(st.sampled_from([1, 2, 9, 64, 72, 96, 576, 4096]), st.integers(0, 2**31))
def test_a_rotation_keeps_lengths_and_angles(size, seed):
    """It is orthogonal: a product does not change if both sides are rotated."""
    x, y = np.random.default_rng(seed).normal(size=(2, 3, size)).astype(np.float32)
    rotation = Rotation(size)
    products = rotation.apply(x, -1) @ rotation.apply(y.T, -2)
    np.testing.assert_allclose(products, x @ y.T, atol=1e-4 * size**0.5)


def test_an_outlier_is_spread_over_all_channels():
    """One channel that is a hundred times the others gives similar values in every channel."""
    x = np.random.default_rng(0).normal(size=(8, 576)).astype(np.float32)
    x[:, 5] *= 100
    rotated_x = Rotation(576).apply(x, -1)
    assert np.abs(rotated_x).max() < 4 * np.sqrt(np.mean(rotated_x**2)) < np.abs(x).max() / 4


def test_rotated_is_the_same_model(folder):
    """Rotated and levelled, without quantisation, it gives the same logits, although almost every weight
    differs."""
    checkpoint = open_checkpoint(folder)
    parameters = load_parameters(checkpoint, np.float32)
    other = {name: jnp.asarray(values) for name, values in rotated(checkpoint.tensors(), checkpoint.config)}
    untied = replace(checkpoint.config, tied_head=False)
    assert {name: values.shape for name, values in other.items()} == parameter_shapes(untied)
    assert all((other[name] == 1).all() for name in other if name.endswith("norm"))
    expected = Scorer.of(checkpoint.config, parameters).logits(TOKENS)
    found = Scorer.of(untied, other).logits(TOKENS)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_host_and_device_round_alike(folder):
    """Every weight has the int8 values and scales that `model/quantize.py` gives for the rotated model."""
    checkpoint = open_checkpoint(folder)
    wide = {name: jnp.asarray(values) for name, values in rotated(checkpoint.tensors(), checkpoint.config)}
    expected = quantize(wide)
    found = dict(open_checkpoint(folder, "int8").tensors())
    assert (
        list(found) == list(parameter_shapes(checkpoint.config, "int8")) and found.keys() == expected.keys()
    )
    for name, values in found.items():
        if values.dtype == np.int8:
            assert np.abs(values.astype(int) - np.asarray(expected[name]).astype(int)).max() <= 1, name
        else:
            np.testing.assert_allclose(values, expected[name], rtol=1e-6)


@given(st.integers(0, 2**31), st.sampled_from([1e-30, 1.0, 1e20]))
def test_rounding_is_to_the_nearest(seed, size):
    """Each weight is at most half a scale away; a column of zeros stays zero."""
    weight = np.random.default_rng(seed).normal(size=(5, 7)).astype(np.float32) * size
    weight[:, 3] = 0
    rounded, scale = quantize_host(weight)
    assert np.abs(rounded.astype(np.float32) * scale - weight).max() <= 0.5001 * scale.max()
    assert not rounded[:, 3].any() and rounded.min() >= -127
    device = quantize_weight(jnp.asarray(weight))
    assert (np.asarray(device[0]) == rounded).all()


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_a_store_of_int8_is_loaded_as_it_is(folder, tmp_path_factory, shards):
    """A converted store is int8 without a flag, on any mesh, and gives the same as quantising on loading."""
    store = tmp_path_factory.mktemp("stores") / "int8"
    convert(folder, store, quantize="int8")
    checkpoint = open_checkpoint(store)
    assert checkpoint.quantization == "int8" and checkpoint.nbytes < 0.6 * open_checkpoint(folder).nbytes
    mesh = create_mesh(shards)
    stored = load_parameters(checkpoint, np.float32, mesh=mesh)
    direct = load_parameters(open_checkpoint(folder, "int8"), np.float32, mesh=mesh)
    assert stored.keys() == direct.keys()
    for name, values in stored.items():
        assert values.dtype == (jnp.int8 if is_linear(name) else jnp.float32), name
        assert np.array_equal(values, direct[name]) and values.sharding == direct[name].sharding, name
    assert np.isfinite(Scorer.of(checkpoint.config, stored, mesh).logits(TOKENS)).all()


def test_a_partial_store_continues_as_the_same_kind(folder, tmp_path):
    """Wide and int8 stores of one model are different stores."""
    convert(folder, tmp_path / "wide")
    with pytest.raises(CheckpointError, match="made from another source"):
        convert(folder, tmp_path / "wide", quantize="int8")
    assert open_checkpoint(folder, "int8").fingerprint != open_checkpoint(folder).fingerprint


def test_bfloat16_keeps_scales_wide(folder):
    """Computing in bfloat16, int8 weights stay int8 and their scales stay f32."""
    parameters: dict[str, jax.Array] = load_parameters(open_checkpoint(folder, "int8"), jnp.bfloat16)
    name = "layers.0.attention.q"
    assert (parameters[name].dtype, parameters[f"{name}_scale"].dtype) == (jnp.int8, jnp.float32)
    assert parameters["embed"].dtype == jnp.bfloat16
