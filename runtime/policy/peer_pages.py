"""Copies of pages in the file of another engine, which writes it meanwhile or has died. No JAX.

The one idea: nothing is trusted for longer than a read. A page counts only if its record is the same before
and after its bytes are read. The file is read by calls, not mapped, because its owner may shorten it.
"""

import os

import numpy as np

from .page_file import HEADER, KEY_BYTES, FileLayout, key_of
from .pages import Content


class PeerPages:
    """The copies in another engine's file; never writes."""

    def __init__(self, descriptor: int, mark: bytes, page_size: int, page_bytes: int) -> None:
        """`mark` and sizes are this engine's: copies of a peer with others are not found."""
        self._descriptor, self._mark = descriptor, mark
        self._sizes = page_size, page_bytes
        self._forget()

    def read(self, content: Content) -> np.ndarray | None:
        """The page with this content, u8 `[bytes of a page]`; None if there is no whole copy of it."""
        self._refresh()
        for place in np.flatnonzero(self._keys_N == key_of(content.digest)).tolist():
            if (page := self._read_at(place, content)) is not None:
                return page
        return None

    def _read_at(self, place: int, content: Content) -> np.ndarray | None:
        record = self._record(place)
        if not self._is_of(record, content):
            return None
        size, first = self._layout.page_bytes, self._layout.first_page
        page = os.pread(self._descriptor, size, first + place * size)
        whole = len(page) == size and self._record(place) == record and self._total() == self._layout.total
        return np.frombuffer(page, np.uint8) if whole else None

    def _record(self, place: int) -> bytes:
        size = self._layout.record.itemsize
        return os.pread(self._descriptor, size, self._layout.first_record + place * size)

    def _is_of(self, record: bytes, content: Content) -> bool:
        if len(record) != self._layout.record.itemsize:
            return False
        (found,) = np.frombuffer(record, self._layout.record)
        whole = bool(found["used"]) and found["digest"].tobytes() == content.digest
        return whole and found["tokens"].tolist() == list(content.tokens)

    def _refresh(self) -> None:
        """Reads the keys again if the peer has written since."""
        header = self._header()
        if header is None:
            self._forget()
        elif (seen := (int(header["total"]), int(header["writes"]))) != self._seen:
            keys = os.pread(self._descriptor, seen[0] * KEY_BYTES, HEADER.itemsize)
            if len(keys) == seen[0] * KEY_BYTES:
                self._keys_N = np.frombuffer(keys, "<u8")
                self._layout, self._seen = FileLayout.of(seen[0], *self._sizes), seen

    def _forget(self) -> None:
        self._seen: tuple[int, int] | None = None
        self._layout = FileLayout.of(0, *self._sizes)
        self._keys_N = np.empty(0, "<u8")

    def _total(self) -> int | None:
        """How many copies the file can have now; None if it has none for this engine."""
        header = self._header()
        return None if header is None else int(header["total"])

    def _header(self) -> np.void | None:
        """The file's header; None if its pages are of another model, or it has none yet."""
        header = os.pread(self._descriptor, HEADER.itemsize, 0)
        if len(header) < HEADER.itemsize:
            return None
        (found,) = np.frombuffer(header, HEADER)
        return found if found["owner"].tobytes() == self._mark else None
