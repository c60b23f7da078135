"""The size of the KV pool: from free memory, from the most pages that can be used, or set by the user."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import jax.numpy as jnp

from ...model import host_memory
from ...model.cache import REACHED, page_bytes
from ...model.config import ModelConfig
from ...model.errors import DistaffError
from .buckets import Bucket, Shapes

log = logging.getLogger(__name__)

CPU_SHARE = 1 / 8
"""The pool's share of free host memory; the rest is for everything else that the host runs."""
SHARES = {"cpu": CPU_SHARE, "tpu": 0.9, "gpu": 0.98}
"""The pool's share of free memory, by platform. The rest is for state and temporaries of steps on a TPU;
on a GPU these are subtracted before (see `reserved_bytes`), and it is for gaps between allocations."""

_MIB = 1 << 20


class OutOfMemory(DistaffError):
    """There is no room for a useful KV pool."""


class Device(Protocol):
    """The parts of `jax.Device` that are used here."""

    @property
    def platform(self) -> str: ...

    def memory_stats(self) -> dict[str, Any] | None: ...


def size_pool(
    config: ModelConfig,
    shapes: Shapes,
    dtype: jnp.dtype,
    devices: Sequence[Device],
    pages: int | None,
    replicas: int = 1,
    free: int | None = None,
    itemsize: int = 4,
    packed: int | None = None,
) -> int:
    """Decides the number of pages (without the trash page), and logs how in one line.

    Args:
      config: padded for the devices (`model.sharding.pad_config`). devices: the mesh's devices in this
        process; each holds the same share of every page.
      pages: the number set by the user; None derives it.
      replicas: engines that share the host's memory. An accelerator belongs to one engine.
      free: bytes of all devices that the pool can use; None for those that are free now.
      itemsize: bytes of an activation.
      packed: the number that a pack's steps are compiled for: taken if the user sets none and it fits.

    Raises:
      OutOfMemory: less than one page per slot fits, or the user's number needs more than is free.
    """
    device = devices[0]
    size = page_bytes(config, shapes.page_size, dtype)
    useful = shapes.slots * shapes.table
    free = free_in_all(devices) if free is None else free
    if free > 0:  # some devices do not report it
        reserved = reserved_bytes(device.platform, config, shapes, len(devices), itemsize)
        free = max(1, free - reserved * len(devices))
    share = _share(device.platform, replicas)
    fitting = fitting_pages(free, size, device.platform, replicas)
    if dtype == jnp.int8:
        fitting = reached_pages(fitting, device.platform, config, shapes, len(devices))
    chosen, how = pages, "as configured"
    if chosen is None and packed and _fits(packed * size, free, device.platform, share):
        chosen, how = packed, "as in the pack"
    if chosen is None:
        chosen, how = min(useful, fitting), "derived"
    if 0 < free < chosen * size:
        raise OutOfMemory(
            f"{chosen} KV pages of {size} bytes are {chosen * size // _MIB} MiB; expected at most "
            f"{free // size} pages, because {free // _MIB} MiB are free on {device.platform}"
        )
    if chosen < min(shapes.slots, useful):
        raise OutOfMemory(
            f"room for {chosen} KV pages of {size} bytes ({free // _MIB} MiB free on {device.platform}); "
            f"expected at least one for each of {shapes.slots} slots; use fewer slots or a smaller model"
        )
    log.info(
        "KV pool: %d pages of %d tokens = %d tokens, %d MiB (%s; %d slots x %d tokens need %d pages, "
        "%.3g%% of %d MiB free hold %d)",
        chosen, shapes.page_size, chosen * shapes.page_size, chosen * size // _MIB,
        how, shapes.slots, shapes.table * shapes.page_size,
        useful, share * 100, free // _MIB, fitting,
    )  # fmt: skip
    return chosen


def size_host_pages(
    pages: int, size: int, device: Device, free: int, wanted: int | None, replicas: int = 1
) -> int:
    """Decides how many pages host memory keeps, and logs it.

    Args:
      pages: of the KV pool, each of `size` bytes. free: bytes of free memory.
      wanted: the number set by the user; None for half as many as the pool has, within the same share of
        free memory, if the device is the host itself, and for none on accelerators, where the gain is not
        measured.
    """
    on_host = device.platform == "cpu"
    fitting = min(pages // 2, fitting_pages(free, size, "cpu", replicas)) if on_host else 0
    chosen = fitting if wanted is None else wanted
    if chosen:
        log.info("host memory keeps up to %d KV pages, %d MiB", chosen, chosen * size // _MIB)
    return chosen


def fitting_pages(free: int, size: int, platform: str, replicas: int = 1) -> int:
    """The number of pages of `size` bytes in a pool, with `free` bytes on a kind of device."""
    return _steady(int(free * _share(platform, replicas)) // size, platform)


def _fits(needed: int, free: int, platform: str, share: float) -> bool:
    """Whether a pack's pool fits: on a host within twice the share, because a derived one is rounded down to
    a power of two, so that a little less free memory halves it. Unknown free memory is enough."""
    if 0 < free * min(1.0, 2 * share if platform == "cpu" else share) < needed:
        log.warning("the pack's KV pool of %d MiB does not fit, so steps are compiled", needed // _MIB)
        return False
    return True


def _share(platform: str, replicas: int) -> float:
    return SHARES["cpu"] / replicas if platform == "cpu" else SHARES.get(platform, SHARES["tpu"])


def reserved_bytes(platform: str, config: ModelConfig, shapes: Shapes, shards: int, itemsize: int) -> int:
    """Bytes of each GPU that are not for the pool: the state, and the temporaries of two steps, because one
    is dispatched while another runs. On other platforms the pool's share leaves room.

    Args:
      shards: devices that the model is divided among. itemsize: bytes of an activation.
    """
    if platform != "gpu":
        return 0
    largest = max(temporary_bytes(config, bucket, shards, itemsize) for bucket in shapes.buckets()[:2])
    return state_bytes(config, shapes.slots) + 2 * largest


def state_bytes(config: ModelConfig, slots: int) -> int:
    """The state besides the cache: last samples, and for each id counts, biases, marks, stored logits.

    A mark is one byte. Those of pages are not counted: they are a thousandth of a page's bytes or less.
    """
    return slots * (4 + (4 + 4 + 1 + 4) * config.vocabulary + 1)


def temporary_bytes(config: ModelConfig, bucket: Bucket, shards: int, itemsize: int) -> int:
    """An estimate of a step's temporaries: the widest layer's activations, and six copies of the logits."""
    chosen = config.moe.experts_per_token if config.moe else 1
    heads = (config.heads + 2 * config.kv_heads) * config.head_size
    wide = max(heads, 2 * config.feed_forward * chosen) // shards
    logits = 6 * bucket.rows * config.vocabulary * jnp.dtype("float32").itemsize
    return bucket.tokens * (4 * config.width + wide) * itemsize + logits


def reached_pages(pages: int, platform: str, config: ModelConfig, shapes: Shapes, shards: int) -> int:
    """The number of int8 pages, or fewer if the attention kernel for GPUs could not reach all of them.

    In a layer it reaches up to 2 GiB of a device's share, or more than 4 GiB, see `triton_attention.fits`.
    """
    numbers = shapes.page_size * 2 * config.kv_heads * config.head_size // shards
    most = REACHED // numbers - 1  # and the trash page
    return most if platform == "gpu" and most < pages <= 2 * REACHED // numbers - 1 else pages


def _steady(pages: int, platform: str) -> int:
    """The number, rounded down so that it is the same at the next start.

    The pool's size is part of every compiled step, so each change of it would compile all of them again. A
    host's free memory changes a lot: round to a power of two. A device's changes little: to a 64th of one.
    """
    power = 1 << max(0, pages.bit_length() - 1)
    return min(pages, power) if platform == "cpu" else pages // max(1, power // 64) * max(1, power // 64)


def free_in_all(devices: Sequence[Device], host: int | None = None) -> int:
    """Free bytes of a process's devices, if each of them is to hold as much as the others.

    Args:
      host: the host's free bytes, if the devices are its processors; None for those that are free now.
    """
    if devices[0].platform == "cpu":
        return free_bytes(devices[0]) if host is None else host
    return min(map(free_bytes, devices)) * len(devices)


def free_bytes(device: Device) -> int:
    """Free bytes of the accelerator, or of the host within its control group's limit."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return int(stats.get("bytes_limit", 0)) - int(stats.get("bytes_in_use", 0))
    return host_memory.free_bytes()
