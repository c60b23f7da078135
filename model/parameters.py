"""The names and shapes of a model's parameters, without JAX.

The network, the checkpoint readers and the store share this list: a parameter's name is its path in the
`Transformer` module, joined by dots. Linear weights are stored as `[inputs, outputs]`, so that the
computation is `x @ w`; experts are stacked on a leading axis, `[experts, inputs, outputs]`, with a `router`
`[D, E]`. A test compares this list with the module.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from .config import ModelConfig
from .errors import ConfigError

Kind = Literal["int8", "int4", "int8-groups"]
"""How a linear weight is quantised (see `quantize.py`): int8 with a scale for each output; in groups of 32
inputs, with 4 bits or with 8 bits."""
INT8: Kind = "int8"
INT4: Kind = "int4"
INT8_GROUPS: Kind = "int8-groups"
_KINDS: tuple[Kind, ...] = (INT4, INT8_GROUPS, INT8)
GROUP = 32
"""Inputs of a group."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """Linear weights of which some are not quantised like the others.

    Attributes:
      most: the kind of the others. exceptions: the others' names and kinds, sorted; None: wide.
    """

    most: Kind
    exceptions: tuple[tuple[str, Kind | None], ...]

    def __str__(self) -> str:
        few = [f"{name} {kind or 'wide'}" for name, kind in self.exceptions[:3]]
        return f"{self.most} but for {', '.join(few)}{', ...' if self.exceptions[3:] else ''}"


Quantization = Kind | Mixed
"""How a model's linear weights are quantised: all alike, or mixed. With `int4` alone the head has groups of 8
bits."""


def kind_of(name: str, quantization: Quantization | None) -> Kind | None:
    """How a linear weight is quantised, by its name or that of its `_scale` or `_low`; None: it is wide."""
    if isinstance(quantization, Mixed):
        weight = name.removesuffix("_scale").removesuffix("_low")
        for exception, kind in quantization.exceptions:
            if exception == weight:
                return kind
        quantization = quantization.most
    return INT8_GROUPS if quantization == INT4 and name.startswith("head") else quantization


def main_kind(quantization: Quantization | None) -> Kind | None:
    """The kind of most linear weights; None: all are wide."""
    return quantization.most if isinstance(quantization, Mixed) else quantization


def combined(kinds: Mapping[str, Kind | None]) -> Quantization | None:
    """The quantisation of a model whose linear weights, by name, are of these kinds; a head that is missing
    is a tied one, which is wide."""
    counts = Counter(kind for kind in kinds.values() if kind)
    if not counts:
        return None
    most = max(_KINDS, key=lambda kind: counts[kind])
    named: dict[str, Kind | None] = {"head": None, **kinds}
    others: dict[str, Kind | None] = {
        name: kind for name, kind in named.items() if kind != kind_of(name, most)
    }
    return Mixed(most, tuple(sorted(others.items()))) if others else most


def within(place: str, quantization: Quantization | None) -> Quantization | None:
    """The quantisation of the weights in `place`, such as `layers.0`, by their names inside it."""
    if not isinstance(quantization, Mixed):
        return quantization
    start = f"{place}."
    inner: dict[str, Kind | None] = {
        name.removeprefix(start): kind for name, kind in quantization.exceptions if name.startswith(start)
    }
    return Mixed(quantization.most, tuple(inner.items())) if inner else quantization.most


def is_grouped(kind: Kind | None) -> bool:
    """Whether a weight of this kind is quantised in groups."""
    return kind in (INT4, INT8_GROUPS)


def has_groups(quantization: Quantization | None) -> bool:
    """Whether some linear weights are quantised in groups."""
    if not isinstance(quantization, Mixed):
        return is_grouped(quantization)
    return is_grouped(quantization.most) or any(is_grouped(kind) for _, kind in quantization.exceptions)


def has_embedding(config: ModelConfig, quantization: Quantization | None) -> bool:
    """Whether there is an embedding besides the head: a tied head in groups is the embedding too."""
    return not (config.tied_head and is_grouped(kind_of("head", quantization)))


def has_head(config: ModelConfig, quantization: Quantization | None) -> bool:
    """Whether there is a head besides the embedding: a tied head is one of its own if it is quantised."""
    return kind_of("head", quantization) is not None or not config.tied_head


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
    kind = kind_of(name, quantization)
    if kind is None:
        return None
    if name.endswith(("_scale", "_low")):
        return "float16" if is_grouped(kind) else "float32"
    if not is_linear(name):
        return None
    return "uint8" if kind == INT4 else "int8"


def quantization_by_types(types: Mapping[str, str]) -> Quantization | None:
    """How linear weights are quantised, by the dtypes' names of all parameters."""
    return combined({name: _kind_by_types(name, types) for name in types if is_linear(name)})


def _kind_by_types(name: str, types: Mapping[str, str]) -> Kind | None:
    scale = types.get(f"{name}_scale")
    if scale == "float16":
        return INT4 if types[name] == "uint8" else INT8_GROUPS
    return INT8 if scale else None


def _quantized(
    shapes: Mapping[str, tuple[int, ...]], quantization: Quantization
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in shapes.items():
        kind = kind_of(name, quantization) if is_linear(name) else None
        if kind is None:
            yield name, shape
        elif is_grouped(kind):
            yield from _grouped(name, shape, kind)
        else:
            yield from ((name, shape), (f"{name}_scale", (*shape[:-2], shape[-1])))


def _grouped(name: str, shape: tuple[int, ...], kind: Kind) -> Iterator[tuple[str, tuple[int, ...]]]:
    *stacked, inputs, outputs = shape
    groups = (*stacked, inputs // GROUP, outputs)
    if kind == INT8_GROUPS:
        yield from ((name, shape), (f"{name}_scale", groups))
        return
    yield name, (*stacked, inputs // 2, outputs)
    yield from ((f"{name}_scale", groups), (f"{name}_low", groups))


def has_whole_experts(config: ModelConfig, shards: int) -> bool:
    """Whether each of `shards` devices holds whole experts, instead of a part of every expert."""
    return config.moe is not None and config.moe.experts % shards == 0


def check_groups(config: ModelConfig, quantization: Quantization | None, shards: int = 1) -> None:
    """Checks that the inputs of every linear map in groups, on each of `shards` devices, are whole groups.

    Raises:
      ConfigError: they are not.
    """
    if not has_groups(quantization):
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
