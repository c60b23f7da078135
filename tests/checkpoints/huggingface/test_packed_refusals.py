"""Quantised folders that are damaged or do not fit: refused by name, most of them when they are opened."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.checkpoints import CheckpointError, load_parameters, open_checkpoint
from distaff.checkpoints.huggingface.tensors.integers import (
    Integers,
    inputs_first,
    packed_bytes,
    packed_rows,
    split_nibbles,
    unpack,
)
from distaff.model.errors import ConfigError

from ..making import edit_json, refuse
from .formats import FORMATS
from .packing import WEIGHTS, Tensors, edit_quantization, words, write, write_folders

DOWN = "model.layers.1.mlp.down_proj"
Change = Callable[[Tensors], object]


def packed(folder: Path, name: str, change: Change | None = None) -> Path:
    made = write_folders(folder, FORMATS[name])
    if change:
        tensors = {name: np.array(values) for name, values in made.tensors.items()}
        change(tensors)
        write(made.packed / WEIGHTS, tensors)
    return made.packed


def without(part: str) -> Change:
    return lambda tensors: tensors.pop(f"{DOWN}.{part}")


def cut(part: str, axis: int, parts: int = 2) -> Change:
    """The first half of a tensor."""

    def change(tensors: Tensors) -> None:
        name = f"{DOWN}.{part}"
        tensors[name] = np.split(tensors[name], parts, axis=axis)[0]

    return change


def typed(part: str, dtype: type) -> Change:
    return lambda tensors: tensors.update({f"{DOWN}.{part}": tensors[f"{DOWN}.{part}"].astype(dtype)})


@pytest.mark.parametrize(
    "name, change, reason",
    [
        ("w4a16-g128", without("weight_scale"), f"tensor {DOWN}.weight_scale is missing"),
        ("w4a16-g128", without("weight_packed"), f"tensor {DOWN}.weight_packed is missing"),
        ("w4a16-g32-zeros", without("weight_zero_point"), f"tensor {DOWN}.weight_zero_point is missing"),
        ("w4a16-ordered", without("weight_g_idx"), f"tensor {DOWN}.weight_g_idx is missing"),
        ("w4a16-g128", cut("weight_packed", 1), "weight_scale has shape [128, 2]; expected [128, 1]"),
        ("w4a16-g128", cut("weight_packed", 0), f"{DOWN}.weight_scale has shape [128, 2]; expected [64, 2]"),
        ("w4a16-g128", cut("weight_packed", 1, 32), "has 8 inputs; expected a multiple of group_size 128"),
        ("w4a16-channel", cut("weight_packed", 1), f"{DOWN}.weight has shape [128, 128]; expected"),
        ("w4a16-g128", typed("weight_packed", np.int64), f"{DOWN}.weight_packed is I64; expected I32"),
        ("w4a16-g128", typed("weight_scale", np.int32), "is I32; expected F32 or F16 or BF16"),
        ("gptq", without("qweight"), f"tensor {DOWN}.qweight is missing"),
        ("gptq", without("scales"), f"tensor {DOWN}.scales is missing"),
        ("gptq", without("qzeros"), f"tensor {DOWN}.qzeros is missing"),
        ("gptq-ordered", without("g_idx"), f"tensor {DOWN}.g_idx is missing"),
        ("gptq", cut("qweight", 0), f"tensor {DOWN}.scales has shape [2, 128]; expected [1, 128]"),
        ("gptq", cut("qzeros", 1), f"tensor {DOWN}.qzeros has shape [2, 8]; expected [2, 16]"),
        ("gptq", cut("g_idx", 0), f"tensor {DOWN}.g_idx has shape [128]; expected [256]"),
        ("gptq-8", cut("scales", 0), f"tensor {DOWN}.scales has shape [2, 128]; expected [4, 128]"),
        ("awq", without("scales"), f"tensor {DOWN}.scales is missing"),
        ("awq", cut("qweight", 1), f"tensor {DOWN}.scales has shape [4, 128]; expected [4, 64]"),
        ("awq", cut("qzeros", 0), f"tensor {DOWN}.qzeros has shape [2, 16]; expected [4, 16]"),
        ("w8a8", without("weight_scale"), f"tensor {DOWN}.weight_scale is missing"),
        ("w8a8", cut("weight_scale", 0), f"tensor {DOWN}.weight_scale has shape [64, 1]; expected"),
        ("w8a8", typed("weight", np.float32), f"tensor {DOWN}.weight_scale is not part"),
        ("fp8-blocks", without("weight_scale_inv"), f"{DOWN}.weight_scale_inv or weight_scale is missing"),
        ("fp8-blocks", cut("weight_scale_inv", 1), "weight_scale_inv has shape [1, 1]; expected [1, 2]"),
        ("fp8-tensor", cut("weight", 0), f"tensor {DOWN}.weight has shape [64, 256]; expected [128, 256]"),
        ("fp8-tensor", without("weight"), f"tensor {DOWN}.weight is missing"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(tmp_path: Path, name: str, change: Change, reason: str) -> None:
    """When the folder is opened."""
    refuse(packed(tmp_path, name, change), WEIGHTS, reason)


@pytest.mark.parametrize(
    "name, changes, reason",
    [
        ("gptq", {"group_size": 64}, "scales has shape ["),
        ("gptq", {"bits": 8}, "has shape ["),
        ("awq", {"group_size": 128}, "scales has shape ["),
        ("fp8-blocks", {"weight_block_size": [96, 96]}, "weight_scale_inv has shape"),
        ("gptq", {"quant_method": "aqlm"}, "quant_method 'aqlm'"),
        (
            "w8a8",
            {"config_groups": {"a": {"targets": ["Embedding"], "weights": {"num_bits": 8}}}},
            "no target",
        ),
    ],
)
def test_a_config_that_does_not_fit(tmp_path: Path, name: str, changes: dict, reason: str) -> None:
    made = packed(tmp_path, name)
    edit_quantization(made, **changes)
    refuse(made, reason)


def test_packed_weights_without_a_config(tmp_path: Path) -> None:
    made = packed(tmp_path, "gptq")
    edit_json(made / "config.json", quantization_config=None)
    refuse(made, "q_proj.weight is missing")
    made = packed(tmp_path / "int8", "w8a8")
    edit_json(made / "config.json", quantization_config=None)
    refuse(made, "weight_scale and 13 more is not part of the configured model")


@pytest.mark.parametrize(
    "name, change, reason",
    [
        ("gptq", lambda t: t[f"{DOWN}.g_idx"].sort(), None),
        ("gptq", lambda t: t[f"{DOWN}.g_idx"][::-1].sort(), "is not in order; expected desc_act to be true"),
        ("gptq-ordered", lambda t: t[f"{DOWN}.g_idx"].fill(8), "g_idx has 8 to 8; expected 0 to 7"),
        ("gptq", lambda t: t[f"{DOWN}.bias"].fill(1), f"tensor {DOWN}.bias is not zero"),
        ("gptq", lambda t: t[f"{DOWN}.scales"].fill(np.inf), f"{DOWN}.weight: a scale times its zero is inf"),
        ("gptq", lambda t: t[f"{DOWN}.scales"].fill(9000), "is 72000.0; expected at most 65504"),
    ],
)  # fmt: skip
def test_damage_that_only_values_show(tmp_path: Path, name: str, change: Change, reason: str | None) -> None:
    """When it is read."""
    checkpoint = open_checkpoint(packed(tmp_path, name, change))
    if reason is None:
        list(checkpoint.tensors())
        return
    with pytest.raises(CheckpointError) as refusal:
        list(checkpoint.tensors())
    assert reason in str(refusal.value)


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda t: t[f"{DOWN}.weight"].view(np.uint8)[3:4, 5:6].fill(0x7F), ""),
        (lambda t: t[f"{DOWN}.weight"].view(np.uint8)[3:4, 5:6].fill(0xFF), ""),
        (lambda t: t[f"{DOWN}.weight_scale"].fill(np.inf), "_scale"),
    ],
)
def test_fp8_that_is_not_a_number(tmp_path: Path, change: Change, part: str) -> None:
    """When it is loaded. e4m3 has no infinity, and two patterns of NaN."""
    name = f"layers.{DOWN.split('.')[2]}.feed_forward.down{part}"
    with pytest.raises(CheckpointError, match=f"tensor {name} holds NaN or infinity"):
        load_parameters(open_checkpoint(packed(tmp_path, "fp8-compressed", change)), "float32")


@pytest.mark.parametrize("name", ["fp8-blocks-of-96", "fp8-e5m2", "gptq-ordered", "gptq-8-zeros"])
def test_as_is_refuses_what_is_rounded_or_widened(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be kept as they are; expected --quantize none"):
        open_checkpoint(packed(tmp_path, name), "as-is")


@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([4, 8]), st.integers(0, 2**32))
def test_words_are_unpacked(rows: int, count: int, bits: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count * 32 // bits))
    np.testing.assert_array_equal(unpack(words(values, bits), bits), values)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32))
def test_the_order_in_memory_changes_no_value(outputs: int, words_each: int, seed: int) -> None:
    """Transposed in strips, or read along the inputs: the same bytes."""
    values = np.random.default_rng(seed).integers(0, 16, (outputs, 8 * words_each))
    packed = words(values, 4)
    expected = packed_bytes(packed)
    np.testing.assert_array_equal(inputs_first(expected), expected)
    assert inputs_first(expected).T.flags.c_contiguous
    np.testing.assert_array_equal(packed_rows(np.ascontiguousarray(packed.T)).T, expected)
    np.testing.assert_array_equal(split_nibbles(expected), values)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32))
def test_a_second_rounding_is_that_of_the_model(outputs: int, groups: int, seed: int) -> None:
    """Of integers whose inputs' groups are in any order."""
    from distaff.model.quantize import quantize_groups8

    rng = np.random.default_rng(seed)
    inputs = 32 * groups
    integers = Integers(
        "w", 8, rng.integers(0, 256, (outputs, inputs)).astype(np.uint8),
        rng.integers(0, 256, (outputs, groups)).astype(np.float32),
        rng.random((outputs, groups), np.float32), rng.permutation(np.arange(inputs) % groups),
    )  # fmt: skip
    q, scale = integers.parts("int8-groups")
    expected = quantize_groups8(integers.wide().T)
    np.testing.assert_array_equal(scale.T, expected[1])
    assert np.abs(q.T.astype(int) - np.asarray(expected[0], int)).max() <= 1
