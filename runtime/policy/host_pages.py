"""Copies of full KV pages in host memory, found by their content. No JAX.

A device forgets: its pool evicts pages, and a process that ends loses all of them. Copies outlive both,
because they are in a file that the web process keeps open while engines come and go (in memory, where the
system has such files). An engine that is restarted continues its sequences from here, and a prompt whose
pages were evicted need not be computed again. `runtime/device/page_copies.py` moves the bytes.

The one idea: a page's record is cleared before its bytes change and written after them. So a process can be
killed at any moment, and the next one finds only whole pages.
"""

import hashlib
import mmap
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .pages import Content, Digest

_ALIGNMENT = 4096
_OWNER_BYTES = 32
_GROUP = 8


@dataclass(frozen=True, slots=True)
class PageFile:
    """Where copies are kept.

    Attributes:
      descriptor: of an open file, which stays the caller's; its content may be from an earlier process.
      owner: names the model and everything else that decides a page's bytes. Copies of another owner are
        dropped.
    """

    descriptor: int
    owner: str


class HostPages:
    """Copies of pages, at most `total`; the least recently used one is replaced first.

    Attributes:
      total: how many copies there can be. page_bytes: bytes of a page in all layers.
      group: how many pages are copied at a time; a few cost as much as one.
    """

    def __init__(
        self, file: PageFile, total: int, page_size: int, page_bytes: int, group: int = _GROUP
    ) -> None:
        """Finds the copies that the file already has; `page_size` is in tokens.

        Raises:
          OSError: the file cannot have that size, or cannot be mapped.
        """
        record = np.dtype([("used", "<u8"), ("digest", "u1", 32), ("tokens", "<i4", page_size)])
        first = -(-(_OWNER_BYTES + total * record.itemsize) // _ALIGNMENT) * _ALIGNMENT
        memory = _map(file.descriptor, first + total * page_bytes)
        owner = np.frombuffer(memory, np.uint8, _OWNER_BYTES)
        self.total, self.page_bytes, self.group = total, page_bytes, group
        self._bytes_NB = np.frombuffer(memory, np.uint8, total * page_bytes, first).reshape(total, page_bytes)
        self._records = np.frombuffer(memory, record, total, _OWNER_BYTES)
        mark = _mark(file.owner, total, page_size, page_bytes)
        if owner.tobytes() != mark:
            self._records["used"] = 0
            owner[:] = np.frombuffer(mark, np.uint8)
        order = np.argsort(self._records["used"], kind="stable")
        kept = [int(place) for place in order if self._records["used"][place]]
        self._places = OrderedDict((self._records["digest"][place].tobytes(), place) for place in kept)
        self._free = sorted(set(range(total)) - set(self._places.values()), reverse=True)
        self._clock = int(self._records["used"].max(initial=0))

    @property
    def copies(self) -> int:
        """The number of copies."""
        return len(self._places)

    def has(self, content: Content) -> bool:
        """Whether there is a copy with this content."""
        place = self._places.get(content.digest)
        return place is not None and self._records["tokens"][place].tolist() == list(content.tokens)

    def read(self, content: Content) -> np.ndarray:
        """The page with this content, u8 `[bytes of a page]`; there must be a copy of it."""
        place = self._places[content.digest]
        self._use(content.digest, place)
        return self._bytes_NB[place].copy()

    def keep(self, contents: Sequence[Content], pieces: Iterable[np.ndarray]) -> None:
        """Copies pages; of more than `total` the last ones.

        Args:
          pieces: their bytes, as consecutive pieces u8 `[pages, bytes]`.
        """
        contents = contents[-self.total :]
        places = [self._place(content) for content in contents]
        self._records["used"][places] = 0
        first = 0
        for piece_NB in pieces:
            end = first + piece_NB.shape[1]
            self._bytes_NB[places, first:end] = piece_NB[len(piece_NB) - len(places) :]
            first = end
        for content, place in zip(contents, places, strict=True):
            self._records["digest"][place] = np.frombuffer(content.digest, np.uint8)
            self._records["tokens"][place] = content.tokens
            self._use(content.digest, place)

    def _place(self, content: Content) -> int:
        """The place for a copy: the one that it has, a free one, or that of the least recently used copy."""
        if content.digest in self._places:
            return self._places.pop(content.digest)
        return self._free.pop() if self._free else self._places.popitem(last=False)[1]

    def _use(self, digest: Digest, place: int) -> None:
        self._clock += 1
        self._records["used"][place] = self._clock
        self._places[digest] = place
        self._places.move_to_end(digest)


def _map(descriptor: int, size: int) -> mmap.mmap:
    """The file's memory; a file of another size is emptied first."""
    if os.fstat(descriptor).st_size != size:
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, size)
    return mmap.mmap(descriptor, size)


def _mark(owner: str, *sizes: int) -> bytes:
    return hashlib.sha256(repr((owner, *sizes)).encode()).digest()
