"""The prefix cache: a sequence reuses pages of others that hold the same first tokens. No JAX.

Only full pages are shared. They are found by a chain of digests, and their tokens are compared (`pages.py`).
The one idea: the device runs steps in order. So a page can be found as soon as the step that fills it is
planned, because a step that reads it is planned later.

Sequences with different salts never share pages.
"""

import hashlib

from .pages import Content, PagePool, chain_digest
from .sequence import Sequence


class PrefixCache:
    """Finds and publishes pages of one pool."""

    def __init__(self, pages: PagePool, page_size: int, *, enabled: bool = True) -> None:
        self._pages = pages
        self._page_size = page_size
        self._enabled = enabled

    def reuse_pages(self, sequence: Sequence) -> None:
        """Gives a sequence without pages the cached pages of its first tokens, except its last token's.

        That token is computed again, because the logits after it are not cached. The generated tokens of a
        sequence with penalties are also computed again, because the device counts tokens as they pass. So is
        the whole prompt if its tokens are scored.
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
        """Publishes the pages that are full by now and have only tokens that the host knows."""
        if not self._enabled:
            return
        full = min(sequence.computed, len(sequence.tokens)) // self._page_size
        contents = [self._content(sequence, index) for index in range(sequence.published, full)]
        for index, content in enumerate(contents, start=sequence.published):
            self._pages.publish(sequence.pages[index], content)
        sequence.published = max(full, sequence.published)

    def _content(self, sequence: Sequence, index: int) -> Content:
        """The content of the sequence's page `index` when it is full."""
        contents, size = sequence.contents, self._page_size
        while len(contents) <= index:
            salt = sequence.request.cache_salt.encode("utf-8", "surrogatepass")
            parent = contents[-1].digest if contents else hashlib.sha256(salt).digest()
            tokens = tuple(sequence.tokens[len(contents) * size : (len(contents) + 1) * size])
            contents.append(Content(chain_digest(parent, tokens), tokens))
        return contents[index]
