"""The names and shapes of a model's parameters, without JAX.

The network, the checkpoint readers and the store share this list: a parameter's name is its path in the
`Transformer` module, joined by dots. Linear weights are stored as `[inputs, outputs]`, so that the
computation is `x @ w`; experts are stacked on a leading axis, `[experts, inputs, outputs]`, with a `router`
`[D, E]`. A test compares this list with the module.
"""

from collections.abc import Mapping

from .config import ModelConfig


def parameter_shapes(config: ModelConfig, *, int8: bool = False) -> dict[str, tuple[int, ...]]:
    """Every parameter of the model, by name, in the order in which the computation uses them.

    With `int8`, each weight that `quantize.py` makes int8 is followed by its `_scale`, one f32 per output,
    and a tied head becomes a separate weight.
    """
    shapes: dict[str, tuple[int, ...]] = {"embed": (config.vocabulary, config.width)}
    for layer in range(config.layers):
        for name, shape in layer_shapes(config).items():
            shapes[f"layers.{layer}.{name}"] = shape
    shapes["norm"] = (config.width,)
    if int8 or not config.tied_head:
        shapes["head"] = (config.width, config.vocabulary)
    return _with_scales(shapes) if int8 else shapes


def is_linear(name: str) -> bool:
    """Whether a parameter is the weight of a linear map that int8 applies to: all of them except the
    router."""
    return name.rpartition(".")[2] in ("q", "k", "v", "o", "gate", "up", "down", "head")


def _with_scales(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    scaled: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        scaled[name] = shape
        if is_linear(name):
            scaled[f"{name}_scale"] = (*shape[:-2], shape[-1])
    return scaled


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The parameters of one layer, by their names inside it."""
    d, f = config.width, config.feed_forward
    nh, kh = config.heads * config.head_size, config.kv_heads * config.head_size
    attention = {"q": (d, nh), "k": (d, kh), "v": (d, kh), "o": (nh, d)}
    feed_forward = {"gate": (d, f), "up": (d, f), "down": (f, d)}
    if config.moe is not None:
        experts = config.moe.experts
        feed_forward = {"router": (d, experts)} | {n: (experts, *s) for n, s in feed_forward.items()}
    return {
        "attention_norm": (d,),
        **_linears("attention", attention, bias=config.attention_bias),
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
