"""Levelled channels: the same model, and 4 bits that lose less of it."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.checkpoints import load_parameters, open_checkpoint
from distaff.checkpoints.quantizing.levelling import levelled
from distaff.model.parameters import parameter_shapes
from distaff.model.quantize import dequantize_groups, quantize_groups4
from distaff.runtime.scorer import Scorer

from ..making import make_model, save_folder

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "biased": dict(mlp_bias=True, tie_word_embeddings=True),
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
}
DOWN, UP = "layers.1.feed_forward.down", "layers.1.feed_forward.up"


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder in which channels of down are uneven."""
    name: str = request.param
    model = make_model("mixtral" if name == "mixtral" else "llama", **MODELS[name])
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 0.25 * parameter.data.new_empty(parameter.shape[-1]).uniform_(0.1, 3)
    return save_folder(tmp_path_factory.mktemp(name), model)


def test_it_is_the_same_model(folder: Path) -> None:
    """The same parameters in the same order give the same logits, though ups and downs differ."""
    checkpoint = open_checkpoint(folder)
    wide = load_parameters(checkpoint, np.float32)
    tensors = levelled(checkpoint.tensors(), lambda down: False)
    other = {name: jnp.asarray(values) for name, values in tensors}
    assert list(other) == list(parameter_shapes(checkpoint.config))
    changed = {name for name in other if not np.array_equal(other[name], wide[name])}
    assert {name.split(".")[-1].removesuffix("_bias") for name in changed} == {"up", "down"}
    tokens = list(range(3, 60))
    expected = Scorer.of(checkpoint.config, wide).logits(tokens)
    found = Scorer.of(checkpoint.config, other).logits(tokens)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_what_is_exact_stays(folder: Path) -> None:
    """To the bit; a layer's down is asked for once."""
    checkpoint, asked = open_checkpoint(folder), []

    def exact(down: np.ndarray) -> bool:
        asked.append(down.shape)
        return True

    for (name, values), (other, expected) in zip(
        levelled(checkpoint.tensors(), exact), checkpoint.tensors(), strict=True
    ):
        assert name == other
        np.testing.assert_array_equal(values, expected)
    assert asked == [parameter_shapes(checkpoint.config)[DOWN]] * checkpoint.config.layers


def test_massive_activations_lose_less() -> None:
    """A channel with an activation far above the others' has one weight far above the others, too: that is
    how trained models have them. Its other weights are then rounded more finely."""
    rng = np.random.default_rng(0)
    up, down = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 256), (256, 64)))
    x = rng.standard_normal((50, 64)).astype(np.float32)
    up[:, 7] *= 100
    down[7, 5] = 50

    def error(up: np.ndarray, down: np.ndarray) -> float:
        rounded = np.asarray(dequantize_groups(*quantize_groups4(jnp.asarray(down))))
        return float(np.square(x @ up @ (rounded - down)).sum())

    after = dict(levelled([(UP, up), (DOWN, down)], lambda down: False))
    assert error(after[UP], after[DOWN]) < 0.5 * error(up, down)
