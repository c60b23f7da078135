"""Quantised folders that are wide or packed otherwise in part; how they are opened, converted and served."""

import logging
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from distaff.checkpoints import CheckpointError, convert, load_parameters, open_checkpoint, with_own_bits
from distaff.checkpoints.config_only import read_config_only
from distaff.model.errors import ConfigError
from distaff.model.parameters import INT8, Mixed, parameter_shapes
from distaff.model.quantize import quantization_of, split_nibbles
from distaff.model.sharding import create_mesh
from distaff.runtime.scorer import Scorer

from ..making import edit_json
from .formats import FORMATS, compressed
from .packing import WEIGHTS, edit_quantization, write, write_folders

HEAD = ("head", None)
TOKENS = list(range(5, 21))


def logits(path: Path, quantize: str | None = None, devices: int = 1) -> np.ndarray:
    mesh = create_mesh(devices)
    checkpoint = with_own_bits(open_checkpoint(path, quantize), quantize, mesh)
    parameters = load_parameters(checkpoint, "float32", mesh=mesh)
    return Scorer.of(checkpoint.config, parameters, mesh).logits(TOKENS)


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The deviation of two results, in parts of one's own."""
    return float(np.sqrt(np.square(found - expected).mean()) / expected.std())


@pytest.mark.parametrize("name", ["w4a16-g32-zeros", "gptq", "awq", "w8a8"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_modules_that_are_wide_stay_wide(name: str, tied: bool, tmp_path: Path) -> None:
    """A whole layer's feed-forward, one weight of another layer, and the head; bit for bit."""
    left = ("layers.0.mlp", "layers.1.self_attn.v_proj")
    made = write_folders(tmp_path, FORMATS[name], keep_wide=left, tie_word_embeddings=tied)
    checkpoint, wide = open_checkpoint(made.packed, "as-is"), dict(open_checkpoint(made.wide).tensors())
    expected = {f"layers.0.feed_forward.{part}": None for part in ("down", "gate", "up")}
    exceptions = (HEAD, *expected.items(), ("layers.1.attention.v", None))
    assert checkpoint.quantization == Mixed(FORMATS[name].kind, exceptions)
    found = dict(checkpoint.tensors())
    for exception in (*expected, "layers.1.attention.v"):
        np.testing.assert_array_equal(found[exception], wide[exception])
    assert ("head" in found) != tied and "embed" in found
    assert apart(logits(made.packed), logits(made.wide)) < 0.06


def test_groups_of_several_bits_in_one_folder(tmp_path: Path) -> None:
    """As with `config_groups` for 4 bits and 8; found by names."""
    made = write_folders(tmp_path, FORMATS["w4a16-g128"])
    rng, name = np.random.default_rng(1), "model.layers.0.mlp.down_proj"
    eight = FORMATS["w8a16-g32"].draw(128, 256, rng)
    made.tensors.update(
        {f"{name}.{part}": values for part, values in FORMATS["w8a16-g32"].pack(eight).items()}
    )
    write(made.packed / WEIGHTS, made.tensors)
    groups = compressed("pack-quantized", num_bits=8, strategy="group", group_size=32)["config_groups"]
    groups["group_0"]["targets"] = ["re:.*layers.0.*down_proj"]
    stated = FORMATS["w4a16-g128"].config["config_groups"]["group_0"]
    edit_quantization(made.packed, config_groups={"group_1": stated, **groups})
    checkpoint = open_checkpoint(made.packed)
    assert checkpoint.quantization == Mixed("int4", (HEAD, ("layers.0.feed_forward.down", "int8-groups")))
    found = dict(checkpoint.tensors())
    name = "layers.0.feed_forward.down"
    values = found[name].astype(np.float32) * np.repeat(found[f"{name}_scale"], 32, axis=0).astype(np.float32)
    np.testing.assert_array_equal(values, eight.dequantised.T)
    assert np.isfinite(logits(made.packed)).all()


def test_a_head_of_4_bits(tmp_path: Path) -> None:
    """GPTQ's `lm_head: true`; where the head is tied it is refused."""
    form = FORMATS["gptq-zeros"]
    made = write_folders(tmp_path, form)
    drawn = form.draw(320, 128, np.random.default_rng(2))
    del made.tensors["lm_head.weight"]
    made.tensors.update({f"lm_head.{part}": values for part, values in form.pack(drawn).items()})
    write(made.packed / WEIGHTS, made.tensors)
    checkpoint = open_checkpoint(made.packed, "as-is")
    assert checkpoint.quantization == Mixed("int4", (("head", "int4"),))
    wide = load_file(made.wide / WEIGHTS) | {"lm_head.weight": drawn.dequantised}
    write(made.wide / WEIGHTS, wide)
    assert apart(logits(made.packed), logits(made.wide)) < 0.06
    edit_json(made.packed / "config.json", tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match="weight is quantised; expected wide, as it is tied"):
        open_checkpoint(made.packed)


def stacked_wide(found: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A parameter f32 `[..., D, F]`, widened."""
    scale, low = found[f"{name}_scale"].astype(np.float32), found.get(f"{name}_low")
    if scale.ndim < found[name].ndim:
        return found[name] * scale[..., None, :]
    q = found[name] if low is None else np.asarray(split_nibbles(jnp.asarray(found[name])))
    wide = q * np.repeat(scale, 32, axis=-2)
    return wide if low is None else wide + np.repeat(low.astype(np.float32), 32, axis=-2)


EXPERTS = dict(num_local_experts=3, num_experts_per_tok=2)


@pytest.mark.parametrize("name", ["w8a8", "w4a16-g128", "gptq-8", "awq"])
def test_experts_are_stacked(name: str, tmp_path: Path) -> None:
    """Those of a Mixtral, in each of their parts; they are computed so. A token whose experts have nearly
    equal scores may have another one."""
    made = write_folders(tmp_path, FORMATS[name], "mixtral", **EXPERTS)
    wide = dict(open_checkpoint(made.wide).tensors())
    for parameter, values in open_checkpoint(made.packed, "none").tensors():
        np.testing.assert_array_equal(values, wide[parameter], err_msg=parameter)
    checkpoint = open_checkpoint(made.packed, "as-is")
    assert checkpoint.quantization == Mixed(FORMATS[name].kind, (HEAD,))
    found = dict(checkpoint.tensors())
    shapes = parameter_shapes(checkpoint.config, checkpoint.quantization)
    assert {parameter: values.shape for parameter, values in found.items()} == shapes
    for parameter in (parameter for parameter in found if f"{parameter}_scale" in found):
        step = np.abs(wide[parameter]).max() / 8 if FORMATS[name].zeros else 0
        difference = np.abs(stacked_wide(found, parameter) - wide[parameter]).max()
        assert difference <= 25 * 2.0**-11 * step, parameter
    assert apart(logits(made.packed), logits(made.wide)) < 0.15


def test_one_wide_expert_makes_its_layers_experts_wide(tmp_path: Path) -> None:
    wide = ("layers.0.block_sparse_moe.experts.1.w2",)
    made = write_folders(tmp_path, FORMATS["w8a8"], "mixtral", wide, **EXPERTS)
    names = [f"layers.0.feed_forward.{part}" for part in ("down", "gate", "up")]
    checkpoint = open_checkpoint(made.packed)
    assert checkpoint.quantization == Mixed(INT8, (HEAD, *((name, None) for name in names)))
    found, expected = dict(checkpoint.tensors()), dict(open_checkpoint(made.wide).tensors())
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name])
    assert apart(logits(made.packed), logits(made.wide)) < 0.06


@pytest.mark.parametrize("name", ["gptq-zeros", "w8a8", "fp8-blocks"])
def test_a_store_of_it_is_the_same_model(name: str, tmp_path: Path) -> None:
    """Its manifest's types say which weights are packed, and how."""
    made = write_folders(tmp_path, FORMATS[name], keep_wide=("layers.1.mlp.up_proj",))
    convert(made.packed, tmp_path / "store")
    checkpoint, store = open_checkpoint(made.packed), open_checkpoint(tmp_path / "store")
    assert store.quantization == checkpoint.quantization
    found = dict(store.tensors())
    for parameter, values in checkpoint.tensors():
        assert found[parameter].dtype == values.dtype
        np.testing.assert_array_equal(found[parameter], values)
    assert quantization_of(load_parameters(store, "float32")) == checkpoint.quantization
    if checkpoint.quantization:
        asked = str(FORMATS[name].kind).removesuffix("-blocks")
        assert open_checkpoint(tmp_path / "store", asked).quantization == store.quantization


def test_what_is_asked_for_is_what_is_served(tmp_path: Path) -> None:
    """Its own kind: as it is; another one: widened, then rounded to that. Each has its fingerprint."""
    made = write_folders(tmp_path, FORMATS["awq"])
    own = open_checkpoint(made.packed)
    assert open_checkpoint(made.packed, "int4").quantization == own.quantization
    assert open_checkpoint(made.packed, "int8").quantization == INT8
    ways = [open_checkpoint(made.packed, way).fingerprint for way in ("as-is", "none", "int8")]
    assert len(set(ways)) == 3 and ways[0] == own.fingerprint
    assert read_config_only(str(made.packed)).config == own.config
    edit_quantization(made.packed, version="gemv")
    with pytest.raises(ConfigError, match="version is 'gemv'"):
        read_config_only(str(made.packed))


def test_devices_get_whole_groups_or_wide_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = write_folders(tmp_path, FORMATS["gptq"])
    checkpoint = open_checkpoint(made.packed)
    assert with_own_bits(checkpoint, None, create_mesh(2)) is checkpoint
    assert apart(logits(made.packed, devices=2), logits(made.wide)) < 0.06
    small = write_folders(tmp_path / "c", FORMATS["w4a16-channel"], intermediate_size=96)
    checkpoint = open_checkpoint(small.packed)
    with caplog.at_level(logging.INFO):
        assert with_own_bits(checkpoint, None, create_mesh(2)).quantization is None
    assert "down has 48 inputs on a device; expected a multiple of 32" in caplog.text


@pytest.mark.parametrize(
    "name, line",
    [
        ("fp8-blocks-of-96", "14 quantised weights are widened: 1,179,648 bytes in float32, not 295,"),
        (
            "gptq-ordered",
            "14 quantised weights have groups of inputs that are not consecutive, or zeros of 8 bits",
        ),
        ("gptq-8-zeros", "rounded to groups of 8 bits: 313,344 bytes, not "),
        ("w8a8-static", "activations are rounded with scales of their own, without zeros"),
        ("w8a8-shifted", "activations are rounded with scales of their own, without zeros"),
        ("fp8-tensor", "activations are not rounded; stored scales are not used"),
        ("gptq", None),
        ("w8a8", None),
        ("fp8-blocks", None),
    ],
)
def test_the_log_says_what_is_not_served_as_it_is(
    name: str, line: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = open_checkpoint(write_folders(tmp_path, FORMATS[name]).packed)
    with caplog.at_level(logging.INFO, "distaff"):
        list(checkpoint.tensors())
    assert line in caplog.text if line else not caplog.text
    assert len(caplog.records) == int(line is not None)
