"""Quantised folders, packed from the descriptions of the layouts, value by value, without the readers' code.

A weight is drawn as values, zeros and scales; `Drawn.dequantised` is what they mean. Each layout has a
function from that to the tensors of a module.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from ..making import edit_json, make_model, save_folder

Tensors = dict[str, np.ndarray]
WEIGHTS = "model.safetensors"
SIZES: dict[str, Any] = dict(hidden_size=128, intermediate_size=256)
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


@dataclass
class Drawn:
    """A weight `[outputs, inputs]`: values, zeros and scales of groups, and each input's group."""

    q: np.ndarray
    zero: np.ndarray
    scale: np.ndarray
    group: np.ndarray

    @property
    def dequantised(self) -> np.ndarray:
        q, zero, scale = (part.astype(np.float32) for part in (self.q, self.zero, self.scale))
        return (q - zero[:, self.group]) * scale[:, self.group]


@dataclass(kw_only=True)
class Format:
    """A layout: what config.json says, how a weight is drawn and packed, and what the reader makes of it.

    Attributes:
      config: of the quantisation. pack: a weight's tensors. kind: as which it is served. exact: without a
        second rounding.
      bits: of a value. size: inputs of a group; None: all. zeros: drawn, or all in the middle. order: groups
        are not of consecutive inputs. scale: the type of scales.
    """

    config: dict[str, Any]
    pack: Callable[[Drawn], Tensors]
    kind: str | None
    exact: bool = True
    bits: int = 4
    size: int | None = None
    zeros: bool = False
    order: bool = False
    scale: Any = np.float16

    def draw(self, outputs: int, inputs: int, rng: np.random.Generator) -> Drawn:
        groups, middle = inputs // (self.size or inputs), 1 << (self.bits - 1)
        q = np.rint(rng.normal(middle, middle / 3, (outputs, inputs))).clip(0, 2 * middle - 1)
        zero = np.full((outputs, groups), middle)
        if self.zeros:
            zero = rng.integers(middle * 3 // 4, middle * 5 // 4, (outputs, groups))
        scale = rng.uniform(0.5, 1.5, (outputs, groups)) * 3 / middle / inputs**0.5
        group = np.arange(inputs) * groups // inputs
        group = rng.permutation(group) if self.order else group
        return Drawn(q.astype(np.int64), zero, scale.astype(self.scale), group)


@dataclass(kw_only=True)
class FP8(Format):
    """fp8, with a scale for a block of outputs and inputs, an output (`(1, None)`) or all."""

    block: tuple[int | None, int | None] = (None, None)
    kind: str | None = "fp8"
    scale: Any = np.float32
    number: Any = ml_dtypes.float8_e4m3fn

    def draw(self, outputs: int, inputs: int, rng: np.random.Generator) -> Drawn:
        rows, columns = self.block[0] or outputs, self.block[1] or inputs
        q = rng.normal(0, 100, (outputs, inputs)).astype(self.number)
        shape = -(-outputs // rows), -(-inputs // columns)
        scale = (rng.uniform(0.5, 1.5, shape) / 100 / inputs**0.5).astype(self.scale)
        scale = np.repeat(scale, rows, axis=0)[:outputs]
        return Drawn(q, np.zeros(scale.shape), scale, np.arange(inputs) // columns)


def words(values: np.ndarray, bits: int, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """i32 `[rows, columns * bits / 32]`: place i of a word, from the lowest bits on, has value order[i]."""
    count = 32 // bits
    values = np.pad(values, ((0, 0), (0, -values.shape[1] % count)))
    found = np.zeros((len(values), values.shape[1] // count), np.int64)
    for place in range(count):
        found |= values[:, order[place] :: count] << bits * place
    return found.astype(np.uint32).view(np.int32)


def pack_quantized(bits: int = 4, zeros: str = "") -> Callable[[Drawn], Tensors]:
    """compressed-tensors: weights in words along the inputs; zeros in words along the outputs, or int8."""

    def pack(drawn: Drawn) -> Tensors:
        made = {"weight_packed": words(drawn.q, bits), "weight_scale": drawn.scale}
        made["weight_shape"] = np.array(drawn.q.shape, np.int64)
        if zeros == "words":
            made["weight_zero_point"] = words(drawn.zero.T, bits).T
        elif zeros:
            made["weight_zero_point"] = (drawn.zero - (1 << (bits - 1))).astype(np.int8)
        if (np.diff(drawn.group) < 0).any():
            made["weight_g_idx"] = drawn.group.astype(np.int32)
        return made

    return pack


def gptq(bits: int = 4, less: int = 1) -> Callable[[Drawn], Tensors]:
    """AutoGPTQ: inputs first, zeros less 1, biases of zero; GPTQModel's second format: zeros as they are."""

    def pack(drawn: Drawn) -> Tensors:
        made = {"qweight": words(drawn.q, bits).T, "scales": drawn.scale.T}
        made |= {"qzeros": words(drawn.zero.T - less, bits), "g_idx": drawn.group.astype(np.int32)}
        return made | ({"bias": np.zeros(len(drawn.q), np.float16)} if less else {})

    return pack


def awq(drawn: Drawn) -> Tensors:
    """AutoAWQ's gemm: inputs first, in words along the outputs, whose order is interleaved."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    made = {"qweight": words(drawn.q.T, 4, order), "qzeros": words(drawn.zero.T, 4, order)}
    return made | {"scales": drawn.scale.T}


def int8(**beside: np.ndarray) -> Callable[[Drawn], Tensors]:
    """compressed-tensors: int8 as it is."""
    return lambda drawn: {"weight": (drawn.q - 128).astype(np.int8), "weight_scale": drawn.scale, **beside}


def fp8(
    scale: str, shape: tuple[int, ...] | None = None, rows: int = 1, **beside: np.ndarray
) -> Callable[[Drawn], Tensors]:
    """fp8 as it is; a scale for each `rows` outputs, in this shape."""
    return lambda drawn: {
        "weight": drawn.q,
        scale: drawn.scale[::rows] if shape is None else drawn.scale[:1, :1].reshape(shape),
        **beside,
    }


@dataclass
class Folders:
    """The same weights twice: packed, and as the f32 that they mean."""

    packed: Path
    wide: Path
    tensors: Tensors = field(default_factory=dict)


def write_folders(
    folder: Path, form: Format, family: str = "llama", keep_wide: Iterable[str] = (), **changes: Any
) -> Folders:
    """A tiny model; its linear weights are packed, except the head and those in modules `keep_wide`."""
    made = Folders(folder / "packed", folder / "wide")
    save_folder(made.wide, make_model(family, **{**SIZES, **changes}))
    tensors = load_file(made.wide / WEIGHTS)
    rng, packed = np.random.default_rng(7), made.tensors
    for name, values in tensors.items():
        stem = name.removesuffix(".weight")
        if stem.rpartition(".")[2] in LINEARS and not any(part in name for part in keep_wide):
            drawn = form.draw(*values.shape, rng)
            tensors[name] = drawn.dequantised
            packed.update({f"{stem}.{part}": found for part, found in form.pack(drawn).items()})
        elif name.endswith("norm.weight"):
            packed[name] = tensors[name] = 1 + values / 4
        else:
            packed[name] = tensors[name] = values / 8 if values.shape[-1] == 128 else values
    shutil.copytree(made.wide, made.packed)
    write(made.wide / WEIGHTS, tensors)
    write(made.packed / WEIGHTS, packed)
    edit_json(made.packed / "config.json", quantization_config=form.config)
    return made


def write(file: Path, tensors: Tensors) -> None:
    save_file(
        {name: np.ascontiguousarray(values) for name, values in tensors.items()}, file, {"format": "pt"}
    )


def edit_quantization(folder: Path, **changes: Any) -> None:
    """Changes keys of a folder's `quantization_config`."""
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit_json(folder / "config.json", quantization_config=stated | changes)
