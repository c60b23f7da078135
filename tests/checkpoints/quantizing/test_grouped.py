"""Weights in groups: a GGUF's own bits, and any checkpoint rounded to 4 bits."""

import logging
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from distaff.checkpoints import convert, load_parameters, open_checkpoint, with_own_bits
from distaff.checkpoints.checkpoint import Checkpoint
from distaff.checkpoints.gguf.gguf_file import GGUFFile
from distaff.checkpoints.quantizing.levelling import levelled
from distaff.model.errors import ConfigError
from distaff.model.kernels import native_library
from distaff.model.parameters import Mixed, kind_of, main_kind, parameter_shapes, stored_type
from distaff.model.quantize import dequantize_groups, quantize
from distaff.model.sharding import create_mesh, place_all
from distaff.runtime.scorer import Scorer

from ..making import gguf_experts, gguf_metadata, gguf_tensors, make_model, save_folder, write_gguf

SIZES = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)
TIED = {"untied": False, "tied": True}
Values = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=TIED)
def model(request: pytest.FixtureRequest):
    return make_model(tie_word_embeddings=TIED[request.param], **SIZES)


def wide_and_levelled(path: Path) -> dict[str, jax.Array]:
    """What `--quantize int4` rounds, if the file's weights are not rounded yet."""
    tensors = levelled(open_checkpoint(path).tensors(), lambda down: False)
    return {name: jnp.asarray(values) for name, values in tensors}


def write(folder: Path, model, kind: Kind, other: dict[str, Kind] | None = None) -> Path:
    """A GGUF with weights of one type, except some."""
    tensors = gguf_tensors(model)
    for name, its_own in (other or {}).items():
        tensors[name] = gguf.quants.quantize(tensors[name], its_own)
    return write_gguf(folder / "m.gguf", gguf_metadata(model), tensors, kind, raw=other)


def head_of(model) -> str:
    return "token_embd.weight" if model.config.tie_word_embeddings else "output.weight"


def widened(found: Values, name: str) -> np.ndarray:
    low = found.get(f"{name}_low")
    parts = found[name], found[f"{name}_scale"], low
    return np.asarray(dequantize_groups(*(None if part is None else jnp.asarray(part) for part in parts)))


def read_as_is(path: Path, kind: Kind) -> tuple[Checkpoint, Values, Values]:
    """A file of one type with its own bits, its parameters, and those of the widened file."""
    wide, checkpoint = dict(open_checkpoint(path).tensors()), open_checkpoint(path, "as-is")
    assert checkpoint.quantization == ("int8-groups" if kind == Kind.Q8_0 else "int4")
    found = dict(checkpoint.tensors())
    shapes = parameter_shapes(checkpoint.config, checkpoint.quantization)
    assert {name: values.shape for name, values in found.items()} == shapes and list(found) == list(shapes)
    assert checkpoint.nbytes == sum(values.nbytes for values in found.values())
    return checkpoint, found, wide


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_a_file_is_read_with_its_own_bits(model, kind: Kind, tmp_path: Path) -> None:
    """Widened, they are to the bit what the file gives as f32: no second rounding."""
    path = write(tmp_path, model, kind, {head_of(model): Kind.Q8_0})
    checkpoint, found, wide = read_as_is(path, kind)
    for name, values in found.items():
        assert values.dtype.name == (stored_type(name, checkpoint.quantization) or "float32")
        if f"{name}_scale" in found:
            expected = wide["embed"].T if name == "head" and "head" not in wide else wide[name]
            np.testing.assert_array_equal(widened(found, name), expected, err_msg=name)
        elif not name.endswith(("_scale", "_low")):
            np.testing.assert_array_equal(values, wide[name])
    assert checkpoint.fingerprint != open_checkpoint(path).fingerprint


def test_a_head_of_another_type_gets_8_bits(model, tmp_path: Path) -> None:
    path = write(tmp_path, model, Kind.Q4_0, {head_of(model): Kind.Q5_1})
    wide, found = dict(open_checkpoint(path).tensors()), dict(open_checkpoint(path, "as-is").tensors())
    head = wide["head"] if "head" in wide else wide["embed"].T
    np.testing.assert_allclose(widened(found, "head"), head, atol=np.abs(head).max() / 250)


def test_a_file_of_wide_weights_is_read_as_it_is(model, tmp_path: Path) -> None:
    assert open_checkpoint(write(tmp_path, model, Kind.F16), "as-is").quantization is None


def test_a_type_that_would_be_rounded_is_refused(model, tmp_path: Path) -> None:
    path = write(tmp_path, model, Kind.Q4_0, {"blk.0.ffn_up.weight": Kind.Q5_0})
    with pytest.raises(
        ConfigError, match="are of Q4_0, Q5_0; expected only Q4_0, Q4_1, Q4_K, Q8_0, to keep their bits"
    ):
        open_checkpoint(path, "as-is")


def test_types_of_several_bits_are_kept_side_by_side(
    model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """4 and 8 bits and wide weights to the bit; 5 bits rounded to 8, which a line of the log says."""
    types = {"ffn_up": Kind.Q8_0, "attn_q": Kind.F16, "ffn_down": Kind.Q5_1}
    path = write(tmp_path, model, Kind.Q4_1, {f"blk.0.{name}.weight": kind for name, kind in types.items()})
    checkpoint = GGUFFile(path).as_is()
    up, q, down = "layers.0.feed_forward.up", "layers.0.attention.q", "layers.0.feed_forward.down"
    assert checkpoint.quantization == Mixed("int4", ((q, None), (down, "int8-groups"), (up, "int8-groups")))
    wide = dict(open_checkpoint(path, "none").tensors())
    with caplog.at_level(logging.INFO):
        found = dict(checkpoint.tensors())
    assert "m.gguf: 1 linear weights are rounded to groups of 8 bits, which are of Q5_1" in caplog.text
    np.testing.assert_array_equal(found[q], wide[q])
    np.testing.assert_array_equal(widened(found, up), wide[up])
    np.testing.assert_allclose(widened(found, down), wide[down], atol=np.abs(wide[down]).max() / 250)
    assert checkpoint.nbytes == sum(values.nbytes for values in found.values())
    parameters = load_parameters(checkpoint, np.float32)
    assert np.isfinite(Scorer.of(checkpoint.config, parameters).logits([3, 1, 4])).all()


def test_any_checkpoint_is_rounded_to_4_bits(model, tmp_path: Path) -> None:
    """As `model/quantize.py` does, with levelled channels; a tied embedding is read out of the head."""
    folder = save_folder(tmp_path / "hf", model)
    checkpoint = open_checkpoint(folder, "int4")
    found, expected = dict(checkpoint.tensors()), quantize(wide_and_levelled(folder), "int4")
    assert list(found) == list(parameter_shapes(checkpoint.config, "int4"))
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert checkpoint.nbytes == sum(values.nbytes for values in found.values())


def test_weights_that_have_4_bits_already_lose_nothing(model, tmp_path: Path) -> None:
    """Their channels are not levelled, because the steps would no longer fit."""
    path = write(tmp_path, model, Kind.Q4_1, {head_of(model): Kind.Q8_0})
    wide, found = dict(open_checkpoint(path, "none").tensors()), dict(open_checkpoint(path, "int4").tensors())
    for name in (name for name in found if f"{name}_scale" in found and name != "head"):
        np.testing.assert_allclose(
            widened(found, name), wide[name], atol=1e-3 * np.abs(wide[name]).max(), err_msg=name
        )


@pytest.mark.parametrize("shards", [1, 2])
def test_a_store_keeps_groups(model, shards: int, tmp_path: Path) -> None:
    """A converted store needs no flag, is loaded on any mesh, and gives what rounding on loading gives."""
    folder, store = save_folder(tmp_path / "hf", model), tmp_path / "store"
    convert(folder, store, quantize="int4")
    checkpoint, mesh = open_checkpoint(store), create_mesh(shards)
    assert checkpoint.quantization == "int4"
    assert open_checkpoint(store, "int4").fingerprint == checkpoint.fingerprint
    stored = load_parameters(checkpoint, np.float32, mesh=mesh)
    direct = load_parameters(open_checkpoint(folder, "int4"), np.float32, mesh=mesh)
    for name, values in stored.items():
        assert (values == direct[name]).all() and values.sharding == direct[name].sharding, name
    logits: jax.Array = Scorer.of(checkpoint.config, stored, mesh).logits(list(range(3, 60)))
    assert np.isfinite(logits).all()
    with pytest.raises(ConfigError, match="its weights are int4; expected int8 or wide ones"):
        open_checkpoint(store, "int8")


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with native kernels, also where they were not built."""
    monkeypatch.setattr(native_library, "library", lambda: object())


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("quantize", "kept"), [(None, "int4"), ("none", None), ("as-is", "int4")])
def test_a_file_keeps_its_own_bits_unless_it_is_widened(
    model, tmp_path: Path, quantize: str | None, kept: str | None
) -> None:
    path = write(tmp_path, model, Kind.Q4_1, {head_of(model): Kind.Q8_0})
    checkpoint = with_own_bits(open_checkpoint(path, quantize), quantize, create_mesh(1))
    assert checkpoint.quantization == kept


def test_without_native_kernels_weights_are_widened(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The products of other kernels read wide weights faster."""
    monkeypatch.setattr(native_library, "library", lambda: None)
    checkpoint = open_checkpoint(write(tmp_path, model, Kind.Q4_1, {head_of(model): Kind.Q8_0}))
    assert with_own_bits(checkpoint, None, create_mesh(1)) is checkpoint


@pytest.mark.usefixtures("native")
def test_what_cannot_be_kept_is_widened(model, tmp_path: Path) -> None:
    """Types that do not go together, parts of groups on a device; a folder is served as it is."""
    tensors, up = gguf_tensors(model), "blk.0.ffn_up.weight"
    tensors[up] = np.zeros((128, 64 // 32 * 18), np.uint8)
    file = write_gguf(tmp_path / "i.gguf", gguf_metadata(model), tensors, Kind.Q4_0, raw={up: Kind.IQ4_NL})
    other = open_checkpoint(file)
    assert with_own_bits(other, None, create_mesh(1)) is other
    whole = open_checkpoint(write(tmp_path, model, Kind.Q4_0, {head_of(model): Kind.Q8_0}))
    assert with_own_bits(whole, None, create_mesh(2)).quantization == "int4"
    assert with_own_bits(whole, None, create_mesh(4)) is whole
    folder = open_checkpoint(save_folder(tmp_path / "hf", model))
    assert with_own_bits(folder, None, create_mesh(1)) is folder


def test_a_model_without_whole_groups_is_refused(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "hf", make_model(**SIZES | {"intermediate_size": 100}))
    with pytest.raises(ConfigError, match="down has 100 inputs on a device; expected a multiple of 32"):
        open_checkpoint(folder, "int4")


MIXTURE = {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": None}
KEYS = {"llama.expert_count": 3, "llama.expert_used_count": 2}
LAYOUTS = pytest.mark.parametrize("unstacked", [False, True], ids=["stacked", "unstacked"])


@pytest.fixture(scope="module")
def mixture():
    return make_model("mixtral", **SIZES, **MIXTURE)


def write_mixture(folder: Path, model, kind: Kind, unstacked: bool, other: str | None = None) -> Path:
    """A GGUF with weights of one type except one, which is Q4_0, and with a head of Q8_0."""
    tensors, raw = gguf_experts(model, unstacked=unstacked), {"output.weight": Kind.Q8_0}
    raw |= {other: Kind.Q4_0} if other else {}
    for name, its_own in raw.items():
        tensors[name] = gguf.quants.quantize(tensors[name], its_own)
    return write_gguf(folder / "m.gguf", gguf_metadata(model, **KEYS), tensors, kind, raw=raw)


@LAYOUTS
@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_experts_are_read_with_their_own_bits(mixture, kind: Kind, unstacked: bool, tmp_path: Path) -> None:
    """In both layouts that llama.cpp has written; the router is wide."""
    _, found, wide = read_as_is(write_mixture(tmp_path, mixture, kind, unstacked), kind)
    for name, values in wide.items():
        exact = widened(found, name) if f"{name}_scale" in found else found[name]
        np.testing.assert_array_equal(exact, values, err_msg=name)
    router = "layers.1.feed_forward.router"
    assert found[router].dtype == np.float32 and f"{router}_scale" not in found


def test_experts_of_q4_0_and_q4_1_go_together(mixture, tmp_path: Path) -> None:
    """Also within one layer; but every expert's type counts, not the first one's alone."""
    path = write_mixture(tmp_path, mixture, Kind.Q4_1, True, "blk.1.ffn_up.2.weight")
    wide, found = dict(open_checkpoint(path).tensors()), dict(open_checkpoint(path, "as-is").tensors())
    name = "layers.1.feed_forward.up"
    np.testing.assert_array_equal(widened(found, name), wide[name])
    mixed = write_mixture(tmp_path, mixture, Kind.Q8_0, True, "blk.1.ffn_up.2.weight")
    with pytest.raises(ConfigError, match=r"layers\.1\.feed_forward\..* are of several types; expected one"):
        open_checkpoint(mixed, "as-is")
    kept = with_own_bits(open_checkpoint(mixed), None, create_mesh(1))
    assert kind_of("layers.0.feed_forward.up", kept.quantization) == "int8-groups"
    found, expected = dict(kept.tensors()), dict(open_checkpoint(mixed).tensors())
    for part in ("gate", "up", "down"):
        assert kind_of(f"layers.1.feed_forward.{part}", kept.quantization) is None
        np.testing.assert_array_equal(
            found[f"layers.1.feed_forward.{part}"], expected[f"layers.1.feed_forward.{part}"]
        )


@pytest.mark.usefixtures("native")
def test_a_mixture_keeps_its_own_bits(mixture, tmp_path: Path) -> None:
    """Where a device gets whole groups: three experts are divided on two devices and on four."""
    path = open_checkpoint(write_mixture(tmp_path, mixture, Kind.Q4_0, False))
    assert with_own_bits(path, None, create_mesh(1)).quantization == "int4"
    assert with_own_bits(path, None, create_mesh(2)).quantization == "int4"
    assert with_own_bits(path, None, create_mesh(4)) is path


@pytest.mark.parametrize("shards", [1, 2])
def test_a_store_keeps_experts_in_groups(mixture, shards: int, tmp_path: Path) -> None:
    """Rounded as `model/quantize.py` does; loaded on a mesh, they give what rounding on loading gives."""
    folder, store = save_folder(tmp_path / "hf", mixture), tmp_path / "store"
    convert(folder, store, quantize="int4")
    checkpoint, mesh = open_checkpoint(store), create_mesh(shards)
    assert checkpoint.quantization == "int4" and checkpoint.config.moe is not None
    stored = load_parameters(checkpoint, np.float32, mesh=mesh)
    expected = quantize(wide_and_levelled(folder), "int4")
    for name, values in place_all(expected, checkpoint.config, mesh, "int4").items():
        assert (values == stored[name]).all() and values.sharding == stored[name].sharding, name
    logits: jax.Array = Scorer.of(checkpoint.config, stored, mesh).logits(list(range(3, 60)))
    assert np.isfinite(logits).all()


def test_an_unknown_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantize is 'int3'; expected one of int8, int4, fp8, as-is, none"):
        open_checkpoint(tmp_path, "int3")


def blocks_of_256(rng: np.random.Generator, shape: tuple[int, int], kind: Kind) -> np.ndarray:
    """Any bytes, u8 `[F, bytes]`, but the f16 factors of a block are such that its values are below 1."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    raw = rng.integers(0, 256, (shape[0], shape[1] // 256, size)).astype(np.uint8)
    places, largest = {Kind.Q6_K: ((size - 2,), 32 * 128)}.get(kind, ((0, 2), 63 * 32))
    for place in places:
        factor = rng.uniform(0.1, 1, raw.shape[:2]).astype(np.float32) / largest
        raw[..., place : place + 2] = factor.astype("<f2").view(np.uint8).reshape(*raw.shape[:2], 2)
    return raw.reshape(shape[0], -1)


@pytest.mark.usefixtures("native")
def test_blocks_of_256_are_groups_of_32(tmp_path: Path) -> None:
    """A file as llama.cpp's Q4_K_M: 4 bits, and values and down of some layers with 6, here also with 5.

    A scale and a minimum are rounded to f16: half a unit in 2^11 of up to 31 times the one and of the other,
    which are below 1. Types of 5 and 6 bits are rounded to 8: half of a 127th of a group's largest.
    """
    sizes = dict(hidden_size=256, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2)
    made, rng = make_model(**sizes), np.random.default_rng(5)
    types = {"attn_v": Kind.Q6_K, "ffn_down": Kind.Q5_K}
    tensors, raw = gguf_tensors(made), {}
    for name, values in tensors.items():
        if name.startswith("blk.") and values.ndim == 2:
            raw[name] = types.get(name.split(".")[2], Kind.Q4_K)
            tensors[name] = blocks_of_256(rng, values.shape, raw[name])
    path = write_gguf(tmp_path / "m.gguf", gguf_metadata(made), tensors, Kind.Q8_0, raw=raw)
    opened = open_checkpoint(path)
    wide, checkpoint = dict(opened.tensors()), with_own_bits(opened, None, create_mesh(1))
    found = dict(checkpoint.tensors())
    assert main_kind(checkpoint.quantization) == "int4"
    for name in (name for name in found if f"{name}_scale" in found):
        rounded = name.endswith((".v", ".down"))
        assert kind_of(name, checkpoint.quantization) == (
            "int8-groups" if rounded or name == "head" else "int4"
        )
        bound = 0.51 / 127 * np.abs(wide[name]).max() if rounded else 2 * 2.0**-11 * np.abs(wide[name]).max()
        assert np.abs(widened(found, name) - wide[name]).max() <= bound, name
    with pytest.raises(ConfigError, match="are of Q4_K, Q5_K, Q6_K; expected only"):
        open_checkpoint(path, "as-is")
