"""LoRA adapters as PEFT saves them: a folder with `adapter_config.json` and `adapter_model.safetensors`.

The one idea: the tensors say which maps are changed, and the configuration says how. What would change the
computation in any other way than `x @ w + (x @ a) @ b` is refused by name.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..model.adapter import Adapter, LowRank
from ..model.config import ModelConfig
from ..model.parameters import is_linear, parameter_shapes
from .errors import CheckpointError
from .files import read_json
from .names import HUGGINGFACE, HUGGINGFACE_JOINED
from .notes import note
from .values import brief

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
}
"""Keys that change the computation, with the values that we compute, the usual one first."""
_PATTERN_FAULTS = "expected a mapping from names of modules to numbers"
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_COPIES = ("lm_head.base_layer.weight", "embed_tokens.weight")
"""What PEFT saves as well if the head has an adapter."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def read_adapter(path: Path, config: ModelConfig) -> Adapter:
    """Reads an adapter for a model.

    Args:
      path: the folder. config: of the model.

    Raises:
      CheckpointError: a file is missing or damaged, the adapter needs another computation, or it was made for
        another model.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: missing; expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    stated = read_json(path / CONFIG_FILE)
    _check(path / CONFIG_FILE, stated)
    weights: dict[str, LowRank] = {}
    for module, factors in _modules(path, _load(path)).items():
        places = _parameters(path, module, config, factors["A"].shape[1], factors["B"].shape[0])
        down, up = _scaled(path, module, factors, stated)
        weights |= {name: (down, up[:, columns]) for name, columns in places}
    if not weights:
        raise CheckpointError(
            f"{path / WEIGHTS_FILE}: no tensors; expected lora_A and lora_B of some modules"
        )
    return Adapter(rank=max(down.shape[1] for down, _ in weights.values()), weights=weights)


def digest_of(adapter: Adapter) -> str:
    """Sixteen hexadecimal digits of a hash of an adapter's weights."""
    digest = hashlib.sha256()
    for name, factors in sorted(adapter.weights.items()):
        digest.update(name.encode())
        for factor in factors:
            digest.update(str(factor.shape).encode() + np.ascontiguousarray(factor).tobytes())
    return digest.hexdigest()[:16]


def _check(file: Path, stated: Mapping[str, Any]) -> None:
    """Refuses a configuration that needs another computation."""
    for key, values in _ONLY.items():
        if stated.get(key) not in values:
            raise CheckpointError(f"{file}: {key} is {brief(stated.get(key))}; expected {values[0]!r}")
    for key, value in stated.items():
        if key.startswith("use_") and key not in {*_ONLY, "use_rslora"} and value:
            raise CheckpointError(f"{file}: {key} is {brief(value)}; expected this unknown key to be off")


def _load(path: Path) -> dict[str, np.ndarray]:
    file = path / WEIGHTS_FILE
    if not file.exists():
        pickled = next((path / name for name in ("adapter_model.bin",) if (path / name).exists()), None)
        if pickled is not None:
            raise CheckpointError(f"{pickled}: pickled weights are never opened; expected {WEIGHTS_FILE}")
        raise CheckpointError(f"{file}: missing")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from None


def _modules(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The factors, A `[r, inputs]` and B `[outputs, r]`, of each module."""
    file = path / WEIGHTS_FILE
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, values in tensors.items():
        if name.endswith(_COPIES):
            note(f"{file}: {name} is a copy of the model's own tensor; it is not read")
            continue
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise CheckpointError(f"{file}: tensor {name}; expected only lora_A and lora_B of linear maps")
        if values.ndim != 2 or not np.isfinite(values.astype(np.float32)).all():
            raise CheckpointError(f"{file}: tensor {name} {list(values.shape)}; expected a finite matrix")
        found.setdefault(match[1], {})[match[2]] = values.astype(np.float32)
    for module, factors in found.items():
        if set(factors) != {"A", "B"} or factors["A"].shape[0] != factors["B"].shape[1]:
            shapes = {name: list(values.shape) for name, values in factors.items()}
            raise CheckpointError(f"{file}: {module} has {shapes}; expected A [r, inputs] and B [outputs, r]")
    return found


def _scaled(path: Path, module: str, factors: Mapping[str, np.ndarray], stated: Mapping[str, Any]) -> LowRank:
    """The factors `[inputs, r]` and `[r, outputs]`, with the scale in the second one."""
    down, up = factors["A"].T, factors["B"].T
    file, rank = path / CONFIG_FILE, down.shape[1]
    expected = _number(file, stated, "r", "rank_pattern", module, 8)
    if rank != expected:
        raise CheckpointError(f"{path / WEIGHTS_FILE}: {module} has the rank {rank}; expected {expected:g}")
    alpha = _number(file, stated, "lora_alpha", "alpha_pattern", module, 8)
    scale = alpha / (math.sqrt(rank) if stated.get("use_rslora") else rank)
    return np.ascontiguousarray(down), np.ascontiguousarray(up * np.float32(scale))


def _number(
    file: Path, stated: Mapping[str, Any], key: str, pattern: str, module: str, default: float
) -> float:
    """A setting of a module: of the first pattern that fits the end of its name, else of all."""
    patterns = stated.get(pattern) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{file}: {pattern} is {brief(patterns)}; {_PATTERN_FAULTS}")
    value = stated.get(key, default)
    for part, own in patterns.items():
        try:
            fits = re.fullmatch(rf"(.*\.)?({part})", module)
        except re.error:
            raise CheckpointError(f"{file}: {pattern} has {brief(part)}; {_PATTERN_FAULTS}") from None
        if fits:
            value = own
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"{file}: {key} of {module} is {brief(value)}; expected a positive number")
    return value


def _parameters(
    path: Path, module: str, config: ModelConfig, inputs: int, outputs: int
) -> list[tuple[str, slice]]:
    """The parameters that a module's weight consists of, each with its columns."""
    shapes = parameter_shapes(config)
    shapes.setdefault("head", (config.width, config.vocabulary))
    names = _names(module, shapes)
    if not names:
        raise CheckpointError(
            f"{path / WEIGHTS_FILE}: the adapter changes {module}; expected linear maps of attention and "
            "feed-forward, or lm_head"
        )
    ends = np.cumsum([shapes[name][-1] for name in names]).tolist()
    if shapes[names[0]][0] != inputs or ends[-1] != outputs:
        raise CheckpointError(
            f"{path / WEIGHTS_FILE}: {module} has {inputs} inputs and {outputs} outputs; expected "
            f"{shapes[names[0]][0]} and {ends[-1]}, those of the model"
        )
    return [(name, slice(start, end)) for name, start, end in zip(names, [0, *ends], ends, strict=False)]


def _names(module: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Our names of the linear maps in a module of transformers, in the order of its outputs; empty if it is
    none, or one of experts."""
    if module == "lm_head":
        return ["head"]
    match = _LAYER.fullmatch(module)
    if match is None:
        return []
    weight, names = f"model.layers.{{layer}}.{match[2]}.weight", list[str]()
    for table in (HUGGINGFACE, HUGGINGFACE_JOINED):
        names += [f"layers.{int(match[1])}.{ours}" for ours, theirs in table.items() if theirs == weight]
    return [name for name in names if is_linear(name) and len(shapes.get(name, ())) == 2]
