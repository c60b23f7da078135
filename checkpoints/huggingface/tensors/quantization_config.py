"""`quantization_config` of a Hugging Face `config.json`: how the weights of a quantised model are stored.

Looks at no tensor: the layouts do. Lists of modules that are not quantised are not read, because a file
shows that itself: such a module has a wide weight. The one idea: what is not known is refused by name here,
with what works instead, because integers that are read in another order or with another zero give a model
that generates nonsense.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ....model.errors import ConfigError
from ....model.parameters import (
    BLOCK,
    FP8,
    FP8_BLOCKS,
    GROUP,
    INT4,
    INT8,
    INT8_GROUPS,
    Kind,
    Mixed,
    Quantization,
    kind_of,
)
from ...values import brief, flag

_KEYS = ("quantization_config", "compression_config")
"""Its name, and the one that compressed-tensors gave it first."""
_INSTEAD = "the model without quantization_config works, with --quantize int8, int4 or fp8"
_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
_STRATEGIES = ("tensor", "channel", "group", "block")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """How a weight `[outputs, inputs]` is stored.

    Attributes:
      bits: of a value. floating: values are fp8, otherwise integers.
      group: inputs that share a scale; None: as many as the scales' shape says.
      block: outputs and inputs that share a scale, of fp8; None: no blocks.
      symmetric: there are no zeros beside the scales, or all are the middle. zero_offset: added to stored
        zeros. ordered: an input's group is stored (act-order); otherwise groups are runs of inputs.
      activations: they are quantised too. static: with scales that are stored. shifted: with zeros.
    """

    bits: int
    floating: bool = False
    group: int | None = None
    block: tuple[int, int] | None = None
    symmetric: bool = True
    zero_offset: int = 0
    ordered: bool = False
    activations: bool = False
    static: bool = False
    shifted: bool = False

    @property
    def exact(self) -> bool:
        """Whether groups of 32 have these integers as they are: groups are runs, and 8 bits have no zeros."""
        runs = not self.ordered or self.group is None
        return runs and (self.bits == 4 or self.symmetric)

    @property
    def groups(self) -> Kind:
        """The kind of its integers in groups of 32."""
        return INT4 if self.exact and self.bits == 4 else INT8_GROUPS

    @property
    def kind(self) -> Kind | None:
        """The kind of most weights that are stored so, if their sizes allow it; None: they are widened."""
        if self.floating:
            together = self.block[1] if self.block else self.group
            return FP8 if together is None else None if together % BLOCK else FP8_BLOCKS
        return INT8 if self.bits == 8 and self.activations and self.group is None else self.groups


@dataclass(frozen=True, slots=True)
class StoredQuantization:
    """What a `quantization_config` says.

    Attributes:
      method: its `quant_method`. schemes: by targets, which are names of modules, patterns that begin with
        `re:`, or `Linear` for all others.
    """

    method: str
    schemes: tuple[tuple[tuple[str, ...], Scheme], ...]

    def of(self, module: str) -> Scheme:
        """The scheme of a module by its name.

        Raises:
          ConfigError: none of the targets is this module.
        """
        for is_target in (_is_name, _is_pattern, _is_class):
            for targets, scheme in self.schemes:
                if any(is_target(target, module) for target in targets):
                    return scheme
        raise ConfigError(f"{module} is quantised; no target of config_groups in quantization_config is it")

    @property
    def served(self) -> Quantization | None:
        """How linear weights are served if all but the head are stored by the first scheme."""
        kind = self.schemes[0][1].kind
        return Mixed(kind, (("head", None),)) if kind and kind_of("head", kind) else kind


def _is_name(target: str, module: str) -> bool:
    return target == module


def _is_pattern(target: str, module: str) -> bool:
    return target.startswith("re:") and re.match(target[3:], module) is not None


def _is_class(target: str, module: str) -> bool:
    return target == "Linear"


def read_quantization(config: Mapping[str, Any]) -> StoredQuantization | None:
    """How the weights are quantised, by a parsed config.json; None: they are not.

    Raises:
      ConfigError: the method, or one of its settings, is not supported.
    """
    key = next((key for key in _KEYS if config.get(key)), None)
    if key is None:
        inner = config.get("text_config")
        return read_quantization(inner) if isinstance(inner, dict) else None
    stated = config[key]
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    if not isinstance(method, str) or method not in _READERS:
        what = f"quant_method {brief(method)}" if method else brief(stated)
        known = ", ".join(sorted(_READERS))
        raise ConfigError(f"{key} is {what}; expected one of {known}; {_INSTEAD}")
    try:
        return StoredQuantization(method, _READERS[method](stated))
    except ConfigError as error:
        raise ConfigError(f"{key} ({method}): {error}; {_INSTEAD}") from None


Schemes = tuple[tuple[tuple[str, ...], Scheme], ...]


def _gptq(stated: dict[str, Any]) -> Schemes:
    """AutoGPTQ's and GPTQModel's. Their first format stores zeros less 1, the second as they are."""
    layout = stated.get("checkpoint_format") or stated.get("format") or "gptq"
    _expect("checkpoint_format", layout, "gptq", "gptq_v2")
    _expect("is_marlin_format", flag(stated, "is_marlin_format"), False)
    _expect("dynamic", {key: value for key, value in (stated.get("dynamic") or {}).items() if value}, {})
    scheme = Scheme(
        bits=_bits(stated, "bits"),
        group=_group(stated, "group_size"),
        symmetric=flag(stated, "sym"),
        zero_offset=int(layout == "gptq"),
        ordered=flag(stated, "desc_act") and not flag(stated, "static_groups"),
    )
    return ((("Linear",), scheme),)


def _awq(stated: dict[str, Any]) -> Schemes:
    """AutoAWQ's `gemm`."""
    version = stated.get("version") or stated.get("format") or "gemm"
    _expect("version", str(version).lower(), "gemm")
    _expect("backend", stated.get("backend") == "llm-awq", False)
    _expect("zero_point", stated.get("zero_point", True), True)
    _expect("bits", stated.get("bits", stated.get("w_bit")), 4)
    size = "group_size" if "group_size" in stated else "q_group_size"
    return ((("Linear",), Scheme(bits=4, group=_group(stated, size), symmetric=False)),)


def _fp8(stated: dict[str, Any]) -> Schemes:
    """DeepSeek's and Qwen's, with blocks; Mistral's and AutoFP8's, with a scale for each weight."""
    block = stated.get("weight_block_size")
    if block is not None and not _is_block(block):
        raise ConfigError(f"weight_block_size is {brief(block)}; expected two positive integers")
    scheme = stated.get("activation_scheme", "dynamic")
    _expect("activation_scheme", scheme, "dynamic", "static")
    pair = (block[0], block[1]) if block else None
    found = Scheme(bits=8, floating=True, block=pair, activations=True, static=scheme == "static")
    return ((("Linear",), found),)


def _compressed(stated: dict[str, Any]) -> Schemes:
    """compressed-tensors, as llm-compressor writes it."""
    groups = stated.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ConfigError(f"config_groups is {brief(groups)}; expected an object of schemes")
    _expect("format", stated.get("format"), *_FORMATS)
    _expect("transform_config", stated.get("transform_config") or {}, {})
    _expect("sparsity_config", (stated.get("sparsity_config") or {}).get("format", "dense"), "dense")
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise ConfigError(f"config_groups.{name} is {brief(group)}; expected an object")
    return tuple(_config_group(name, group) for name, group in groups.items() if group.get("weights"))


def _config_group(name: str, group: dict[str, Any]) -> tuple[tuple[str, ...], Scheme]:
    weights, inputs = group["weights"], group.get("input_activations") or {}
    _expect(f"{name}.format", group.get("format") or _FORMATS[0], *_FORMATS)
    _expect(f"{name}.weights.type", weights.get("type", "int"), "int", "float")
    _expect(f"{name}.weights.dynamic", bool(weights.get("dynamic")), False)
    floating, strategy = weights.get("type") == "float", weights.get("strategy")
    strategy = strategy or ("group" if weights.get("group_size") else "tensor")
    _expect(f"{name}.weights.strategy", strategy, *_STRATEGIES)
    bits = _bits(weights, "num_bits")
    _expect(f"{name}.weights.num_bits", bits, *((8,) if floating else (4, 8)))
    block = weights.get("block_structure") if strategy == "block" else None
    _expect(f"{name}.weights.block_structure", block is not None and not _is_block(block), False)
    return tuple(group.get("targets") or ("Linear",)), Scheme(
        bits=bits,
        floating=floating,
        group=_group(weights, "group_size") if strategy == "group" else None,
        block=(block[0], block[1]) if block else None,
        symmetric=weights.get("symmetric", True) is not False,
        ordered=weights.get("actorder") in (True, "group", "dynamic"),
        activations=bool(inputs),
        static=bool(inputs) and not inputs.get("dynamic"),
        shifted=inputs.get("symmetric") is False,
    )


def _bits(stated: dict[str, Any], key: str) -> int:
    bits = stated.get(key)
    _expect(key, bits, 4, 8)
    assert isinstance(bits, int)
    return bits


def _group(stated: dict[str, Any], key: str) -> int | None:
    """The inputs of a group; None for -1, all inputs of an output."""
    size = stated.get(key, -1)
    if size == -1:
        return None
    if type(size) is not int or size <= 0 or size % GROUP:
        raise ConfigError(f"{key} is {brief(size)}; expected -1 or a multiple of {GROUP}")
    return size


def _is_block(block: Any) -> bool:
    """Whether it is a pair of sizes."""
    return (
        isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    )


def _expect(key: str, value: Any, *expected: Any) -> None:
    if value not in expected:
        raise ConfigError(f"{key} is {brief(value)}; expected {' or '.join(map(repr, expected))}")


_READERS = {"awq": _awq, "compressed-tensors": _compressed, "fp8": _fp8, "gptq": _gptq}
