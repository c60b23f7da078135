"""Tensor names of other formats and ours: one table per format, expanded over layers and experts.

Our names are those of `model.parameters`. The tables have no shapes; `find_origins` compares the tensors of a
file with `parameter_shapes`, transposed if the format's linears are `[outputs, inputs]`. A table has one
tensor for all experts or, with `{expert}`, one for each; parameters with the same name share that tensor,
which contains their outputs one after another, in the order of the table.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..model.config import ModelConfig
from ..model.parameters import parameter_shapes
from .casting import aligned, write_transposed
from .errors import CheckpointError

HUGGINGFACE = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attention_norm": "model.layers.{layer}.input_layernorm.weight",
    "attention.q": "model.layers.{layer}.self_attn.q_proj.weight",
    "attention.q_bias": "model.layers.{layer}.self_attn.q_proj.bias",
    "attention.k": "model.layers.{layer}.self_attn.k_proj.weight",
    "attention.k_bias": "model.layers.{layer}.self_attn.k_proj.bias",
    "attention.v": "model.layers.{layer}.self_attn.v_proj.weight",
    "attention.v_bias": "model.layers.{layer}.self_attn.v_proj.bias",
    "attention.q_norm": "model.layers.{layer}.self_attn.q_norm.weight",
    "attention.k_norm": "model.layers.{layer}.self_attn.k_norm.weight",
    "attention.o": "model.layers.{layer}.self_attn.o_proj.weight",
    "attention.o_bias": "model.layers.{layer}.self_attn.o_proj.bias",
    "feed_forward_norm": "model.layers.{layer}.post_attention_layernorm.weight",
    "feed_forward.gate": "model.layers.{layer}.mlp.gate_proj.weight",
    "feed_forward.gate_bias": "model.layers.{layer}.mlp.gate_proj.bias",
    "feed_forward.up": "model.layers.{layer}.mlp.up_proj.weight",
    "feed_forward.up_bias": "model.layers.{layer}.mlp.up_proj.bias",
    "feed_forward.down": "model.layers.{layer}.mlp.down_proj.weight",
    "feed_forward.down_bias": "model.layers.{layer}.mlp.down_proj.bias",
}

GGUF = {
    "embed": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "attention_norm": "blk.{layer}.attn_norm.weight",
    "attention.q": "blk.{layer}.attn_q.weight",
    "attention.q_bias": "blk.{layer}.attn_q.bias",
    "attention.k": "blk.{layer}.attn_k.weight",
    "attention.k_bias": "blk.{layer}.attn_k.bias",
    "attention.v": "blk.{layer}.attn_v.weight",
    "attention.v_bias": "blk.{layer}.attn_v.bias",
    "attention.q_norm": "blk.{layer}.attn_q_norm.weight",
    "attention.k_norm": "blk.{layer}.attn_k_norm.weight",
    "attention.o": "blk.{layer}.attn_output.weight",
    "attention.o_bias": "blk.{layer}.attn_output.bias",
    "feed_forward_norm": "blk.{layer}.ffn_norm.weight",
    "feed_forward.gate": "blk.{layer}.ffn_gate.weight",
    "feed_forward.gate_bias": "blk.{layer}.ffn_gate.bias",
    "feed_forward.up": "blk.{layer}.ffn_up.weight",
    "feed_forward.up_bias": "blk.{layer}.ffn_up.bias",
    "feed_forward.down": "blk.{layer}.ffn_down.weight",
    "feed_forward.down_bias": "blk.{layer}.ffn_down.bias",
}

HUGGINGFACE_JOINED = {
    "attention.q": "model.layers.{layer}.self_attn.qkv_proj.weight",
    "attention.k": "model.layers.{layer}.self_attn.qkv_proj.weight",
    "attention.v": "model.layers.{layer}.self_attn.qkv_proj.weight",
    "feed_forward.gate": "model.layers.{layer}.mlp.gate_up_proj.weight",
    "feed_forward.up": "model.layers.{layer}.mlp.gate_up_proj.weight",
}
"""Phi-3's layout."""

GGUF_JOINED = {
    "attention.q": "blk.{layer}.attn_qkv.weight",
    "attention.k": "blk.{layer}.attn_qkv.weight",
    "attention.v": "blk.{layer}.attn_qkv.weight",
    "feed_forward.gate": "blk.{layer}.ffn_up.weight",
    "feed_forward.up": "blk.{layer}.ffn_up.weight",
}

HUGGINGFACE_EXPERTS = {
    "feed_forward.router": "model.layers.{layer}.block_sparse_moe.gate.weight",
    "feed_forward.gate": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
    "feed_forward.up": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
    "feed_forward.down": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
}
"""Mixtral's published layout, which transformers 5 writes as well."""

HUGGINGFACE_QWEN_EXPERTS = {
    "feed_forward.router": "model.layers.{layer}.mlp.gate.weight",
    "feed_forward.gate": "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
    "feed_forward.up": "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
    "feed_forward.down": "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
}

HUGGINGFACE_FUSED = {
    "feed_forward.router": "model.layers.{layer}.mlp.gate.weight",
    "feed_forward.gate": "model.layers.{layer}.mlp.experts.gate_up_proj",
    "feed_forward.up": "model.layers.{layer}.mlp.experts.gate_up_proj",
    "feed_forward.down": "model.layers.{layer}.mlp.experts.down_proj",
}
"""The layout that transformers 5 has in memory, written with `save_original_format=False`."""

GGUF_EXPERTS = {
    "feed_forward.router": "blk.{layer}.ffn_gate_inp.weight",
    "feed_forward.gate": "blk.{layer}.ffn_gate_exps.weight",
    "feed_forward.up": "blk.{layer}.ffn_up_exps.weight",
    "feed_forward.down": "blk.{layer}.ffn_down_exps.weight",
}
GGUF_UNSTACKED = {
    "feed_forward.router": "blk.{layer}.ffn_gate_inp.weight",
    "feed_forward.gate": "blk.{layer}.ffn_gate.{expert}.weight",
    "feed_forward.up": "blk.{layer}.ffn_up.{expert}.weight",
    "feed_forward.down": "blk.{layer}.ffn_down.{expert}.weight",
}
"""The first Mixtral GGUFs, with one tensor per expert."""

Table = Mapping[str, str]


def table_for(
    config: ModelConfig, dense: Table, mixtures: Iterable[Table], found: Mapping[str, object]
) -> Table:
    """The table of a file: for a mixture, the first one with the experts' names in the file, otherwise the
    first."""
    if config.moe is None:
        return dense
    tables = [{**dense, **mixture} for mixture in mixtures]
    first = [table["feed_forward.down"].format(layer=0, expert=0) for table in tables]
    return next((table for table, name in zip(tables, first, strict=True) if name in found), tables[0])


def with_joined(dense: Table, joined: Table, found: Mapping[str, object]) -> Table:
    """The table of a file: where it lacks a weight's usual name, that of the joined weight."""

    def is_joined(name: str) -> bool:
        own, other = dense[name].format(layer=0), joined[name].format(layer=0)
        return other in found and own not in found

    return {**dense, **{name: joined[name] for name in filter(is_joined, joined)}}


@dataclass(frozen=True, slots=True)
class Origin:
    """The file's tensors that make a parameter, and how.

    Attributes:
      names: one, or one per expert. shape: of each.
      start: the first of its outputs that is this parameter's, if several parameters share a tensor.
      outputs: how many of them are.
      transposed: linears are `[outputs, inputs]` in the file.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    start: int | None
    outputs: int
    transposed: bool

    def assemble(self, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """The parameter, from tensors that `read` returns; unstacked experts are read one by one."""
        first, *others = self.names
        values = read(first)
        if others:
            stacked = aligned((len(self.names), *values.shape[::-1]), values.dtype)
            _write(values, stacked[0])
            for expert, name in enumerate(others, start=1):
                _write(read(name), stacked[expert])
            return stacked
        if self.start is not None:  # the copy releases the others'
            own = slice(self.start, self.start + self.outputs)
            scales = values.ndim < len(self.shape)  # of int8 weights, one for each output
            values = (values[..., own] if scales else values[..., own, :]).copy()
        return np.swapaxes(values, -1, -2) if self.transposed and values.ndim > 1 else values


def _write(values: np.ndarray, out: np.ndarray) -> None:
    """Writes an expert's tensor, transposed; scales of int8 weights have one axis."""
    if values.ndim > 1:
        write_transposed(values.T, out)
    else:
        out[...] = values


def origin_of(table: Table, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Origin:
    """The origin of our parameter of this name, one of the model's `parameter_shapes`."""
    prefix, layer, inner = "", "", name
    if name.startswith("layers."):
        _, layer, inner = name.split(".", 2)
        prefix = f"layers.{layer}."
    template, transposed, sizes = table[inner], name != "embed", list(shapes[name])
    outputs = sizes[-1]
    if transposed:
        sizes[-2:] = sizes[-2:][::-1]
    if "{expert}" in template:
        names = tuple(template.format(layer=layer, expert=expert) for expert in range(sizes[0]))
        return Origin(names, tuple(sizes[1:]), None, outputs, transposed)
    sharing = [other for other in table if table[other] == template and prefix + other in shapes]
    widths = [shapes[prefix + other][-1] for other in sharing]
    start = None
    if len(sharing) > 1:
        start, sizes[-2] = sum(widths[: sharing.index(inner)]), sum(widths)
    return Origin((template.format(layer=layer),), tuple(sizes), start, outputs, transposed)


def find_origins(
    file: Path, config: ModelConfig, table: Table, found: Mapping[str, tuple[int, ...]]
) -> dict[str, Origin]:
    """The origin of each of our parameters, in order; checks that `found` (name to shape) fits the config.

    Raises:
      CheckpointError: a tensor is missing or of another shape.
    """
    if config.layers > len(found):  # before a list for every layer is made
        raise CheckpointError(
            f"{file}: {config.layers} layers are configured but it holds {len(found)} tensors"
        )
    origins: dict[str, Origin] = {}
    shapes = parameter_shapes(config)
    for name in shapes:
        origin = origins[name] = origin_of(table, name, shapes)
        for foreign in origin.names:
            _check_tensor(file, foreign, origin.shape, found)
    return origins


def unused(origins: Mapping[str, Origin], found: Iterable[str]) -> list[str]:
    """The tensors of a file that no parameter uses, sorted."""
    return sorted(set(found).difference(*(origin.names for origin in origins.values())))


def refuse_unused(file: Path, names: Sequence[str]) -> None:
    """Raises CheckpointError if there are any, because they belong to another model."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(f"{file}: tensor {names[0]}{more} is not part of the configured model")


def _check_tensor(
    file: Path, name: str, expected: tuple[int, ...], found: Mapping[str, tuple[int, ...]]
) -> None:
    if name not in found:
        raise CheckpointError(f"{file}: tensor {name} is missing; expected shape {list(expected)}")
    if found[name] != expected:
        raise CheckpointError(
            f"{file}: tensor {name} has shape {list(found[name])}; expected {list(expected)}"
        )
