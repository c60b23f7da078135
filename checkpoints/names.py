"""Foreign tensor names and ours: one table per format, expanded over the layers.

Our names are those of `model.parameters`. The tables say nothing about shapes; `check_tensors` holds what a
file contains against `parameter_shapes`, transposed where the foreign linear is `[outputs, inputs]`.
"""

from collections.abc import Mapping
from pathlib import Path

from ..model.config import ModelConfig
from ..model.parameters import parameter_shapes
from .errors import CheckpointError

HUGGINGFACE = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "attention.q": "model.layers.{}.self_attn.q_proj.weight",
    "attention.q_bias": "model.layers.{}.self_attn.q_proj.bias",
    "attention.k": "model.layers.{}.self_attn.k_proj.weight",
    "attention.k_bias": "model.layers.{}.self_attn.k_proj.bias",
    "attention.v": "model.layers.{}.self_attn.v_proj.weight",
    "attention.v_bias": "model.layers.{}.self_attn.v_proj.bias",
    "attention.o": "model.layers.{}.self_attn.o_proj.weight",
    "attention.o_bias": "model.layers.{}.self_attn.o_proj.bias",
    "feed_forward_norm": "model.layers.{}.post_attention_layernorm.weight",
    "feed_forward.gate": "model.layers.{}.mlp.gate_proj.weight",
    "feed_forward.gate_bias": "model.layers.{}.mlp.gate_proj.bias",
    "feed_forward.up": "model.layers.{}.mlp.up_proj.weight",
    "feed_forward.up_bias": "model.layers.{}.mlp.up_proj.bias",
    "feed_forward.down": "model.layers.{}.mlp.down_proj.weight",
    "feed_forward.down_bias": "model.layers.{}.mlp.down_proj.bias",
}

GGUF = {
    "embed": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "attention_norm": "blk.{}.attn_norm.weight",
    "attention.q": "blk.{}.attn_q.weight",
    "attention.q_bias": "blk.{}.attn_q.bias",
    "attention.k": "blk.{}.attn_k.weight",
    "attention.k_bias": "blk.{}.attn_k.bias",
    "attention.v": "blk.{}.attn_v.weight",
    "attention.v_bias": "blk.{}.attn_v.bias",
    "attention.o": "blk.{}.attn_output.weight",
    "attention.o_bias": "blk.{}.attn_output.bias",
    "feed_forward_norm": "blk.{}.ffn_norm.weight",
    "feed_forward.gate": "blk.{}.ffn_gate.weight",
    "feed_forward.gate_bias": "blk.{}.ffn_gate.bias",
    "feed_forward.up": "blk.{}.ffn_up.weight",
    "feed_forward.up_bias": "blk.{}.ffn_up.bias",
    "feed_forward.down": "blk.{}.ffn_down.weight",
    "feed_forward.down_bias": "blk.{}.ffn_down.bias",
}


def foreign_name(table: Mapping[str, str], name: str) -> str:
    """The name that our parameter `name` has in a table's format."""
    if not name.startswith("layers."):
        return table[name]
    _, layer, inner = name.split(".", 2)
    return table[inner].format(layer)


def foreign_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape our parameter has in both foreign formats: linears are `[outputs, inputs]` there."""
    return shape if name == "embed" else shape[::-1]


def check_tensors(
    file: Path, config: ModelConfig, table: Mapping[str, str], found: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Our names to foreign ones, in `parameter_shapes` order, once `found` (name to shape) fits the config.

    Raises:
      CheckpointError: a tensor is missing, of another shape, or unknown to us.
    """
    if config.layers > len(found):  # before anything is listed per layer
        raise CheckpointError(
            f"{file}: {config.layers} layers are configured but it holds {len(found)} tensors"
        )
    names: dict[str, str] = {}
    for name, shape in parameter_shapes(config).items():
        foreign, expected = foreign_name(table, name), foreign_shape(name, shape)
        if foreign not in found:
            raise CheckpointError(f"{file}: tensor {foreign} is missing; expected shape {list(expected)}")
        if found[foreign] != expected:
            raise CheckpointError(
                f"{file}: tensor {foreign} has shape {list(found[foreign])}; expected {list(expected)}"
            )
        names[name] = foreign
    if extra := sorted(found.keys() - set(names.values())):
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise CheckpointError(f"{file}: tensor {extra[0]}{more} is not part of the configured model")
    return names
