"""Wide weights that round to a file's own bits."""

from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from benchmarks.quality_unrounded import UnroundedCheckpoint
from distaff.checkpoints import open_checkpoint
from distaff.model.parameters import parameter_shapes
from distaff.model.quantize import quantize_groups8

from ..checkpoints.making import gguf_metadata, gguf_tensors, make_model, write_gguf


@pytest.mark.parametrize("tied", [True, False])
def test_drawn_weights_round_to_the_file(tmp_path: Path, tied: bool) -> None:
    """By GGUF's own rounding, byte by byte, though hardly any is the stored value."""
    model = make_model(hidden_size=64, intermediate_size=96, tie_word_embeddings=tied)
    tensors, head = gguf_tensors(model), "token_embd.weight" if tied else "output.weight"
    tensors[head] = gguf.quants.quantize(tensors[head], Kind.Q8_0)
    path = write_gguf(tmp_path / "m.gguf", gguf_metadata(model), tensors, Kind.Q4_1, raw={head: Kind.Q8_0})
    file, stored = open_checkpoint(path, "as-is"), dict(open_checkpoint(path, "none").tensors())
    drawn = dict(UnroundedCheckpoint(file).tensors())
    assert {name: each.shape for name, each in drawn.items()} == parameter_shapes(file.config)
    for name in ("layers.0.attention.q", "layers.1.feed_forward.down"):
        assert np.mean(drawn[name] == stored[name]) < 0.1
        raw, again = (
            gguf.quants.quantize(np.ascontiguousarray(each[name].T), Kind.Q4_1) for each in (stored, drawn)
        )
        np.testing.assert_array_equal(again, raw)
    q, expected = (
        quantize_groups8(jnp.asarray(each["embed"].T if tied else each["head"]))[0]
        for each in (drawn, stored)
    )
    np.testing.assert_array_equal(q, expected)
