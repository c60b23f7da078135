"""Copies of pages in the file of another engine, which writes it meanwhile or has died. No JAX.

The one idea: nothing is trusted for longer than a read. A page counts only if its record is the same before
and after its bytes are read. The file is read by calls, not mapped, because its owner may shorten it.
"""

import os

import numpy as np

from .page_file import HEADER, Layout
from .pages import Content

_KEY_BYTES = 8


class PeerPages:
    """The copies in another engine's file; never writes."""

    def __init__(self, descriptor: int, mark: bytes, page_size: int, page_bytes: int) -> None:
        """`mark` and sizes are this engine's: copies of a peer with others are not found."""
        self._descriptor, self._mark = descriptor, mark
        self._sizes = page_size, page_bytes
        self._seen: tuple[int, int] | None = None
        self._layout = Layout.of(0, *self._sizes)
        self._keys_N = np.empty(0, "<u8")

    def read(self, content: Content) -> np.ndarray | None:
        """The page with this content, u8 `[bytes of a page]`; None if there is no whole copy of it."""
        self._refresh()
        (key,) = np.frombuffer(content.digest, "<u8", 1)
        for place in np.flatnonzero(self._keys_N == key).tolist():
            if (page := self._read_at(place, content)) is not None:
                return page
        return None

    def _read_at(self, place: int, content: Content) -> np.ndarray | None:
        record = self._record(place)
        if not self._is_of(record, content):
            return None
        size, first = self._layout.page_bytes, self._layout.first_page
        page = os.pread(self._descriptor, size, first + place * size)
        return np.frombuffer(page, np.uint8) if len(page) == size and self._record(place) == record else None

    def _record(self, place: int) -> bytes:
        size = self._layout.record.itemsize
        return os.pread(self._descriptor, size, HEADER.itemsize + place * size)

    def _is_of(self, record: bytes, content: Content) -> bool:
        if len(record) != self._layout.record.itemsize:
            return False
        (found,) = np.frombuffer(record, self._layout.record)
        whole = bool(found["used"]) and found["digest"].tobytes() == content.digest
        return whole and found["tokens"].tolist() == list(content.tokens)

    def _refresh(self) -> None:
        """Reads the digests again if the peer has written since."""
        header = os.pread(self._descriptor, HEADER.itemsize, 0)
        if len(header) < HEADER.itemsize:
            return
        (found,) = np.frombuffer(header, HEADER)
        seen = int(found["total"]), int(found["writes"])
        if found["owner"].tobytes() != self._mark or seen == self._seen:
            return
        layout = Layout.of(seen[0], *self._sizes)
        records = os.pread(self._descriptor, seen[0] * layout.record.itemsize, HEADER.itemsize)
        if len(records) == seen[0] * layout.record.itemsize:
            digest_N32 = np.frombuffer(records, layout.record)["digest"]
            self._keys_N = np.ascontiguousarray(digest_N32[:, :_KEY_BYTES]).view("<u8")[:, 0]
            self._layout, self._seen = layout, seen
