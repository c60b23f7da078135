"""The names and shapes of a model's parameters, without JAX.

The network, the checkpoint readers and the store share this list: a parameter's name is its path in the
`Transformer` module, joined by dots. Linear weights are stored as `[inputs, outputs]`, so that the
computation is `x @ w`; experts are stacked on a leading axis, `[experts, inputs, outputs]`, with a `router`
`[D, E]`. A test compares this list with the module.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from .config import ModelConfig
from .errors import ConfigError

Quantization = Literal["int8", "int4", "int8-groups"]
"""How linear weights are quantised (see `quantize.py`): int8 with a scale for each output; in groups of 32
inputs, with 4 bits (the head with 8); in groups with 8 bits."""
INT8: Quantization = "int8"
INT4: Quantization = "int4"
INT8_GROUPS: Quantization = "int8-groups"
GROUP = 32
"""Inputs of a group."""


def is_grouped(quantization: Quantization | None) -> bool:
    """Whether weights are quantised in groups."""
    return quantization in (INT4, INT8_GROUPS)


def has_embedding(config: ModelConfig, quantization: Quantization | None) -> bool:
    """Whether there is an embedding besides the head: a tied head in groups is the embedding too."""
    return not (config.tied_head and is_grouped(quantization))


def has_head(config: ModelConfig, quantization: Quantization | None) -> bool:
    """Whether there is a head besides the embedding: a tied head is one of its own if it is quantised."""
    return quantization is not None or not config.tied_head


def parameter_shapes(
    config: ModelConfig, quantization: Quantization | None = None
) -> dict[str, tuple[int, ...]]:
    """Every parameter of the model, by name, in the order in which the computation uses them.

    If it is quantised, each weight is followed by its `_scale`, and by its `_low` if it has 4 bits.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if has_embedding(config, quantization):
        shapes["embed"] = (config.vocabulary, config.width)
    for layer in range(config.layers):
        for name, shape in layer_shapes(config).items():
            shapes[f"layers.{layer}.{name}"] = shape
    shapes["norm"] = (config.width,)
    if has_head(config, quantization):
        shapes["head"] = (config.width, config.vocabulary)
    return dict(_quantized(shapes, quantization)) if quantization else shapes


def is_linear(name: str) -> bool:
    """Whether a parameter is the weight of a linear map that is quantised: all of them except the router."""
    return name.rpartition(".")[2] in ("q", "k", "v", "o", "gate", "up", "down", "head")


def stored_type(name: str, quantization: Quantization | None) -> str | None:
    """The name of a parameter's dtype if it is part of a quantised weight; None: that of the computation."""
    if quantization is None:
        return None
    if name.endswith(("_scale", "_low")):
        return "float16" if is_grouped(quantization) else "float32"
    if not is_linear(name):
        return None
    return "uint8" if has_4_bits(name, quantization) else "int8"


def quantization_by_types(types: Mapping[str, str]) -> Quantization | None:
    """How linear weights are quantised, by the dtypes' names of all parameters."""
    if "head_scale" not in types:
        return None
    if types["head_scale"] == "float32":
        return INT8
    return INT4 if "uint8" in types.values() else INT8_GROUPS


def has_4_bits(name: str, quantization: Quantization | None) -> bool:
    """Whether a linear weight has 4 bits."""
    return quantization == INT4 and name != "head"


def _quantized(
    shapes: Mapping[str, tuple[int, ...]], quantization: Quantization
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in shapes.items():
        if not is_linear(name):
            yield name, shape
        elif is_grouped(quantization):
            yield from _grouped(name, shape, quantization)
        else:
            yield from ((name, shape), (f"{name}_scale", (*shape[:-2], shape[-1])))


def _grouped(
    name: str, shape: tuple[int, ...], quantization: Quantization
) -> Iterator[tuple[str, tuple[int, ...]]]:
    *stacked, inputs, outputs = shape
    groups = (*stacked, inputs // GROUP, outputs)
    if not has_4_bits(name, quantization):
        yield from ((name, shape), (f"{name}_scale", groups))
        return
    yield name, (*stacked, inputs // 2, outputs)
    yield from ((f"{name}_scale", groups), (f"{name}_low", groups))


def has_whole_experts(config: ModelConfig, shards: int) -> bool:
    """Whether each of `shards` devices holds whole experts, instead of a part of every expert."""
    return config.moe is not None and config.moe.experts % shards == 0


def check_groups(config: ModelConfig, quantization: Quantization | None, shards: int = 1) -> None:
    """Checks that the inputs of every linear map, on each of `shards` devices, are whole groups.

    Raises:
      ConfigError: they are not.
    """
    if not is_grouped(quantization):
        return
    heads, parts = config.heads * config.head_size, 1 if has_whole_experts(config, shards) else shards
    inputs = {"q": config.width, "o": heads // shards, "down": config.feed_forward // parts}
    for name, size in inputs.items():
        if size % GROUP:
            found = f"weights are {quantization} and {name} has {size} inputs on a device"
            raise ConfigError(f"{found}; expected a multiple of {GROUP}")


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The parameters of one layer, by their names inside it."""
    d, f = config.width, config.feed_forward
    nh, kh = config.heads * config.head_size, config.kv_heads * config.head_size
    feed_forward = {"gate": (d, f), "up": (d, f), "down": (f, d)}
    if config.moe is not None:
        experts = config.moe.experts
        feed_forward = {"router": (d, experts)} | {n: (experts, *s) for n, s in feed_forward.items()}
    norms = ("attention.q_norm", "attention.k_norm") if config.head_norms else ()
    bias = config.attention_bias
    return {
        "attention_norm": (d,),
        **_linears("attention", {"q": (d, nh), "k": (d, kh), "v": (d, kh)}, bias=bias),
        **dict.fromkeys(norms, (config.head_size,)),
        **_linears("attention", {"o": (nh, d)}, bias=bias and config.output_bias),
        "feed_forward_norm": (d,),
        **_linears("feed_forward", feed_forward, bias=config.feed_forward_bias),
    }


def _linears(block: str, weights: Mapping[str, tuple[int, ...]], *, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in weights.items():
        shapes[f"{block}.{name}"] = shape
        if bias:
            shapes[f"{block}.{name}_bias"] = shape[-1:]
    return shapes
