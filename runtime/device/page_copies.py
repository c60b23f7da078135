"""Copies full pages between the KV pool and host memory, a group at a time.

`runtime/policy/prefix.py` decides which pages are copied. A copy is one row of bytes: layer by layer, the
page's values and, of an int8 pool, their scales. The pools of all layers have the same shape, so the programs
are compiled for one layer.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ...model.cache import TRASH_PAGE, Pool
from ...model.sharding import CACHE, REPLICATED
from ..policy.host_pages import HostPages
from ..policy.pages import Content
from .executables import trace
from .steps import DeviceState

T = TypeVar("T")


class Reading(NamedTuple):
    """Pages on their way to host memory: their content, each layer's part of them `[N, page, 2K, H]`, and
    which of them are broken."""

    contents: list[Content]
    layers: list[Pool]
    broken_N: jax.Array


class PageCopies:
    """The compiled programs that copy pages, and the memory that they copy to."""

    def __init__(self, host: HostPages, state: DeviceState, mesh: Mesh) -> None:
        """Compiles the programs for a state of these shapes."""
        self._host = host
        pool, pages = state.cache[0], jax.ShapeDtypeStruct((host.group,), jnp.int32)
        self._part: Any = jax.eval_shape(_take, pool, pages)

        def compiled(function: Any, donated: Any, *arguments: tuple[Any, Any]) -> jax.stages.Compiled:
            values, specs = zip(*arguments, strict=True)
            return trace(function, mesh, values, specs, specs[0], donated).lower().compile()

        numbers, marks = (pages, REPLICATED), (state.broken_P, REPLICATED)
        self._take = compiled(_take, (), (pool, CACHE), numbers)
        self._put = compiled(_put, 0, (pool, CACHE), numbers, (self._part, CACHE))
        self._take_marks = compiled(_take, (), marks, numbers)
        self._clear_marks = compiled(_clear, 0, marks, numbers)

    def restore(self, state: DeviceState, pages: Sequence[tuple[int, np.ndarray]]) -> DeviceState:
        """Writes pages, each u8 `[bytes of a page]`, to the pool."""
        for group in self._grouped(pages):
            numbers, parts = self._numbers(group), self._parts([page_B for _, page_B in group])
            cache = tuple(
                self._put(pool, numbers, part) for pool, part in zip(state.cache, parts, strict=True)
            )
            state = state._replace(cache=cache, broken_P=self._clear_marks(state.broken_P, numbers))
        return state

    def read(self, state: DeviceState, pages: Sequence[tuple[int, Content]]) -> Iterator[Reading]:
        """Starts to copy pages to the host; they are as the steps dispatched so far leave them."""
        for group in self._grouped(pages):
            numbers = self._numbers(group)
            layers = [self._take(pool, numbers) for pool in state.cache]
            broken_N = self._take_marks(state.broken_P, numbers)
            for array in jax.tree.leaves((layers, broken_N)):
                array.copy_to_host_async()
            yield Reading([content for _, content in group], layers, broken_N)

    def keep(self, reading: Reading) -> None:
        """Waits for copies, and keeps those of pages that are not broken."""
        whole_N = ~np.asarray(reading.broken_N)[: len(reading.contents)]
        contents = [content for content, whole in zip(reading.contents, whole_N, strict=True) if whole]
        arrays = map(np.asarray, jax.tree.leaves(reading.layers))
        self._host.keep(contents, (_bytes_of(array[: len(whole_N)][whole_N]) for array in arrays))

    def _grouped(self, pages: Sequence[T]) -> Iterator[Sequence[T]]:
        return (pages[first : first + self._host.group] for first in range(0, len(pages), self._host.group))

    def _numbers(self, pages: Sequence[tuple[int, object]]) -> np.ndarray:
        """The numbers of some pages, i32 `[N]`, filled up with the trash page."""
        numbers = np.full(self._host.group, TRASH_PAGE, np.int32)
        numbers[: len(pages)] = [page for page, _ in pages]
        return numbers

    def _parts(self, pages: list[np.ndarray]) -> Iterator[Any]:
        """Each layer's part of some copies, filled up with the last one."""
        arrays, structure = jax.tree.flatten(self._part)
        pages = pages + pages[-1:] * (self._host.group - len(pages))
        first = 0
        while first < self._host.page_bytes:
            leaves = []
            for array in arrays:
                size = math.prod(array.shape[1:]) * array.dtype.itemsize
                piece_NB = np.stack([page_B[first : first + size] for page_B in pages])
                leaves.append(piece_NB.view(array.dtype).reshape(array.shape))
                first += size
            yield jax.tree.unflatten(structure, leaves)


def _take(pool: Any, page_N: jax.Array) -> Any:
    """Some pages of a pool, or of an array by pages."""
    return jax.tree.map(lambda array: array[page_N], pool)


def _put(pool: Pool, page_N: jax.Array, part: Pool) -> Pool:
    """The pool with some pages replaced."""
    return jax.tree.map(lambda array, values: array.at[page_N].set(values), pool, part)


def _clear(mark_P: jax.Array, page_N: jax.Array) -> jax.Array:
    """The marks without those of some pages."""
    return mark_P.at[page_N].set(False)


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """Pages as bytes, u8 `[N, bytes]`."""
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
