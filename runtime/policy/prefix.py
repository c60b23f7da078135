"""The prefix cache: a sequence begins with the pages of others that hold the tokens it begins with. No JAX.

Only full pages are shared, found by a chain of digests and held against their very tokens (`pages.py`). The
one idea: the device runs steps in order, so a page can be found from the moment when the step that fills it
is planned; whoever reads it is planned later.

Sequences with different salts never find each other's pages.
"""

import hashlib

from .pages import Content, PagePool, chain_digest
from .sequence import Sequence


class PrefixCache:
    """Finds and offers pages of one pool."""

    def __init__(self, pages: PagePool, page_size: int, *, enabled: bool = True) -> None:
        self._pages = pages
        self._page_size = page_size
        self._enabled = enabled

    def reuse_pages(self, sequence: Sequence) -> None:
        """Gives a sequence without pages those that hold its beginning, but never its last token's.

        That token is computed again, since nobody keeps what the model said after it. What a sequence with
        penalties has generated is computed again too: the device counts tokens as they pass. So is all of a
        prompt whose tokens are to be scored.
        """
        assert not sequence.pages and not sequence.computed
        if not self._enabled or sequence.scores is not None:
            return
        penalised = sequence.request.params.penalises
        known = len(sequence.request.prompt) if penalised else len(sequence.tokens)
        for index in range(min(known, len(sequence.tokens) - 1) // self._page_size):
            page = self._pages.find(self._content(sequence, index))
            if page is None:
                break
            sequence.pages.append(page)
        sequence.published = len(sequence.pages)
        sequence.computed = sequence.published * self._page_size

    def publish(self, sequence: Sequence) -> None:
        """Offers the pages that are full by now of tokens that the host knows."""
        if not self._enabled:
            return
        full = min(sequence.computed, len(sequence.tokens)) // self._page_size
        contents = [self._content(sequence, index) for index in range(sequence.published, full)]
        for index, content in enumerate(contents, start=sequence.published):
            self._pages.publish(sequence.pages[index], content)
        sequence.published = max(full, sequence.published)

    def _content(self, sequence: Sequence, index: int) -> Content:
        """What the sequence's page `index` holds when it is full."""
        contents, size = sequence.contents, self._page_size
        while len(contents) <= index:
            salt = sequence.request.cache_salt.encode("utf-8", "surrogatepass")
            parent = contents[-1].digest if contents else hashlib.sha256(salt).digest()
            tokens = tuple(sequence.tokens[len(contents) * size : (len(contents) + 1) * size])
            contents.append(Content(chain_digest(parent, tokens), tokens))
        return contents[index]
