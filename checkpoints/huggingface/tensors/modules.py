"""Finds the quantised modules among a folder's tensors, and shows each as one weight.

Which layout a module has is seen by its tensors. The one idea: whatever else a folder holds passes through,
so the same names and shapes are checked for quantised and other folders.
"""

from collections.abc import Callable, Mapping

from .awq import awq_gemm
from .bytes8 import fp8, int8
from .compressed import pack_quantized
from .gptq import gptq
from .quantization_config import StoredQuantization
from .shards import StoredTensor
from .weight import Module, PackedWeight

Tensors = dict[str, StoredTensor | PackedWeight]
_Layout = Callable[[Module], PackedWeight]

_PARTS = {
    *{"weight", "weight_packed", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_shape"},
    *{"weight_g_idx", "qweight", "qzeros", "scales", "g_idx"},
    *{"input_scale", "input_zero_point", "input_scale_inv", "activation_scale", "output_scale"},
}
"""The tensors of a quantised module, except its bias."""
_PACKED = {"weight_packed", "weight_zero_point", "weight_shape", "weight_g_idx"}
_WORDS = {"qweight", "qzeros", "scales", "g_idx"}


def with_packed(headers: Mapping[str, StoredTensor], stored: StoredQuantization | None) -> Tensors:
    """A folder's tensors; those of a quantised module as one weight. None: no module is quantised.

    Raises:
      CheckpointError: a tensor of a quantised module is missing, or does not fit the others.
      ConfigError: the module has no scheme, or one that is not supported.
    """
    found: Tensors = dict(headers)
    if stored is None:
        return found
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in headers.items():
        stem, _, part = name.rpartition(".")
        if part in _PARTS:
            modules.setdefault(stem, {})[part] = tensor
    for stem, parts in modules.items():
        layout = _layout_of(parts, stored.method)
        if layout is not None:
            for part in parts:
                del found[f"{stem}.{part}"]
            found[f"{stem}.weight"] = layout(Module(stem, parts, stored.of(stem)))
    return found


def _layout_of(parts: Mapping[str, StoredTensor], method: str) -> _Layout | None:
    """The layout of a module with these tensors; None if its weight is wide."""
    if method in ("gptq", "awq"):
        return (gptq if method == "gptq" else awq_gemm) if _WORDS & parts.keys() else None
    weight = parts.get("weight")
    if weight is not None and not _PACKED & parts.keys():
        return {"I8": int8, "F8_E4M3": fp8, "F8_E5M2": fp8}.get(weight.kind)
    if weight is None and method == "compressed-tensors" and {"weight_packed", "weight_scale"} & parts.keys():
        return pack_quantized
    return None
