"""The engine's settings, and the shapes and types that they mean for a given model and machine."""

from dataclasses import dataclass

import jax.numpy as jnp

from ...model.cache import TILE
from ...model.config import ModelConfig
from ...model.errors import ConfigError
from .buckets import Shapes
from .memory import Device

DTYPES = ("float32", "bfloat16")
"""Data types of the computation."""
CACHE_DTYPES = ("int8",)
"""Data types of cached keys and values, besides that of the computation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """The settings of one engine; None derives a value from the model and the machine.

    Attributes:
      slots: sequences that decode at the same time.
      context: the longest sequence, in tokens; at most the model's own.
      prefill_tokens: the most tokens of a step; a longer prompt takes several steps.
      kv_pages: pages of the KV pool. packed_pages: those that a pack's steps are compiled for, taken if
        `kv_pages` is None and they fit (see `runtime/packs.py`).
      host_kv_pages: pages that host memory keeps beyond a process's life, if it has a file for them (see
        `runtime/policy/host_pages.py`).
      kv_cache_dtype: `int8` quantizes keys and values; None stores them in the type of the computation.
      replicas: engines on this host that share its memory.
      kernels: `(operation, backend)` pairs that replace our choice (see `model/kernels/registry.py`).
      prefix_cache: sequences share the pages of equal beginnings.
      speculation: draft tokens where that makes decoding faster.
      profile: the folder for profiles; None refuses to make any.
      deterministic: equal requests get equal bits under any load. All steps have one shape, unless the
        kernels are batch-invariant (see `Skeleton.is_batch_invariant`).
      grammars: requests may have grammars. scores: requests may ask for log-probabilities of their prompts;
        never if all steps have one shape, because steps of another shape compute them.
      max_adapters: LoRA adapters on the device at the same time; 0: none can be used.
      max_adapter_rank: the largest rank of an adapter.
    """

    slots: int | None = None
    context: int | None = None
    prefill_tokens: int | None = None
    kv_pages: int | None = None
    packed_pages: int | None = None
    host_kv_pages: int | None = None
    kv_cache_dtype: str | None = None
    replicas: int = 1
    kernels: tuple[tuple[str, str], ...] = ()
    prefix_cache: bool = True
    speculation: bool = True
    deterministic: bool = False
    grammars: bool = False
    scores: bool = False
    profile: str | None = None
    max_adapters: int = 0
    max_adapter_rank: int = 16


@dataclass(frozen=True, slots=True)
class Platform:
    """Defaults for a kind of device: slots, tokens of one step, tokens in a page, type of the computation."""

    slots: int
    budget: int
    page_size: int
    dtype: str


PLATFORMS = {
    "cpu": Platform(slots=32, budget=256, page_size=16, dtype="float32"),
    "gpu": Platform(slots=128, budget=2048, page_size=16, dtype="bfloat16"),
    "tpu": Platform(slots=128, budget=2048, page_size=64, dtype="bfloat16"),
}
"""A step is compute-bound from about a hundred tokens on a CPU, from many hundreds on accelerators; a CPU
with AVX2 computes bfloat16 ten times slower than float32."""


def platform_of(device: Device) -> Platform:
    """The defaults for a device's kind; an unknown kind is treated like a GPU."""
    return PLATFORMS.get(device.platform, PLATFORMS["gpu"])


def pages_of(tokens: int, device: Device) -> int:
    """The number of whole pages that keys and values of `tokens` tokens fill.

    Raises:
      ConfigError: less than one page.
    """
    size = platform_of(device).page_size
    if tokens < size:
        raise ConfigError(f"kv_tokens is {tokens}; expected at least a page of {size} tokens")
    return tokens // size


def compute_dtype(name: str | None, device: Device) -> jnp.dtype:
    """The data type of weights, activations and cache; None for the device's default.

    Raises:
      ConfigError: not one of DTYPES.
    """
    name = name or platform_of(device).dtype
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return jnp.dtype(name)


def cache_dtype(name: str | None, computed: jnp.dtype) -> jnp.dtype:
    """The data type of cached keys and values; None for that of the computation.

    Raises:
      ConfigError: not one of CACHE_DTYPES.
    """
    if name is None:
        return computed
    if name not in CACHE_DTYPES:
        raise ConfigError(f"kv_cache_dtype is {name!r}; expected one of {', '.join(CACHE_DTYPES)}")
    return jnp.dtype(name)


def derive_shapes(
    config: ModelConfig, settings: EngineSettings, device: Device, *, invariant: bool = False
) -> Shapes:
    """The sizes that the engine is compiled for; `invariant`: the kernels are batch-invariant.

    Raises:
      ConfigError: a setting is not positive, the context is longer than the model's, or a step would have
        fewer tokens than there are slots.
    """
    platform = platform_of(device)
    for name in ("slots", "context", "prefill_tokens", "kv_pages"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
    context = settings.context or config.context
    if context > config.context:
        raise ConfigError(f"context is {context}; the model was made for {config.context} at most")
    slots, single = settings.slots or platform.slots, settings.deterministic and not invariant
    budget = settings.prefill_tokens
    if budget is None:
        budget = 2 * slots if single else max(platform.budget, slots)
    if budget < slots:
        raise ConfigError(f"prefill_tokens is {budget}; expected at least one for each of {slots} slots")
    return Shapes(
        slots=slots,
        budget=budget,
        single=single,
        mask=-(-config.vocabulary // 32) if settings.grammars else 0,
        scores=settings.scores and not single,
        plain=device.platform == "gpu" and not single,
        adapters=settings.max_adapters,
        page_size=platform.page_size,
        table=-(-context // platform.page_size),
        tile=TILE,
    )
