"""The errors that `distaff convert --quantize` reports."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest

from distaff.checkpoints import convert, open_checkpoint
from distaff.checkpoints.quantizing.rounding import RoundingErrors
from distaff.model.parameters import is_linear

from ..making import make_model, save_folder

LINE = re.compile(r"(layers\.\d|head): weights are off by ([\d.]+)%, (\S+) most, by ([\d.]+)%")


def test_errors_are_relative_and_add_up() -> None:
    """Of two weights of a layer: 3 and 4 of 10 and 10 are 5 of 14.1."""
    errors = RoundingErrors()
    for name, off in (("layers.0.attention.q", 3.0), ("layers.0.attention.k", 4.0)):
        wide, scale = np.full((4, 4), 10.0, np.float32), np.ones(4, np.float32)
        errors.add(name, wide, {name: (wide + off).astype(np.int8), f"{name}_scale": scale})
    (line,) = errors.lines()
    assert line == "layers.0: weights are off by 35.36%, attention.k most, by 40.00%"


@pytest.mark.parametrize(("quantize", "least", "most"), [("int8", 0.3, 1.5), ("int4", 4, 12), ("fp8", 2, 3)])
@pytest.mark.parametrize("tied", [True, False])
def test_convert_reports_every_layer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, quantize: str, least: float, most: float, tied: bool
) -> None:
    """Normal weights lose about 0.7 % with 8 bits, 8 % with 4 and 2.6 % in fp8; the head has 8 bits or is
    wide. The store is the same as without the report."""
    folder = save_folder(tmp_path / "hf", make_model(tie_word_embeddings=tied))
    with caplog.at_level(logging.INFO):
        convert(folder, tmp_path / "store", quantize=quantize)
    found = {m[1]: (float(m[2]), float(m[4])) for text in caplog.messages if (m := LINE.fullmatch(text))}
    assert list(found) == ["layers.0", "layers.1", *(["head"] if quantize != "fp8" else [])]
    for layer in ("layers.0", "layers.1"):
        assert least < found[layer][0] <= found[layer][1] < most
    assert 0.1 < found.get("head", (1.0,))[0] < 1.5
    stored, rounded = open_checkpoint(tmp_path / "store"), open_checkpoint(folder, quantize)
    for (name, values), (other, expected) in zip(stored.tensors(), rounded.tensors(), strict=True):
        assert name == other
        np.testing.assert_array_equal(values, expected)


def test_nothing_is_reported_without_rounding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_folder(tmp_path / "hf", make_model())
    with caplog.at_level(logging.INFO):
        convert(folder, tmp_path / "store")
    assert not any(LINE.fullmatch(text) for text in caplog.messages)
    assert any(is_linear(name) for name, _ in open_checkpoint(tmp_path / "store").tensors())
