"""Trees of parameters that training programs save, and our names: one table for each.

- Distaff: `model.module.CausalLM`.
- NNX: a plain Llama whose modules have the names of transformers, with kernels `[inputs, outputs]`.
- MaxText: https://github.com/AI-Hypercomputer/maxtext, with its layers one by one or stacked (scanned). Its
  queries contain the factor 1 / sqrt(H), heads have an axis of their own, and with Llama 3.1's rotary
  embedding the two numbers that are rotated together are neighbours, not half a head apart.

The one idea: a tree may be part of a larger one, such as a train state. So its root is searched for by the
name of the final norm.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ...model.config import ModelConfig
from ...model.parameters import parameter_shapes
from ..errors import CheckpointError
from .orbax_item import Path_

Shapes = Mapping[Path_, tuple[int, ...]]

_NORM = ("norm",)
_NNX = {
    "embed": "model.embed_tokens.embedding",
    "norm": "model.norm.scale",
    "head": "lm_head.kernel",
    "attention_norm": "model.layers.{layer}.input_layernorm.scale",
    **{f"attention.{name}": f"model.layers.{{layer}}.self_attn.{name}_proj.kernel" for name in "qkvo"},
    **{f"attention.{name}_bias": f"model.layers.{{layer}}.self_attn.{name}_proj.bias" for name in "qkvo"},
    "attention.q_norm": "model.layers.{layer}.self_attn.q_norm.scale",
    "attention.k_norm": "model.layers.{layer}.self_attn.k_norm.scale",
    "feed_forward_norm": "model.layers.{layer}.post_attention_layernorm.scale",
    **{
        f"feed_forward.{name}": f"model.layers.{{layer}}.mlp.{name}_proj.kernel"
        for name in ("gate", "up", "down")
    },
}
_MAXTEXT = {
    "embed": "token_embedder.embedding",
    "norm": "decoder.decoder_norm.scale",
    "head": "decoder.logits_dense.kernel",
    "attention_norm": "decoder.{layers}.pre_self_attention_layer_norm.scale",
    "attention.q": "decoder.{layers}.self_attention.query.kernel",
    "attention.k": "decoder.{layers}.self_attention.key.kernel",
    "attention.v": "decoder.{layers}.self_attention.value.kernel",
    "attention.o": "decoder.{layers}.self_attention.out.kernel",
    "feed_forward_norm": "decoder.{layers}.post_self_attention_layer_norm.scale",
    "feed_forward.gate": "decoder.{layers}.mlp.wi_0.kernel",
    "feed_forward.up": "decoder.{layers}.mlp.wi_1.kernel",
    "feed_forward.down": "decoder.{layers}.mlp.wo.kernel",
}
_MAXTEXT_EXPERTS = {
    "feed_forward.router": "decoder.{layers}.MoeBlock_0.gate.kernel",
    "feed_forward.gate": "decoder.{layers}.MoeBlock_0.wi_0",
    "feed_forward.up": "decoder.{layers}.MoeBlock_0.wi_1",
    "feed_forward.down": "decoder.{layers}.MoeBlock_0.wo",
}
_ALIKE = ("scale", "weight", "kernel")
"""Names of a norm's parameter."""
_WRAPPED = ("value", "raw_value")
"""The last key of a variable that NNX has saved as a whole."""
_OPTIMIZER = frozenset({"opt_state", "optimizer", "optimizer_state", "opt", "mu", "nu", "ema"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a parameter is in a tree.

    Attributes:
      path: of the array. layer: the part of a stacked array along `axis`; None: the whole.
    """

    path: Path_
    layer: int | None = None
    axis: int = 0

    def take(self, values: np.ndarray) -> np.ndarray:
        """The parameter's own part of the array."""
        return values if self.layer is None else values.take(self.layer, self.axis)


@dataclass(frozen=True, slots=True)
class Tree:
    """A kind of tree.

    Attributes:
      title: for messages. table: our names to theirs; of a layer's parameters without `layers.N.`.
      maxtext: its arrays are converted. stacked: one array has a parameter of all layers.
    """

    title: str
    table: Mapping[str, str] | None = None
    maxtext: bool = False
    stacked: bool = False

    def may_hold(self, config: ModelConfig) -> bool:
        """Whether it can have a model with, or without, experts."""
        return self.table is None or ("feed_forward.router" in self.table) == (config.moe is not None)

    def name_of(self, name: str) -> Path_ | None:
        """The path of our parameter below the tree's root; None if the tree has no place for it."""
        if self.table is None:
            return tuple(name.split("."))
        _, layer, inner = name.split(".", 2) if name.startswith("layers.") else ("", "", name)
        if inner not in self.table:
            return None
        layers = "layers" if self.stacked else f"layers_{layer}"
        return tuple(self.table[inner].format(layer=layer, layers=layers).split("."))

    def stored_shape(self, name: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
        """The shape of a parameter, of one layer, in the tree."""
        if not self.maxtext or ".attention." not in name:
            return shape
        size = config.head_size
        if name.endswith(".o"):
            return shape[0] // size, size, shape[1]
        return shape[0], shape[1] // size, size

    def convert(self, name: str, values: np.ndarray, config: ModelConfig) -> np.ndarray:
        """A parameter as ours, from its own part of the array."""
        if not self.maxtext or ".attention." not in name:
            return values
        inner = name.rpartition(".")[2]
        if inner == "o":
            return values.reshape(-1, values.shape[-1])
        if inner in "qk" and config.rope is not None and config.rope.kind == "llama3":
            values = np.concatenate([values[..., ::2], values[..., 1::2]], axis=-1)
        if inner == "q":
            values = (values.astype(np.float32) * np.float32(math.sqrt(config.head_size))).astype(
                values.dtype
            )
        return values.reshape(values.shape[0], -1)


TREES = (
    Tree("Distaff's"),
    Tree("a plain NNX Llama's", _NNX),
    Tree("MaxText's", {**_MAXTEXT}, maxtext=True),
    Tree("MaxText's, scanned", {**_MAXTEXT}, maxtext=True, stacked=True),
    Tree("MaxText's mixture", {**_MAXTEXT, **_MAXTEXT_EXPERTS}, maxtext=True),
    Tree("MaxText's mixture, scanned", {**_MAXTEXT, **_MAXTEXT_EXPERTS}, maxtext=True, stacked=True),
)


def find_tree(file: str, config: ModelConfig, found: Shapes) -> tuple[Tree, dict[str, Origin]]:
    """The kind of a checkpoint's tree, and the origin of each parameter, in order.

    Args:
      file: for messages. found: the shapes of all arrays.

    Raises:
      CheckpointError: it is none of `TREES`, or has other sizes; the differences to the nearest are named.
    """
    nearest: tuple[float, str] = math.inf, "it has no arrays of a model"
    for tree in TREES:
        for root in _roots(tree, found) if tree.may_hold(config) else ():
            origins, differences = _compare(tree, root, config, found)
            if not differences:
                return tree, origins
            text = f"nearest is {tree.title}{f' at {_dotted(root)}' if root else ''}: {_brief(differences)}"
            nearest = min(nearest, (len(differences), text))
    expected = ", ".join(tree.title for tree in TREES)
    raise CheckpointError(f"{file}: its tree of parameters is not known; {nearest[1]}; expected {expected}")


def _roots(tree: Tree, found: Shapes) -> list[Path_]:
    """Where a tree of this kind may begin: above a final norm outside the optimizer's state."""
    norm = tree.name_of("norm") or _NORM
    roots = {_plain(path)[: -len(norm)] for path in found if _same(_plain(path)[-len(norm) :], norm)}
    return sorted((root for root in roots if not _OPTIMIZER.intersection(root)), key=len)


def _plain(path: Path_) -> Path_:
    return path[:-1] if path[-1] in _WRAPPED else path


def _same(found: Path_, expected: Path_) -> bool:
    """Whether two paths are equal, except for the name of a norm's parameter."""
    norms = found[-1:] != expected[-1:] and expected[-1] == "scale" and found[-1:] and found[-1] in _ALIKE
    return found == expected or bool(norms and found[:-1] == expected[:-1])


def _compare(
    tree: Tree, root: Path_, config: ModelConfig, found: Shapes
) -> tuple[dict[str, Origin], list[str]]:
    """The origins of all parameters, and what is missing, unexpected or of another shape."""
    below = {_plain(path)[len(root) :]: path for path in found if path[: len(root)] == root}
    origins: dict[str, Origin] = {}
    differences: list[str] = []
    for name, shape in parameter_shapes(config).items():
        theirs = tree.name_of(name)
        path = None if theirs is None else next(filter(None, map(below.get, _spellings(theirs))), None)
        if path is None:
            differences.append(f"{_dotted(theirs or (name,))} is missing")
            continue
        expected = tree.stored_shape(name, shape, config)
        layer = int(name.split(".")[1]) if tree.stacked and name.startswith("layers.") else None
        axis = _stacked_axis(found[path], expected, config.layers) if layer is not None else 0
        if axis is None or (layer is None and found[path] != expected):
            wanted = f"{list(expected)}" + ("" if layer is None else f" with {config.layers} layers")
            differences.append(f"{_dotted(path)} has the shape {list(found[path])} instead of {wanted}")
        else:
            origins[name] = Origin(path, layer, axis)
    used = {origin.path for origin in origins.values()}
    differences += [f"{_dotted(path)} is not expected" for path in _others(below.values(), used, found)]
    return origins, list(dict.fromkeys(differences))


def _others(paths: Iterable[Path_], used: set[Path_], found: Shapes) -> Iterator[Path_]:
    """Arrays beside the parameters that belong to no optimizer, in the order of the tree."""
    for path in paths:
        if path not in used and found[path] and not _OPTIMIZER.intersection(path):
            yield path


def _spellings(path: Path_) -> list[Path_]:
    return [(*path[:-1], last) for last in _ALIKE] if path[-1] == "scale" else [path]


def _stacked_axis(found: tuple[int, ...], one: tuple[int, ...], layers: int) -> int | None:
    """The axis of the layers: the second one, which is MaxText's default, or any that fits."""
    for axis in sorted(range(len(found)), key=lambda axis: axis != 1):
        if found[axis] == layers and found[:axis] + found[axis + 1 :] == one:
            return axis
    return None


def _dotted(path: Path_) -> str:
    return ".".join(path)


def _brief(differences: list[str]) -> str:
    more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
    return ", ".join(differences[:5]) + more
