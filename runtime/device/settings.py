"""The engine's few settings, and what they become on a given model and machine."""

from dataclasses import dataclass

import jax.numpy as jnp

from ...model.cache import TILE
from ...model.config import ModelConfig
from ...model.errors import ConfigError
from .buckets import Shapes
from .memory import Device

DTYPES = ("float32", "bfloat16")
"""Compute types the model runs in."""
CACHE_DTYPES = ("int8",)
"""Types that keys and values are kept in other than that one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """What an operator may decide; None leaves it to the model and the machine.

    Attributes:
      slots: sequences that decode at the same time.
      context: the longest sequence, in tokens; at most the model's own.
      prefill_tokens: the most tokens of a step, so the most of prompts; a longer prompt takes several steps.
      kv_pages: pages of the KV pool.
      kv_cache_dtype: `int8` rounds keys and values; None keeps them as they are computed.
      replicas: engines on this host that share its memory.
      kernels: `(operation, way)`, in place of our choice (see `model/kernels/registry.py`).
      prefix_cache: sequences share the pages of what they begin with.
      speculation: tokens are guessed ahead where that is worth it.
      profile: the folder for profiles; None makes none.
      deterministic: every step has one shape, so that equal requests have equal bits in any company.
      grammars: requests may carry grammars. scores: they may ask what their prompts' tokens are worth; not
        where the engine is deterministic, for they are scored by steps of another shape.
    """

    slots: int | None = None
    context: int | None = None
    prefill_tokens: int | None = None
    kv_pages: int | None = None
    kv_cache_dtype: str | None = None
    replicas: int = 1
    kernels: tuple[tuple[str, str], ...] = ()
    prefix_cache: bool = True
    speculation: bool = True
    deterministic: bool = False
    grammars: bool = False
    scores: bool = False
    profile: str | None = None


@dataclass(frozen=True, slots=True)
class Platform:
    """What suits a kind of device: slots, tokens of one step, tokens to a page, compute type."""

    slots: int
    budget: int
    page_size: int
    dtype: str


PLATFORMS = {
    "cpu": Platform(slots=32, budget=256, page_size=16, dtype="float32"),
    "gpu": Platform(slots=128, budget=2048, page_size=16, dtype="bfloat16"),
    "tpu": Platform(slots=128, budget=2048, page_size=64, dtype="bfloat16"),
}
"""A step is arithmetic-bound from about a hundred tokens on a CPU, from many hundreds on accelerators; a CPU
with AVX2 computes bfloat16 ten times slower than float32."""


def platform_of(device: Device) -> Platform:
    """The figures for a device's kind; a kind we do not know is treated like a GPU."""
    return PLATFORMS.get(device.platform, PLATFORMS["gpu"])


def pages_of(tokens: int, device: Device) -> int:
    """The whole pages that so many tokens of keys and values fill.

    Raises:
      ConfigError: not even one.
    """
    size = platform_of(device).page_size
    if tokens < size:
        raise ConfigError(f"kv_tokens is {tokens}; expected at least a page of {size} tokens")
    return tokens // size


def compute_dtype(name: str | None, device: Device) -> jnp.dtype:
    """The type of weights, activations and cache.

    Raises:
      ConfigError: not one of DTYPES.
    """
    name = name or platform_of(device).dtype
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return jnp.dtype(name)


def cache_dtype(name: str | None, computed: jnp.dtype) -> jnp.dtype:
    """The type of cached keys and values.

    Raises:
      ConfigError: not one of CACHE_DTYPES.
    """
    if name is None:
        return computed
    if name not in CACHE_DTYPES:
        raise ConfigError(f"kv_cache_dtype is {name!r}; expected one of {', '.join(CACHE_DTYPES)}")
    return jnp.dtype(name)


def derive_shapes(config: ModelConfig, settings: EngineSettings, device: Device) -> Shapes:
    """The sizes that the engine is compiled for.

    Raises:
      ConfigError: a setting is not positive, the context is longer than the model's, or a step would hold
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
    slots = settings.slots or platform.slots
    budget = settings.prefill_tokens
    if budget is None:
        budget = 2 * slots if settings.deterministic else max(platform.budget, slots)
    if budget < slots:
        raise ConfigError(f"prefill_tokens is {budget}; expected at least one for each of {slots} slots")
    return Shapes(
        slots=slots,
        budget=budget,
        single=settings.deterministic,
        mask=-(-config.vocabulary // 32) if settings.grammars else 0,
        scores=settings.scores and not settings.deterministic,
        page_size=platform.page_size,
        table=-(-context // platform.page_size),
        tile=TILE,
    )
