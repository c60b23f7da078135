"""The names and shapes of a model's parameters, without JAX.

The network, the checkpoint readers and the store share this list: a parameter's name is its path in the
`Transformer` module, joined by dots. Linear weights are stored as `[inputs, outputs]`, so that the
computation is `x @ w`; experts are stacked on a leading axis, `[experts, inputs, outputs]`, with a `router`
`[D, E]`. A test compares this list with the module.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .config import ModelConfig
from .errors import ConfigError

Kind = Literal["int8", "int4", "int8-groups", "fp8", "fp8-blocks"]
"""How a linear weight is quantised (see `quantize.py`): int8 with a scale for each output; in groups of 32
inputs, with 4 bits or with 8 bits; fp8 with a scale for each output, or for each block of 128 inputs."""
INT8: Kind = "int8"
INT4: Kind = "int4"
INT8_GROUPS: Kind = "int8-groups"
FP8: Kind = "fp8"
FP8_BLOCKS: Kind = "fp8-blocks"
_KINDS: tuple[Kind, ...] = (INT4, INT8_GROUPS, INT8, FP8, FP8_BLOCKS)
GROUP = 32
"""Inputs of a group of integers."""
BLOCK = 128
"""Inputs of a block of fp8."""
_HEADS: dict[Kind, Kind | None] = {INT4: INT8_GROUPS, FP8: None, FP8_BLOCKS: None}
"""The kind of a head, if it is not that of the other weights."""
_INPUTS: Mapping[str | None, int] = {INT4: GROUP, INT8_GROUPS: GROUP, FP8_BLOCKS: BLOCK}
"""How many inputs share a scale, if not all."""
FLOAT8 = "float8_e4m3fn"
"""The name of the dtype of fp8 weights."""


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
bits, with `fp8` alone it is wide."""


def kind_of(name: str, quantization: Quantization | None) -> Kind | None:
    """How a linear weight is quantised, by its name or that of its `_scale` or `_low`; None: it is wide."""
    if isinstance(quantization, Mixed):
        weight = name.removesuffix("_scale").removesuffix("_low")
        for exception, kind in quantization.exceptions:
            if exception == weight:
                return kind
        quantization = quantization.most
    return (
        _HEADS.get(quantization, quantization) if quantization and name.startswith("head") else quantization
    )


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
    """Whether a weight of this kind is of integers in groups."""
    return kind in (INT4, INT8_GROUPS)


def is_fp8(kind: Kind | None) -> bool:
    """Whether a weight of this kind is of fp8."""
    return kind in (FP8, FP8_BLOCKS)


def has_scales_by_input(kind: Kind | None) -> bool:
    """Whether the scales of a weight of this kind have an axis for its inputs."""
    return kind in _INPUTS


def kinds_of(quantization: Quantization | None) -> set[Kind]:
    """The kinds of a model's linear weights, as far as `Quantization` tells them."""
    others = quantization.exceptions if isinstance(quantization, Mixed) else ()
    kinds: tuple[Kind | None, ...] = (main_kind(quantization), *(kind for _, kind in others))
    return {kind for kind in kinds if kind}


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
    if is_fp8(kind):
        return FLOAT8
    return "uint8" if kind == INT4 else "int8"


def quantization_by_parts(parts: Mapping[str, tuple[str, Sequence[int]]]) -> Quantization | None:
    """How linear weights are quantised, by the dtypes' names and the shapes of all parameters."""
    return combined({name: _kind_by_parts(name, parts) for name in parts if is_linear(name)})


def _kind_by_parts(name: str, parts: Mapping[str, tuple[str, Sequence[int]]]) -> Kind | None:
    if f"{name}_scale" not in parts:
        return None
    (dtype, shape), (_, scales) = parts[name], parts[f"{name}_scale"]
    by_input = len(scales) == len(shape)
    if dtype == FLOAT8:
        return FP8_BLOCKS if by_input else FP8
    if dtype == "uint8":
        return INT4
    return INT8_GROUPS if by_input else INT8


def _quantized(
    shapes: Mapping[str, tuple[int, ...]], quantization: Quantization
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in shapes.items():
        kind = kind_of(name, quantization) if is_linear(name) else None
        yield from _parts(name, shape, kind).items() if kind else ((name, shape),)


def _parts(name: str, shape: tuple[int, ...], kind: Kind) -> dict[str, tuple[int, ...]]:
    *stacked, inputs, outputs = shape
    together = _INPUTS.get(kind)
    scales = (*stacked, inputs // together, outputs) if together else (*stacked, outputs)
    if kind != INT4:
        return {name: shape, f"{name}_scale": scales}
    return {name: (*stacked, inputs // 2, outputs), f"{name}_scale": scales, f"{name}_low": scales}


def has_whole_experts(config: ModelConfig, shards: int) -> bool:
    """Whether each of `shards` devices holds whole experts, instead of a part of every expert."""
    return config.moe is not None and config.moe.experts % shards == 0


def check_groups(config: ModelConfig, quantization: Quantization | None, shards: int = 1) -> None:
    """Checks that the inputs of every linear map in groups or blocks, on each of `shards` devices, are whole
    ones.

    Raises:
      ConfigError: they are not.
    """
    heads, parts = config.heads * config.head_size, 1 if has_whole_experts(config, shards) else shards
    inputs = {"q": config.width, "o": heads // shards, "down": config.feed_forward // parts}
    for name, size in inputs.items():
        together = _most_together(name, quantization)
        if size % together:
            found = f"weights are {quantization} and {name} has {size} inputs on a device"
            raise ConfigError(f"{found}; expected a multiple of {together}")


def _most_together(name: str, quantization: Quantization | None) -> int:
    """The most inputs that share a scale, in weights of the same inputs as `o`, `down`, or all others."""
    others = quantization.exceptions if isinstance(quantization, Mixed) else ()
    places = ((weight.rpartition(".")[2], kind) for weight, kind in others)
    kinds = [kind for place, kind in places if (place if place in ("o", "down") else "q") == name]
    return max(_INPUTS.get(kind, 1) for kind in (main_kind(quantization), *kinds))


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
