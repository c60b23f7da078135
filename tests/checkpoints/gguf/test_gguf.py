"""GGUF files: weights and config equal those of the original model; damage is refused by name."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.gguf.gguf_config import llama3_divisors, llama3_scaling
from distaff.checkpoints.gguf.gguf_file import GGUFFile, _dequantised
from distaff.checkpoints.gguf.gguf_header import read_gguf_header
from distaff.checkpoints.huggingface.huggingface_folder import HuggingFaceFolder
from distaff.model.config import RopeScaling
from distaff.model.errors import ConfigError, DistaffError
from distaff.model.parameters import parameter_shapes

from ..making import gguf_metadata, gguf_tensors, make_model, save_folder, write_gguf

Tensors = dict[str, np.ndarray]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4},
    ],
)
def test_equals_the_folder_it_was_made_from(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = make_model(**changes)
    folder = HuggingFaceFolder(save_folder(tmp_path / "hf", model))
    file = GGUFFile(write_gguf(tmp_path / "m.gguf", gguf_metadata(model), gguf_tensors(model)))
    assert file.config == folder.config
    assert (file.generation, file.nbytes) == (folder.generation.__class__(eos_ids=(2, 0)), folder.nbytes)
    expected = dict(folder.tensors())
    found = dict(file.tensors())
    assert list(found) == list(parameter_shapes(file.config))
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


@pytest.mark.parametrize(
    "kind, error",
    [
        (Kind.F16, 1e-3),
        (Kind.BF16, 1e-2),
        (Kind.Q8_0, 0.02),
        (Kind.Q5_1, 0.1),
        (Kind.Q5_0, 0.1),
        (Kind.Q4_1, 0.2),
        (Kind.Q4_0, 0.2),
    ],
)
def test_quantised_weights(tmp_path: Path, kind: Kind, error: float) -> None:
    """Each weight is within its format's step, and equals the gguf package's result."""
    model = make_model()
    tensors = gguf_tensors(model)
    found = dict(GGUFFile(write_gguf(tmp_path / "m.gguf", gguf_metadata(model), tensors, kind)).tensors())
    down = model.model.layers[1].mlp.down_proj.weight.T.detach().numpy()
    assert np.abs(found["layers.1.feed_forward.down"] - down).max() < error * np.abs(down).max()
    raw = gguf.quants.quantize(tensors["blk.1.ffn_down.weight"], kind)
    exact = gguf.quants.dequantize(raw, kind).T
    np.testing.assert_array_equal(found["layers.1.feed_forward.down"], exact)
    q = model.model.layers[0].self_attn.q_proj.weight.T.detach().numpy()
    assert np.abs(found["layers.0.attention.q"] - q).max() < error * np.abs(q).max()


READ = [
    Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ1_S, Kind.IQ1_M, Kind.IQ2_XXS, Kind.IQ2_XS,
    Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S, Kind.IQ4_NL, Kind.IQ4_XS, Kind.TQ1_0, Kind.TQ2_0, Kind.MXFP4,
    Kind.NVFP4,
]  # fmt: skip


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
def test_types_that_the_package_reads(tmp_path: Path, kind: Kind) -> None:
    """The package can only read most of these, so random blocks are written and compared with its results."""
    model = make_model(hidden_size=256, intermediate_size=256)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 60, (256, 256 // block * size), dtype=np.uint8)
    tensors = gguf_tensors(model) | {"blk.0.ffn_up.weight": raw}
    path = write_gguf(tmp_path / "m.gguf", gguf_metadata(model), tensors, raw={"blk.0.ffn_up.weight": kind})
    found = dict(GGUFFile(path).tensors())["layers.0.feed_forward.up"]
    np.testing.assert_array_equal(found, gguf.quants.dequantize(raw, kind).T)


def test_every_type_that_the_package_reads_is_read() -> None:
    written = {Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0}
    assert {kind for kind in Kind if _dequantised(kind)} >= written | set(READ)
    assert not any(map(_dequantised, (Kind.I8, Kind.I32, Kind.F64, Kind.Q8_K)))


def split_file(path: Path, model: Any) -> list[Path]:
    """The model in three files, as llama.cpp's `gguf-split` writes them: only the first has metadata."""
    metadata, tensors = gguf_metadata(model), gguf_tensors(model)
    paths = [path / f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for number, part in enumerate(paths):
        own = dict(list(tensors.items())[number::3]) if number else dict(list(tensors.items())[::3])
        split = {"split.no": number, "split.count": 3, "split.tensors.count": len(tensors)}
        write_gguf(part, (metadata if number == 0 else {}) | split, own)
    return paths


def test_split_files(tmp_path: Path, model: Any) -> None:
    whole = GGUFFile(write(tmp_path, model))
    paths = split_file(tmp_path, model)
    parts = GGUFFile(paths[0])
    assert (parts.config, parts.generation, parts.nbytes) == (whole.config, whole.generation, whole.nbytes)
    expected, found = dict(whole.tensors()), dict(parts.tensors())
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    os.utime(paths[2], ns=(1, 1))
    assert GGUFFile(paths[0]).fingerprint != parts.fingerprint
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003\.gguf: tensor .* changed"):
        list(parts.tensors())


@pytest.mark.parametrize(
    "change, opened, reason",
    [
        (lambda p: None, 1, "m-00002-of-00003.gguf: part 1 of a model; expected its first file, m-00001"),
        (lambda p: p[2].unlink(), 0, "m-00003-of-00003.gguf: missing; part 3 of 3"),
        (lambda p: p[2].write_bytes(p[2].read_bytes()[:-40]), 0, "m-00003-of-00003.gguf: tensor"),
        (lambda p: shutil.copy(p[1], p[2]), 0, "split.no and split.count are (1, 3); expected (2, 3)"),
        (lambda p: p[0].rename(p[0].with_name("m.gguf")), "m.gguf", "split.count is 3; expected a name"),
    ],
)
def test_split_files_that_do_not_fit(
    tmp_path: Path, model: Any, change: Callable[[list[Path]], Any], opened: int | str, reason: str
) -> None:
    paths = split_file(tmp_path, model)
    change(paths)
    with pytest.raises(CheckpointError) as refusal:
        GGUFFile(paths[opened] if isinstance(opened, int) else tmp_path / opened)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("count", [3.0, "3", [3], 65535])
def test_an_invalid_count_of_files(tmp_path: Path, model: Any, count: Any) -> None:
    path = tmp_path / "m-00001-of-00003.gguf"
    write_gguf(path, gguf_metadata(model) | {"split.count": count}, gguf_tensors(model))
    with pytest.raises(CheckpointError, match=r"split\.count is"):
        GGUFFile(path)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model()


def write(path: Path, model: Any, change: Callable[[Tensors], Any] | None = None, **metadata: Any) -> Path:
    tensors = gguf_tensors(model)
    if change:
        change(tensors)
    names = {key.replace("__", "."): value for key, value in metadata.items()}
    return write_gguf(path / "m.gguf", gguf_metadata(model, **names), tensors)


def refuse(path: Path, *reasons: str) -> None:
    with pytest.raises(DistaffError) as refusal:
        GGUFFile(path)
    for text in (path.name, *reasons):
        assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "metadata, expected, context",
    [
        ({"rope__scaling__type": "none"}, None, 128),
        (
            {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
            RopeScaling(kind="linear", factor=4.0, original_context=128),
            512,
        ),
        ({"rope__scale_linear": 4.0}, RopeScaling(kind="linear", factor=4.0, original_context=128), 512),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 32,
            },
            RopeScaling(kind="yarn", factor=4.0, original_context=32),
            128,
        ),
    ],
)
def test_rope_scaling(
    tmp_path: Path, model: Any, metadata: dict[str, Any], expected: RopeScaling | None, context: int
) -> None:
    path = write(tmp_path, model, **{f"llama.{key}": value for key, value in metadata.items()})
    config = GGUFFile(path).config
    assert (config.rope, config.context) == (expected, context)


def converter_divisors(theta: float, head: int, factor: float, original: int) -> list[float]:
    """llama.cpp's converter, which writes `rope_freqs.weight` for Llama 3.1 and later."""
    divisors = []
    for i in range(0, head, 2):
        wavelength = 2 * np.pi * theta ** (i / head)
        if wavelength < original / 4.0:
            divisors.append(1.0)
        elif wavelength > original / 1.0:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - 1.0) / (4.0 - 1.0)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


@pytest.mark.parametrize("theta, head, factor", [(500_000.0, 128, 8.0), (500_000.0, 64, 32.0)])
def test_llama_3_divisors(theta: float, head: int, factor: float) -> None:
    divisors = np.array(converter_divisors(theta, head, factor, 8192), np.float32)
    expected = RopeScaling(kind="llama3", factor=factor, original_context=8192)
    assert llama3_scaling(divisors, theta, head) == expected
    np.testing.assert_allclose(llama3_divisors(expected, theta, head), divisors, rtol=1e-6)
    assert llama3_scaling(np.ones(head // 2, np.float32), theta, head) is None
    divisors[-1] *= 1.01
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight"):
        llama3_scaling(divisors, theta, head)


def test_llama_3_file(tmp_path: Path, model: Any) -> None:
    divisors = np.array(converter_divisors(10_000.0, 16, 8.0, 1024), np.float32)
    path = write(tmp_path, model, lambda tensors: tensors.update({"rope_freqs.weight": divisors}))
    assert GGUFFile(path).config.rope == RopeScaling(kind="llama3", factor=8.0, original_context=1024)


@pytest.mark.parametrize(
    "metadata, reason",
    [
        ({"llama__attention__sliding_window": 8}, "llama.attention.sliding_window is 8"),
        ({"llama__rope__dimension_count": 8}, "llama.rope.dimension_count is 8; expected the head size 16"),
        ({"llama__attention__value_length": 8}, "llama.attention.value_length is 8"),
        ({"llama__rope__scaling__type": "longrope"}, "'longrope'; expected none, linear or yarn"),
        ({"llama__rope__freq_base": float("nan")}, "rope.freq_base is nan"),
        ({"llama__attention__head_count_kv": 3}, "heads"),
        ({"llama__block_count": 3}, "tensor blk.2."),
        ({"llama__block_count": 1}, "tensor blk.1."),
        ({"llama__block_count": 10**9}, "1000000000 layers"),
        ({"llama__vocab_size": 319}, "llama.vocab_size is 319; expected at least the tokenizer's 320"),
        ({"llama__vocab_size": 321}, "tensor token_embd.weight has shape [320, 64]; expected [321, 64]"),
        ({"llama__feed_forward_length": [96, 96]}, "feed_forward_length is [96, 96]"),
    ],
)
def test_metadata_that_does_not_fit(
    tmp_path: Path, model: Any, metadata: dict[str, Any], reason: str
) -> None:
    refuse(write(tmp_path, model, **metadata), reason)


def test_other_architectures(tmp_path: Path, model: Any) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, gguf_tensors(model), architecture="gemma")
    refuse(path, "general.architecture is 'gemma'; expected one of llama, granite")


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            lambda t: t.pop("blk.1.ffn_up.weight"),
            "tensor blk.1.ffn_up.weight is missing; expected shape [96, 64]",
        ),
        (lambda t: t.update(extra=np.ones(4, np.float32)), "tensor extra is not part"),
        (
            lambda t: t.update({"blk.0.ffn_up.weight": np.ones((64, 96), np.float32)}),
            "tensor blk.0.ffn_up.weight has shape [64, 96]; expected [96, 64]",
        ),
        (lambda t: t.update({"blk.0.attn_q.bias": np.ones(64, np.float32)}), "blk.0.attn_k.bias is missing"),
        (lambda t: t.update({"output.weight": np.ones((4, 64), np.float32)}), "output.weight has shape"),
        (
            lambda t: t.update({"rope_freqs.weight": np.ones(4, np.float32)}),
            "rope_freqs.weight has shape [4]",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, model: Any, change: Any, reason: str) -> None:
    refuse(write(tmp_path, model, change), reason)


def test_kinds_that_cannot_be_dequantised(tmp_path: Path, model: Any) -> None:
    path = write(tmp_path, model)
    raw = path.read_bytes()
    at = raw.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 16
    path.write_bytes(raw[:at] + struct.pack("<I", int(Kind.I32)) + raw[at + 4 :])
    refuse(path, "tensor blk.0.ffn_up.weight is I32; not dequantisable")


def patched(offset: int, form: str, value: Any) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:offset] + struct.pack(form, value) + raw[offset + struct.calcsize(form) :]


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda raw: b"", "not readable"),
        (lambda raw: raw[:3], "truncated"),
        (lambda raw: raw[:60], "the file is too short"),
        (lambda raw: raw[:2000], "tokenizer.ggml.tokens: the header states 320 texts; the file is too short"),
        (lambda raw: raw[:-40], "is truncated"),
        (lambda raw: b"\x80\x04\x95" + raw, "expected b'GGUF'"),
        (patched(4, "<I", 99), "version is 99; expected 2 or 3"),
        (patched(8, "<Q", 2**63), "the header states 9223372036854775808 tensors"),
        (patched(16, "<Q", 2**63), "the header states 9223372036854775808 metadata entries"),
        (patched(24, "<Q", 2**63), "truncated"),
    ],
)
def test_damaged_files(tmp_path: Path, model: Any, damage: Callable[[bytes], bytes], reason: str) -> None:
    path = write(tmp_path, model)
    path.write_bytes(damage(path.read_bytes()))
    refuse(path, reason)


def test_a_hostile_array_takes_no_memory(tmp_path: Path) -> None:
    """The gguf package's reader loops over a stated count of 2^62 one-byte elements."""
    path = tmp_path / "m.gguf"
    key = b"general.tags"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 0, 2**62)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry + b"\0" * 64)
    refuse(path, "general.tags: the header states 4611686018427387904 elements")


def test_every_cut_is_refused(tmp_path: Path, model: Any) -> None:
    path = write(tmp_path, model)
    raw = path.read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(raw), len(raw) // 40), len(raw) - 1]:
        path.write_bytes(raw[:length])
        with pytest.raises(CheckpointError, match=r"m\.gguf"):
            GGUFFile(path)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, model: Any) -> None:
    path = write(tmp_path, model)
    tensors = GGUFFile(path).tensors()
    next(tensors)
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(CheckpointError, match=r"tensor .* changed while"):
        list(tensors)


def test_header_agrees_with_the_gguf_packages_reader(tmp_path: Path, model: Any) -> None:
    path = write(tmp_path, model)
    header, reader = read_gguf_header(path), gguf.GGUFReader(path)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            assert header.metadata[name] == field.contents(), name
    for tensor in reader.tensors:
        ours = header.tensors[tensor.name]
        assert (ours.offset, ours.size, ours.kind) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)
        assert ours.shape == tuple(tensor.shape.tolist()[::-1])


def test_sampling_defaults(tmp_path: Path, model: Any) -> None:
    stated = {"temp": 0.7, "top_k": 20, "penalty_repeat": 1.1}
    path = write(tmp_path, model, **{f"general__sampling__{key}": value for key, value in stated.items()})
    generation = GGUFFile(path).generation
    assert (generation.temperature, generation.top_k, generation.top_p) == (0.7, 20, None)
    assert generation.repetition_penalty == 1.1
    beside = {"temperature": 0.2, "top_p": 0.9, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(beside))
    generation = GGUFFile(path).generation
    assert (generation.temperature, generation.top_k, generation.top_p) == (0.7, 20, 0.9)
