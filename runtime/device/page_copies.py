"""Copies full pages between the KV pool and host memory, a fixed number at a time.

`runtime/policy/prefix.py` decides which pages are copied. A page is one row of bytes in host memory: for each
part of the pool (values, and scales of an int8 pool) the entries of all layers.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ...model.cache import TRASH_PAGE
from ...model.sharding import CACHE, REPLICATED
from ..policy.host_pages import HostPages
from ..policy.pages import Content
from .executables import trace
from .steps import STATE, DeviceState

T = TypeVar("T")
Parts = tuple[jax.Array, ...]
"""The parts of some pages: values `[N, layers, page, 2K, H]`, and scales `[N, layers, page, 2K]` of an int8
pool."""

_PARTS = PartitionSpec(None, *CACHE)


class Reading(NamedTuple):
    """Pages on their way to host memory: their content, their parts, and which of them are broken."""

    contents: list[Content]
    parts: Parts
    broken_N: jax.Array


class PageCopies:
    """The two compiled programs that copy pages, and the memory that they copy to."""

    def __init__(self, host: HostPages, state: DeviceState, mesh: Mesh) -> None:
        """Compiles the programs for a state of these shapes."""
        self._host = host
        pages = jax.ShapeDtypeStruct((host.group,), jnp.int32)
        self._parts, _ = jax.eval_shape(_read, state, pages)
        specs = (STATE, REPLICATED, _PARTS)
        read = trace(_read, mesh, (state, pages), specs[:2], (_PARTS, REPLICATED))
        write = trace(_write, mesh, (state, pages, self._parts), specs, STATE, 0)
        self._read, self._write = read.lower().compile(), write.lower().compile()

    def restore(self, state: DeviceState, pages: Sequence[tuple[int, np.ndarray]]) -> DeviceState:
        """Writes pages, each u8 `[bytes of a page]`, to the pool."""
        for group in self._grouped(pages):
            rows_NB = np.zeros((self._host.group, self._host.page_bytes), np.uint8)
            for line, (_, page_B) in enumerate(group):
                rows_NB[line] = page_B
            state = self._write(state, self._numbers(group), self._split(rows_NB))
        return state

    def read(self, state: DeviceState, pages: Sequence[tuple[int, Content]]) -> Iterator[Reading]:
        """Starts to copy pages to the host; they are as the steps dispatched so far leave them."""
        for group in self._grouped(pages):
            parts, broken_N = self._read(state, self._numbers(group))
            for array in (*parts, broken_N):
                array.copy_to_host_async()
            yield Reading([content for _, content in group], parts, broken_N)

    def keep(self, reading: Reading) -> None:
        """Waits for copies, and keeps those of pages that are not broken."""
        rows_NB = np.concatenate([_bytes_of(part) for part in reading.parts], axis=1)
        for content, page_B, broken in zip(
            reading.contents, rows_NB, np.asarray(reading.broken_N).tolist(), strict=False
        ):
            if not broken:
                self._host.keep(content, page_B)

    def _grouped(self, pages: Sequence[T]) -> Iterator[Sequence[T]]:
        return (pages[first : first + self._host.group] for first in range(0, len(pages), self._host.group))

    def _numbers(self, pages: Sequence[tuple[int, object]]) -> np.ndarray:
        """The numbers of some pages, i32 `[N]`, filled up with the trash page."""
        numbers = np.full(self._host.group, TRASH_PAGE, np.int32)
        numbers[: len(pages)] = [page for page, _ in pages]
        return numbers

    def _split(self, rows_NB: np.ndarray) -> tuple[np.ndarray, ...]:
        """The parts of pages, from their bytes."""
        ends = np.cumsum([_size_of(part) for part in self._parts])[:-1]
        pieces = np.split(rows_NB, ends, axis=1)
        return tuple(
            np.ascontiguousarray(piece).view(part.dtype).reshape(part.shape)
            for piece, part in zip(pieces, self._parts, strict=True)
        )


def _read(state: DeviceState, page_N: jax.Array) -> tuple[Parts, jax.Array]:
    """The parts of some pages, and whether each is broken."""
    layers = zip(*(jax.tree.leaves(pool) for pool in state.cache), strict=True)
    parts = tuple(jnp.stack([array[page_N] for array in arrays], axis=1) for arrays in layers)
    return parts, state.broken_P[page_N]


def _write(state: DeviceState, page_N: jax.Array, parts: Parts) -> DeviceState:
    """Stores parts of pages, which are not broken."""
    pools = [
        jax.tree.unflatten(
            jax.tree.structure(pool),
            [
                array.at[page_N].set(part[:, layer])
                for array, part in zip(jax.tree.leaves(pool), parts, strict=True)
            ],
        )
        for layer, pool in enumerate(state.cache)
    ]
    return state._replace(cache=tuple(pools), broken_P=state.broken_P.at[page_N].set(False))


def _size_of(part: jax.ShapeDtypeStruct) -> int:
    return math.prod(part.shape[1:]) * part.dtype.itemsize


def _bytes_of(part: jax.Array) -> np.ndarray:
    """A part as bytes, u8 `[N, bytes]`."""
    values = np.asarray(part)
    return values.reshape(len(values), -1).view(np.uint8)
