"""The prefix cache: a sequence reuses pages of others that hold the same first tokens. No JAX.

Only full pages are shared. They are found by a chain of digests, and their tokens are compared (`pages.py`).
What the pool no longer has may still be in host memory (`host_pages.py`): such a page is copied back before
the next step runs. In turn, published pages are copied to host memory, a few at a time.
The one idea: the device runs steps in order. So a page can be found as soon as the step that fills it is
planned, because a step that reads it is planned later.

Sequences with different salts never share pages. Why a page is not found is known from what last followed the
same prefix (`CacheMiss`).
"""

import hashlib
from collections import OrderedDict

import numpy as np

from ..request import CacheMiss
from .host_pages import HostPages
from .pages import Content, Digest, PagePool, chain_digest
from .sequence import Copies, Sequence

_REMEMBERED = 4
"""How many published pages are remembered for each page of the pool."""
_MOST_REMEMBERED = 1 << 18
"""The most of them, some 50 MB."""


class PrefixCache:
    """Finds and publishes pages of one pool.

    Attributes:
      restored: how many pages came back from host memory.
    """

    def __init__(
        self, pages: PagePool, page_size: int, *, enabled: bool = True, host: HostPages | None = None
    ) -> None:
        self._pages = pages
        self._page_size = page_size
        self._enabled = enabled
        self._host = host
        self.restored = 0
        self._restored: dict[int, np.ndarray] = {}
        """Page -> what it will have. A page of a plan that failed on the host can be restored again."""
        self._published: list[tuple[int, Content]] = []
        self._continued: OrderedDict[Digest, None] = OrderedDict()
        self._seen: OrderedDict[Digest, None] = OrderedDict()

    def reuse_pages(self, sequence: Sequence) -> None:
        """Gives a sequence without pages the cached pages of its first tokens, except its last token's.

        Pages from host memory take free pages of the pool.

        That token is computed again, because the logits after it are not cached. So is the whole prompt if
        its tokens are scored.
        """
        assert not sequence.pages and not sequence.computed
        if not self._enabled or sequence.scores is not None:
            self._missed(sequence, CacheMiss(at=0, reason="scored" if self._enabled else "off"))
            return
        for index in range((len(sequence.tokens) - 1) // self._page_size):
            content = self._content(sequence, index)
            page = self._pages.find(content) or self._restore(content)
            if page is None:
                self._missed(sequence, self._explain(sequence, index))
                break
            sequence.pages.append(page)
        else:
            self._missed(sequence, None)
        sequence.published = len(sequence.pages)
        sequence.computed = sequence.published * self._page_size

    def publish(self, sequence: Sequence) -> None:
        """Publishes the pages that are full by now and have only tokens that the host knows."""
        if not self._enabled:
            return
        full = min(sequence.computed, len(sequence.tokens)) // self._page_size
        contents = [self._content(sequence, index) for index in range(sequence.published, full)]
        for index, content in enumerate(contents, start=sequence.published):
            self._pages.publish(sequence.pages[index], content)
            self._note(sequence, index)
            if self._host:
                self._published.append((sequence.pages[index], content))
        sequence.published = max(full, sequence.published)

    def take_copies(self) -> Copies | None:
        """The copies between pool and host memory that go with the next step; None if there are none.

        Published pages wait until there is a group of them. They are copied unless they have been retracted
        or evicted since.
        """
        if self._host is None:
            return None
        saved, group = list[tuple[int, Content]](), self._host.group
        if len(self._published) >= group:
            waiting = [each for each in self._published if self._pages.has(*each)]
            waiting = [(page, content) for page, content in waiting if not self._host.has(content)]
            whole = len(waiting) // group * group
            saved, self._published = waiting[:whole], waiting[whole:]
        restored, self._restored = list(self._restored.items()), {}
        return Copies(restored, saved) if restored or saved else None

    def _restore(self, content: Content) -> int | None:
        """A page of the pool that will have this content before the next step; None without a copy of it."""
        if self._host is None or not self._pages.available:
            return None
        copy = self._host.read(content)
        if copy is None:
            return None
        page = self._pages.allocate()
        assert page is not None
        self._pages.publish(page, content)
        self._restored[page] = copy
        self.restored += 1
        return page

    def _note(self, sequence: Sequence, index: int) -> None:
        """Remembers this page, and that something continues its prefix."""
        most = min(_REMEMBERED * self._pages.total, _MOST_REMEMBERED)
        _remember(self._continued, self._before(sequence, index), most)
        _remember(self._seen, sequence.contents[index].digest, most)

    def _missed(self, sequence: Sequence, miss: CacheMiss | None) -> None:
        """Notes why not all pages of a sequence were found, and how many it will add, unless it has begun."""
        if sequence.cached is not None:
            return
        sequence.miss = miss
        full = len(sequence.request.prompt) // self._page_size * self._page_size
        sequence.written = full - len(sequence.pages) * self._page_size if self._enabled else 0

    def _explain(self, sequence: Sequence, index: int) -> CacheMiss:
        """Why the sequence's page `index` was not found."""
        at, digest = index * self._page_size, sequence.contents[index].digest
        if digest in self._seen:
            return CacheMiss(at=at, reason="evicted")
        continued = self._before(sequence, index) in self._continued
        return CacheMiss(at=at, reason="changed" if continued else "new")

    def _before(self, sequence: Sequence, index: int) -> bytes:
        """The digest of what comes before the sequence's page `index`."""
        if index:
            return sequence.contents[index - 1].digest
        salt = sequence.request.cache_salt.encode("utf-8", "surrogatepass")
        return hashlib.sha256(salt).digest()

    def _content(self, sequence: Sequence, index: int) -> Content:
        """The content of the sequence's page `index` when it is full."""
        contents, size = sequence.contents, self._page_size
        while len(contents) <= index:
            parent = self._before(sequence, len(contents))
            tokens = tuple(sequence.tokens[len(contents) * size : (len(contents) + 1) * size])
            contents.append(Content(chain_digest(parent, tokens), tokens))
        return contents[index]


def _remember(known: OrderedDict[Digest, None], key: Digest, most: int) -> None:
    """Adds an entry as the newest, and drops the oldest one beyond `most`."""
    known[key] = None
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)
