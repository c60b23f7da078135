"""The size of the KV pool: from free memory, from the most pages that can be used, or set by the user."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import jax.numpy as jnp

from ...model import host_memory
from ...model.cache import page_bytes
from ...model.config import ModelConfig
from ...model.errors import DistaffError
from .buckets import Shapes

log = logging.getLogger(__name__)

CPU_SHARE = 1 / 8
"""The pool's share of free host memory; the rest is for everything else that the host runs."""
DEVICE_SHARE = 0.9
"""The pool's share of free accelerator memory; the rest is for the steps' temporaries."""

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
) -> int:
    """Decides the number of pages (without the trash page), and logs how in one line.

    Args:
      config: padded for the devices (`model.sharding.pad_config`). devices: the mesh's devices in this
        process; each holds the same share of every page.
      pages: the number set by the user; None derives it.
      replicas: engines that share the host's memory. An accelerator belongs to one engine.
      free: bytes of all devices that the pool can use; None for those that are free now.

    Raises:
      OutOfMemory: less than one page per slot fits, or the user's number needs more than is free.
    """
    device = devices[0]
    size = page_bytes(config, shapes.page_size, dtype)
    useful = shapes.slots * shapes.table
    free = free_in_all(devices) if free is None else free
    share = _share(device.platform, replicas)
    fitting = fitting_pages(free, size, device.platform, replicas)
    chosen = min(useful, fitting) if pages is None else pages
    if 0 < free < chosen * size:  # some devices do not report free memory
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
        "derived" if pages is None else "as configured", shapes.slots, shapes.table * shapes.page_size,
        useful, share * 100, free // _MIB, fitting,
    )  # fmt: skip
    return chosen


def size_host_pages(
    pages: int, size: int, device: Device, free: int, wanted: int | None, replicas: int = 1
) -> int:
    """Decides how many pages host memory keeps, and logs it.

    Args:
      pages: of the KV pool, each of `size` bytes. free: bytes of free memory.
      wanted: the number set by the user; None for as many as the pool has and as fit in the same share of
        free memory if the device is the host itself, and for none on accelerators, where the gain is not
        measured.
    """
    on_host = device.platform == "cpu"
    fitting = min(pages, fitting_pages(free, size, "cpu", replicas)) if on_host else 0
    chosen = fitting if wanted is None else wanted
    if chosen:
        log.info("host memory keeps up to %d KV pages, %d MiB", chosen, chosen * size // _MIB)
    return chosen


def fitting_pages(free: int, size: int, platform: str, replicas: int = 1) -> int:
    """The number of pages of `size` bytes in a pool, with `free` bytes on a kind of device."""
    return _steady(int(free * _share(platform, replicas)) // size, platform)


def _share(platform: str, replicas: int) -> float:
    return CPU_SHARE / replicas if platform == "cpu" else DEVICE_SHARE


def _steady(pages: int, platform: str) -> int:
    """The number, rounded down so that it is the same at the next start.

    The pool's size is part of every compiled step, so each change of it would compile all of them again. A
    host's free memory changes a lot: round to a power of two. A device's changes little: to a 32nd of one.
    """
    power = 1 << max(0, pages.bit_length() - 1)
    return min(pages, power) if platform == "cpu" else pages // max(1, power // 32) * max(1, power // 32)


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
