"""The page pool against a simple model of it: holders, findable pages, and the order of eviction."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from distaff.runtime.policy.pages import Content, PagePool, chain_digest

PAGES = 6


def content_of(number: int) -> Content:
    """A page's content, different for every number."""
    return Content(chain_digest(b"salt", [number]), (number,))


TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=20)


class PoolModel(RuleBasedStateMachine):
    """Holds pages in lists, as sequences do, and repeats the effect of every operation on the pool."""

    holdings = Bundle("holdings")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES)
        self.holders: Counter[int] = Counter()
        self.content: dict[int, Content] = {}
        self.stale: list[int] = []
        """Findable pages without a holder, in the order of eviction."""
        self.kept: list[int] = []
        """Those that are evicted after all others, in their order."""
        self.until: dict[int, int] = {}
        self.now = 0

    def held(self) -> set[int]:
        return set(self.holders)

    @rule(target=holdings, count=st.integers(1, 3))
    def allocate(self, count):
        """A new page has no other holder, is not the trash page, and evicts a cached one only if needed."""
        pages = []
        for _ in range(count):
            unused = PAGES - len(self.held()) - len(self.stale) - len(self.kept)
            page = self.pool.allocate()
            if page is None:
                assert not unused and not self.stale and not self.kept
                break
            assert 1 <= page <= PAGES and page not in self.held()
            if not unused:
                assert page == (self.stale or self.kept).pop(0)
                del self.content[page]
                self.until.pop(page, None)
            else:
                assert page not in self.stale and page not in self.kept
            self.holders[page] += 1
            pages.append(page)
        return pages

    @rule(target=holdings, pages=holdings)
    def retain(self, pages):
        """Adds a second holder to the same pages."""
        for page in pages:
            self.pool.retain(page)
        self.holders.update(pages)
        return list(pages)

    @rule(pages=consumes(holdings), keep=st.sampled_from([0, 0, 2, 5]))
    def release(self, pages, keep):
        """Published pages without a holder stay findable; the end of the sequence is evicted first."""
        self.pool.release(pages, keep)
        self.holders = self.holders - Counter(pages)
        for page in reversed(pages):
            if keep and page in self.content:
                self.until[page] = max(self.now + keep, self.until.get(page, 0))
            if page in self.holders or page not in self.content:
                continue
            (self.kept if page in self.until else self.stale).append(page)
            if len(self.kept) > PAGES // 2:
                del self.until[self.kept[0]]
                self.stale.append(self.kept.pop(0))

    @rule(seconds=st.integers(1, 3))
    def advance(self, seconds):
        """Pages whose time has passed are like all others."""
        self.now += seconds
        self.pool.advance(self.now)
        for until, page in sorted((until, page) for page, until in self.until.items()):
            if until > self.now:
                break
            del self.until[page]
            if page in self.kept:
                self.kept.remove(page)
                self.stale.append(page)

    @rule(pages=holdings, content=st.integers(0, 8))
    def publish(self, pages, content):
        """The first page with a content is the findable one; a page has only one content."""
        wanted = content_of(content)
        for page in pages:
            self.pool.publish(page, wanted)
            if wanted not in self.content.values() and page not in self.content:
                self.content[page] = wanted

    @rule(target=holdings, content=st.integers(0, 8))
    def find(self, content):
        """Published and not evicted pages are found, and get a holder."""
        wanted = content_of(content)
        page = self.pool.find(wanted)
        assert page == {d: p for p, d in self.content.items()}.get(wanted)
        if page is None:
            return multiple()
        self.holders[page] += 1
        self.stale = [other for other in self.stale if other != page]
        self.kept = [other for other in self.kept if other != page]
        return [page]

    @invariant()
    def is_conserved(self):
        """No page is lost or in two places, and exactly the pages without a holder are available."""
        self.pool.check()
        assert self.pool.available == PAGES - len(self.held())
        assert self.pool.kept == len(self.kept)


TestPool = PoolModel.TestCase


def test_a_page_without_a_holder_cannot_be_published():
    """Only the holder of a page knows its content."""
    with pytest.raises(AssertionError, match="page 3 is not held"):
        PagePool(4).publish(3, content_of(3))


def test_a_hit_is_compared_with_the_tokens():
    """Two contents with the same digest, which is unlikely with SHA-256, are not confused."""
    pool = PagePool(4)
    page = pool.allocate()
    pool.publish(page, Content(b"digest", (1, 2)))
    assert pool.find(Content(b"digest", (1, 3))) is None
    assert pool.find(Content(b"digest", (1, 2))) == page


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1), st.integers(0, 31), st.data())
def test_a_digest_stands_for_exact_tokens(tokens, bit, data):
    """One changed bit gives another digest; equal ids give the same."""
    index = data.draw(st.integers(0, len(tokens) - 1))
    others = [*tokens[:index], tokens[index] ^ 1 << bit, *tokens[index + 1 :]]
    assert chain_digest(b"salt", tokens) == chain_digest(b"salt", tuple(tokens))
    assert chain_digest(b"salt", tokens) != chain_digest(b"salt", others)


@given(TOKENS)
def test_salts_keep_pages_apart(tokens):
    """A request with another salt never finds a page with the same tokens."""
    assert chain_digest(b"one", tokens) != chain_digest(b"two", tokens)


@given(TOKENS, TOKENS)
def test_a_digest_depends_on_all_tokens_before(head, tail):
    """Equal tokens after different beginnings are different pages."""
    same = chain_digest(chain_digest(b"salt", head), tail) == chain_digest(chain_digest(b"salt", tail), tail)
    assert same == (head == tail)


def test_what_is_known_of_times_is_bounded():
    """A conversation of many turns renews its times; only the newest of each page count."""
    pool = PagePool(4)
    page = pool.allocate()
    pool.publish(page, content_of(1))
    for second in range(100):
        pool.advance(second)
        pool.release([page], 1000)
        assert pool.find(content_of(1)) == page
    assert len(pool._ends) <= 17
    pool.release([page], 1)
    pool.advance(1098)
    assert pool.kept == 1
    pool.advance(1099)
    assert pool.kept == 0
