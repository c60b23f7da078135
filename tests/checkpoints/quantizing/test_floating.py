"""Checkpoints that are rounded to fp8."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.checkpoints import convert, load_parameters, open_checkpoint
from distaff.model.errors import ConfigError
from distaff.model.parameters import parameter_shapes
from distaff.model.quantize import quantize
from distaff.model.sharding import create_mesh
from distaff.runtime.scorer import Scorer

from ..making import make_model, save_folder

MODELS = {
    "untied": dict(tie_word_embeddings=False),
    "tied": dict(tie_word_embeddings=True),
    "mixtral": dict(family="mixtral"),
}


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_folder(tmp_path / "hf", make_model(**MODELS[request.param]))


def test_it_is_rounded_as_the_model_rounds(folder: Path) -> None:
    """The head and a tied embedding stay wide. XLA may divide with another last bit, which takes a number in
    the middle of two to the other one."""
    checkpoint = open_checkpoint(folder, "fp8")
    wide = {name: jnp.asarray(values) for name, values in open_checkpoint(folder).tensors()}
    found, expected = dict(checkpoint.tensors()), quantize(wide, "fp8")
    assert list(found) == list(parameter_shapes(checkpoint.config, "fp8")) and found.keys() == expected.keys()
    for name, values in found.items():
        assert values.dtype == expected[name].dtype
        if values.dtype == jnp.float8_e4m3fn:
            apart = np.abs(values.view(np.uint8).astype(int) - np.asarray(expected[name]).view(np.uint8))
            assert apart.max() <= 1 and apart.mean() < 1e-3
        else:
            np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert checkpoint.nbytes == sum(values.nbytes for values in found.values())


@pytest.mark.parametrize("shards", [1, 2])
def test_a_store_keeps_fp8(folder: Path, shards: int, tmp_path: Path) -> None:
    """It needs no flag, is loaded on any mesh, and gives what rounding on loading gives."""
    store, mesh = tmp_path / "store", create_mesh(shards)
    convert(folder, store, quantize="fp8")
    checkpoint = open_checkpoint(store)
    assert checkpoint.quantization == "fp8"
    assert open_checkpoint(store, "fp8").fingerprint == checkpoint.fingerprint
    stored = load_parameters(checkpoint, np.float32, mesh=mesh)
    direct = load_parameters(open_checkpoint(folder, "fp8"), np.float32, mesh=mesh)
    for name, values in stored.items():
        assert values.dtype == direct[name].dtype and values.sharding == direct[name].sharding
        np.testing.assert_array_equal(values, direct[name], err_msg=name)
    assert np.isfinite(Scorer.of(checkpoint.config, stored, mesh).logits(list(range(3, 60)))).all()
    with pytest.raises(ConfigError, match="its weights are fp8; expected int8 or wide ones"):
        open_checkpoint(store, "int8")
