"""Copies of full KV pages in host memory, found by their content. No JAX.

A device forgets: its pool evicts pages, and a process that ends loses all of them. Copies outlive both,
because they are in a file that the web process keeps open while engines come and go (in memory, where the
system has such files). A restarted engine restores the pages of its sequences from the file instead of
computing them again; the pages of a prompt that were evicted come back too. Other replicas read the file, and
continue the sequences of a dead engine (`peer_pages.py`). `runtime/device/page_copies.py` moves the bytes.

The one idea: a page's record is cleared before its bytes change and written after them. So a process can be
killed at any moment, and the next one, or another one, finds only whole pages. While it lives, another one
relies on stores that become visible in their order, or long before a page has been read.
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from .page_file import HEADER, FileLayout, PageFile, key_of, mark_of
from .pages import Content, Digest
from .peer_pages import PeerPages

_GROUP = 8


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
        layout = FileLayout.of(total, page_size, page_bytes)
        memory = _map(file.descriptor, layout.size)
        self.total, self.page_bytes, self.group = total, page_bytes, group
        pages = np.frombuffer(memory, np.uint8, total * page_bytes, layout.first_page)
        self._bytes_NB = pages.reshape(total, page_bytes)
        self._keys = np.frombuffer(memory, "<u8", total, HEADER.itemsize)
        self._records = np.frombuffer(memory, layout.record, total, layout.first_record)
        self._header = np.frombuffer(memory, HEADER, 1)
        mark = mark_of(file.owner, page_size, page_bytes)
        if self._header["owner"].tobytes() != mark or self._header["total"] != total:
            self._records["used"] = 0
            self._header["owner"], self._header["total"] = np.frombuffer(mark, np.uint8), total
        self._peers = [PeerPages(peer, mark, page_size, page_bytes) for peer in file.peers]
        order = np.argsort(self._records["used"], kind="stable")
        kept = [int(place) for place in order if self._records["used"][place]]
        self._places = OrderedDict((self._records["digest"][place].tobytes(), place) for place in kept)
        self._free = sorted(set(range(total)) - set(self._places.values()), reverse=True)
        self._clock = int(self._records["used"].max(initial=0))

    @property
    def copies(self) -> int:
        """The number of own copies."""
        return len(self._places)

    def has(self, content: Content) -> bool:
        """Whether there is an own copy with this content."""
        place = self._places.get(content.digest)
        return place is not None and self._records["tokens"][place].tolist() == list(content.tokens)

    def read(self, content: Content) -> np.ndarray | None:
        """The page with this content, u8 `[bytes of a page]`, own or of a peer; None if there is no copy."""
        if not self.has(content):
            found = (peer.read(content) for peer in self._peers)
            return next((page for page in found if page is not None), None)
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
            self._keys[place] = key_of(content.digest)
            self._records["digest"][place] = np.frombuffer(content.digest, np.uint8)
            self._records["tokens"][place] = content.tokens
            self._use(content.digest, place)
        self._header["writes"] += 1

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
