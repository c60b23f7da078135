"""The files for other servers have the same numbers as ours."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks import weights
from distaff.checkpoints import open_checkpoint, resolve


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of this test's files: half a gigabyte, removed after it."""
    return tmp_path_factory.mktemp("weights")


@pytest.mark.parametrize(("kind", "largest"), [("F32", 0.0), ("Q8_0", 1 / 200)])
def test_a_gguf_holds_the_same_numbers(folder, monkeypatch, kind, largest):
    """In F32 bit for bit; in Q8_0 each within a rounding step of its block's largest."""
    monkeypatch.setattr(weights, "FOLDER", folder)
    path = weights.gguf_file(kind)
    ours, theirs = (open_checkpoint(where) for where in (resolve(None), path))
    assert theirs.config == ours.config
    other = dict(theirs.tensors())
    for name, values in ours.tensors():
        assert np.abs(other[name] - values).max() <= largest * np.abs(values).max(), name
    path.unlink()


def test_a_folder_for_transformers_holds_the_same_numbers(folder, monkeypatch):
    """With Hugging Face's names, linears transposed as it stores them."""
    monkeypatch.setattr(weights, "FOLDER", folder)
    tensors = load_file(weights.transformers_folder() / "model.safetensors")
    ours = dict(open_checkpoint(resolve(None)).tensors())
    assert np.array_equal(tensors["model.embed_tokens.weight"], ours["embed"])
    assert np.array_equal(tensors["model.layers.3.mlp.up_proj.weight"], ours["layers.3.feed_forward.up"].T)
    assert len(tensors) == len(ours)
