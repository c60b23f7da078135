"""The file with copies of KV pages: its parts, and what decides whether two engines can exchange pages.

`host_pages.py` writes it, `peer_pages.py` reads that of another engine.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_ALIGNMENT = 4096
HEADER = np.dtype([("owner", "u1", 32), ("total", "<u8"), ("writes", "<u8")])
"""What decides a page's bytes, how many copies there can be, and a count of writes."""
KEY_BYTES = 8
"""The first bytes of a page's digest, by which a peer looks for it."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """Where copies are kept.

    Attributes:
      descriptor: of an open file, which stays the caller's; its content may be from an earlier process.
      owner: names the model and everything else that decides a page's bytes. Copies of another owner are
        dropped.
      peers: the descriptors of other engines' files, which are only read.
    """

    descriptor: int
    owner: str
    peers: tuple[int, ...] = ()


class FileLayout(NamedTuple):
    """Where a file has its parts: the header, then `total` keys, `total` records, and the pages.

    Attributes:
      record: of a page: `used`, a rising number, 0 for none; its digest and its tokens.
    """

    record: np.dtype
    total: int
    page_bytes: int

    @classmethod
    def of(cls, total: int, page_size: int, page_bytes: int) -> "FileLayout":
        """`page_size` is in tokens."""
        record = np.dtype([("used", "<u8"), ("digest", "u1", 32), ("tokens", "<i4", page_size)])
        return cls(record, total, page_bytes)

    @property
    def first_record(self) -> int:
        """The offset of the records."""
        return HEADER.itemsize + self.total * KEY_BYTES

    @property
    def first_page(self) -> int:
        """The offset of the pages."""
        return -(-(self.first_record + self.total * self.record.itemsize) // _ALIGNMENT) * _ALIGNMENT

    @property
    def size(self) -> int:
        """Of the file."""
        return self.first_page + self.total * self.page_bytes


def key_of(digest: bytes) -> int:
    """The key of a page with this digest."""
    return int.from_bytes(digest[:KEY_BYTES], "little")


def mark_of(owner: str, page_size: int, page_bytes: int) -> bytes:
    """32 bytes that differ where copies of pages are not exchangeable."""
    return hashlib.sha256(repr((owner, page_size, page_bytes)).encode()).digest()
