"""The files for other servers have the same numbers as ours: of a small model, in Q4_1 as the bundled one."""

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks import weights
from distaff.checkpoints import open_checkpoint

from ..checkpoints.making import gguf_metadata, gguf_tensors, make_model, write_gguf


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """The file that takes the place of the bundled one."""
    model = make_model(hidden_size=64, intermediate_size=96, num_hidden_layers=4, tie_word_embeddings=True)
    path = write_gguf(
        tmp_path / "tiny.Q4_1.gguf",
        gguf_metadata(model),
        gguf_tensors(model),
        gguf.GGMLQuantizationType.Q4_1,
    )
    monkeypatch.setattr(weights, "resolve", lambda _: path)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    return path


@pytest.mark.parametrize(("kind", "largest"), [("F32", 0.0), ("Q8_0", 1 / 200)])
def test_a_gguf_holds_the_same_numbers(shipped, kind, largest):
    """In F32 bit for bit; in Q8_0 each within a rounding step of its block's largest."""
    ours, theirs = (open_checkpoint(where) for where in (shipped, weights.gguf_file(kind)))
    assert theirs.config == ours.config
    other = dict(theirs.tensors())
    for name, values in ours.tensors():
        assert np.abs(other[name] - values).max() <= largest * np.abs(values).max(), name


def test_a_folder_for_transformers_holds_the_same_numbers(shipped):
    """With Hugging Face's names, linears transposed as it stores them."""
    tensors = load_file(weights.transformers_folder() / "model.safetensors")
    ours = dict(open_checkpoint(shipped).tensors())
    assert np.array_equal(tensors["model.embed_tokens.weight"], ours["embed"])
    assert np.array_equal(tensors["model.layers.3.mlp.up_proj.weight"], ours["layers.3.feed_forward.up"].T)
    assert len(tensors) == len(ours)
