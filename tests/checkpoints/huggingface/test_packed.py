"""Quantised folders: what is loaded is what was packed, and logits are those of transformers with it."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from distaff.checkpoints import load_parameters, open_checkpoint
from distaff.model.parameters import is_linear, kind_of, main_kind, parameter_shapes, stored_type
from distaff.model.quantize import dequantize_groups
from distaff.runtime.scorer import Scorer

from .formats import FORMATS
from .packing import Folders, write_folders

Values = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folders(name: str, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_folders(tmp_path_factory.mktemp(name), FORMATS[name])


def dequantised(found: Values) -> Values:
    """The weights that are served, widened in our own arithmetic."""
    wide = {}
    for name in (name for name in found if not name.endswith(("_scale", "_low"))):
        scale, low = found.get(f"{name}_scale"), found.get(f"{name}_low")
        wide[name] = found[name].astype(np.float32)
        if scale is not None and scale.dtype == np.float16:
            parts = (found[name], scale, low)
            wide[name] = np.asarray(
                dequantize_groups(*(None if p is None else jnp.asarray(p) for p in parts))
            )
        elif scale is not None:
            wide[name] *= scale[None, :] if scale.ndim == 1 else np.repeat(scale, 128, axis=0)
    return wide


def test_what_is_served_is_what_was_packed(name: str, folders: Folders) -> None:
    """Kinds, types and order; values to the bit, except where zeros are drawn and where they are rounded.

    A low is at most 10 steps and is rounded to f16, half a unit in 2^10 of it; a scale may be rounded too,
    and is taken at most 15 times. A second rounding to 8 bits is half of a 127th of a group's largest value.
    """
    form, checkpoint = FORMATS[name], open_checkpoint(folders.packed)
    assert main_kind(checkpoint.quantization) == form.kind
    shapes = parameter_shapes(checkpoint.config, checkpoint.quantization)
    found = dict(checkpoint.tensors())
    assert {name: values.shape for name, values in found.items()} == shapes and list(found) == list(shapes)
    assert checkpoint.nbytes == sum(values.nbytes for values in found.values())
    expected = dict(open_checkpoint(folders.wide).tensors())
    for name, values in dequantised(found).items():
        kind = kind_of(name, checkpoint.quantization) if is_linear(name) else None
        assert kind == (form.kind if is_linear(name) and name != "head" else None)
        assert found[name].dtype.name == (stored_type(name, checkpoint.quantization) or "float32")
        if not form.exact and kind:
            assert np.abs(values - expected[name]).max() <= 0.51 / 127 * np.abs(expected[name]).max()
        elif form.zeros and kind:
            step = np.abs(expected[name]).max() / 8
            assert np.abs(values - expected[name]).max() <= (10 + 15) * 2.0**-11 * step
        else:
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_none_widens_to_the_weights_themselves(name: str, folders: Folders) -> None:
    checkpoint = open_checkpoint(folders.packed, "none")
    assert checkpoint.quantization is None
    expected, found = dict(open_checkpoint(folders.wide).tensors()), dict(checkpoint.tensors())
    assert found.keys() == expected.keys()
    assert checkpoint.nbytes == sum(values.nbytes for values in found.values())
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_logits_are_those_of_transformers(name: str, folders: Folders) -> None:
    """transformers has the weights as f32. Here rows are rounded to 8 bits, by groups of 32 or by tokens: an
    error of up to 0.7 % of their deviation in each product, and those of 14 add up; zeros that are not in the
    middle give weights a mean, which adds to it. Values in another order are off by 100 %. Wide weights and
    those of fp8 have the errors of f32 alone."""
    tokens = np.random.default_rng(3).integers(0, 320, 24).tolist()
    model = transformers.AutoModelForCausalLM.from_pretrained(folders.wide)
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    checkpoint = open_checkpoint(folders.packed)
    found = Scorer.of(checkpoint.config, load_parameters(checkpoint, "float32")).logits(tokens)
    error = np.sqrt(np.square(found - expected).mean()) / expected.std()
    exact = (FORMATS[name].kind or "fp8").startswith("fp8")
    assert error < (1e-4 if exact else 0.06)
