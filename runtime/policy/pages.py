"""The owners of the pages of the KV pool: free list, reference counts, and lookup of pages by content.

Pages are numbers here; `model/cache.py` defines what is stored in them. A page is *held* while its count is
above zero. A full page can be *published* with its `Content`: a digest of everything it depends on (all
tokens from the sequence's start, and a salt) and its own tokens, which a hit is compared with. A published
page that nobody holds stays findable until it is evicted, least recently released first. A page that was
never published is free at once.

A conversation that waits for a tool can have its pages *kept*: for a time they are evicted after all others.
They are at most half of the pool, so that other prompts are cached, too. The caller supplies the time.
"""

import hashlib
import heapq
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

Digest = bytes


class Content(NamedTuple):
    """The content of a full page: the digest of all tokens up to its end, and its own tokens."""

    digest: Digest
    tokens: tuple[int, ...]


KEPT_PART = 2
"""At most one in so many pages is kept."""
_MOST_ENDS = 4
"""The most ends of times for each page, before those that later ones have replaced are dropped."""


class PagePool:
    """Pages 1 … `pages`; page 0, the trash page, is never allocated.

    Invariant: every page is in exactly one of *free*, *held*, *cached* and *kept* (both published, count 0).
    """

    def __init__(self, pages: int) -> None:
        self.total = pages
        self._free = list(range(pages, 0, -1))
        self._counts: dict[int, int] = {}
        self._contents: dict[int, Content] = {}
        self._published: dict[Digest, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._until: dict[int, float] = {}
        self._ends: list[tuple[float, int]] = []
        self._now = 0.0

    @property
    def available(self) -> int:
        """How many pages can be allocated now."""
        return len(self._free) + len(self._cached) + len(self._kept)

    @property
    def kept(self) -> int:
        """How many of these are evicted after all others."""
        return len(self._kept)

    def allocate(self) -> int | None:
        """A page with a count of one; None if all are held. Evicts the oldest cached page if none is free."""
        if self._free:
            page = self._free.pop()
        elif evictable := self._cached or self._kept:
            page, _ = evictable.popitem(last=False)
            self._until.pop(page, None)
            del self._published[self._contents.pop(page).digest]
        else:
            return None
        self._counts[page] = 1
        return page

    def advance(self, now: float) -> None:
        """Sets the current time, in seconds; pages whose time has passed are no longer kept."""
        self._now = now
        while self._ends and self._ends[0][0] <= now:
            _, page = heapq.heappop(self._ends)
            if self._until.get(page, now + 1) <= now:
                del self._until[page]
                if page in self._kept:
                    del self._kept[page]
                    self._cached[page] = None

    def retain(self, page: int) -> None:
        """Adds a holder to a held page."""
        self._counts[page] += 1

    def release(self, pages: Sequence[int], keep_seconds: float = 0.0) -> None:
        """Removes one holder from each page; the last page of a sequence is evicted first.

        Args:
          keep_seconds: how long from now the published ones are kept, if not longer already.
        """
        for page in reversed(pages):
            if keep_seconds and page in self._contents:
                self._keep(page, self._now + keep_seconds)
            self._counts[page] -= 1
            if self._counts[page] == 0:
                del self._counts[page]
                self._make_available(page)

    def _keep(self, page: int, until: float) -> None:
        if until > self._until.get(page, 0.0):
            self._until[page] = until
            heapq.heappush(self._ends, (until, page))
        if len(self._ends) > _MOST_ENDS * self.total:
            self._ends = sorted((until, page) for page, until in self._until.items())

    def _make_available(self, page: int) -> None:
        if page not in self._contents:
            self._free.append(page)
        elif page in self._until:
            self._kept[page] = None
            if len(self._kept) > self.total // KEPT_PART:
                oldest, _ = self._kept.popitem(last=False)
                del self._until[oldest]
                self._cached[oldest] = None
        else:
            self._cached[page] = None

    def publish(self, page: int, content: Content) -> None:
        """Makes a held, full page findable; a second page with the same content stays private."""
        assert self._counts.get(page), f"page {page} is not held"
        if content.digest not in self._published and page not in self._contents:
            self._published[content.digest] = page
            self._contents[page] = content

    def retract(self, page: int) -> None:
        """Makes a held page unfindable again; does nothing for a page that is not published."""
        assert self._counts.get(page), f"page {page} is not held"
        content = self._contents.pop(page, None)
        self._until.pop(page, None)
        if content is not None:
            del self._published[content.digest]

    def has(self, page: int, content: Content) -> bool:
        """Whether this page is the one that is found by this content."""
        return self._published.get(content.digest) == page

    def find(self, content: Content) -> int | None:
        """The page with this content, with one holder added; None if there is no such page."""
        page = self._published.get(content.digest)
        if page is None or self._contents[page] != content:
            return None
        self._cached.pop(page, None)
        self._kept.pop(page, None)
        self._counts[page] = self._counts.get(page, 0) + 1
        return page

    def check(self) -> None:
        """Raises AssertionError unless the invariant holds; meant for tests."""
        free, held, kept = set(self._free), set(self._counts), set(self._kept)
        cached = set(self._cached) | kept
        assert len(free) == len(self._free), f"free twice: {sorted(self._free)}"
        assert free | held | cached == set(range(1, self.total + 1)), "a page is lost"
        assert len(free) + len(held) + len(self._cached) + len(kept) == self.total, "a page is in two places"
        assert kept <= set(self._until) <= set(self._contents) and len(kept) <= self.total // KEPT_PART
        assert all(count > 0 for count in self._counts.values())
        assert {content.digest: page for page, content in self._contents.items()} == self._published
        assert cached <= set(self._contents) and not free & set(self._contents)


def chain_digest(parent: Digest, tokens: Sequence[int]) -> Digest:
    """The digest of a full page: SHA-256 over its parent's digest (or the salt) and its exact token ids."""
    body = b"".join(token.to_bytes(4, "little") for token in tokens)
    return hashlib.sha256(parent + body).digest()
