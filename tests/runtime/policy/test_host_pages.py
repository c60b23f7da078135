"""Copies of pages in a file: what is found, what is replaced, and what a killed process leaves behind."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.runtime.policy.host_pages import HostPages
from distaff.runtime.policy.page_file import PageFile
from distaff.runtime.policy.pages import Content, chain_digest

PAGE, BYTES = 2, 10


def content_of(number: int) -> Content:
    tokens = (number, number + 1)
    return Content(chain_digest(b"start", tokens), tokens)


def keep(pages: HostPages, number: int, value: int | None = None) -> None:
    """Copies one page, in two pieces."""
    page_1B = np.full((1, BYTES), number if value is None else value, np.uint8)
    pages.keep([content_of(number)], [page_1B[:, :3], page_1B[:, 3:]])


@pytest.fixture
def descriptor() -> Iterator[int]:
    """An empty file."""
    descriptor = os.memfd_create("pages")
    yield descriptor
    os.close(descriptor)


def open_pages(
    descriptor: int, total: int = 3, owner: str = "model", peers: tuple[int, ...] = ()
) -> HostPages:
    return HostPages(PageFile(descriptor, owner, peers), total, PAGE, BYTES)


def bytes_of(pages: HostPages, number: int) -> list[int] | None:
    """A page's bytes; None if there is no copy of it."""
    page = pages.read(content_of(number))
    return None if page is None else page.tolist()


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["keep", "keep", "read", "open"]), st.integers(0, 7)), max_size=40
)


@settings(deadline=None)
@given(actions=ACTIONS, total=st.integers(1, 5))
def test_the_least_recently_used_copy_is_replaced(actions: list[tuple[str, int]], total: int):
    """Also by a process that takes the file over."""
    descriptor, known = os.memfd_create("pages"), list[int]()
    pages = open_pages(descriptor, total)
    for action, number in actions:
        if action == "open":
            pages = open_pages(descriptor, total)
        elif action == "keep" and number not in known:
            keep(pages, number)
            known = [*known, number][-total:]
        elif action == "read" and number in known:
            assert bytes_of(pages, number) == [number] * BYTES
            known = [*(n for n in known if n != number), number]
        assert [n for n in range(8) if pages.has(content_of(n))] == sorted(known)
        assert pages.copies == len(known)
    os.close(descriptor)


def test_another_page_with_the_same_digest_is_not_found(descriptor: int):
    """Tokens are compared."""
    pages = open_pages(descriptor)
    keep(pages, 1)
    assert not pages.has(content_of(1)._replace(tokens=(9, 9)))


def test_a_page_that_is_kept_twice_takes_one_place(descriptor: int):
    """The newer copy is there."""
    pages = open_pages(descriptor)
    for value in (1, 2):
        keep(pages, 1, value)
    assert pages.copies == 1 and bytes_of(pages, 1) == [2] * BYTES


def test_a_group_is_kept_page_by_page(descriptor: int):
    """Of more pages than there are places, the last ones."""
    for total, expected in ((3, [1, 2, 3]), (2, [2, 3])):
        pages = open_pages(descriptor, total)
        rows_NB = np.array([[n] * BYTES for n in (1, 2, 3)], np.uint8)
        pages.keep([content_of(n) for n in (1, 2, 3)], [rows_NB[:, :4], rows_NB[:, 4:]])
        kept = [n for n in range(5) if pages.has(content_of(n))]
        assert kept == expected and pages.copies == len(expected)
        assert [bytes_of(pages, n) for n in kept] == [[n] * BYTES for n in kept]


@pytest.mark.parametrize(("owner", "total"), [("another model", 3), ("model", 4)])
def test_copies_of_another_owner_are_dropped(descriptor: int, owner: str, total: int):
    """Also those of another number of pages: the file has another layout."""
    keep(open_pages(descriptor), 1)
    assert open_pages(descriptor, total, owner).copies == 0
    assert open_pages(descriptor).copies == 0, "they came back"


class Killed(BaseException):
    """The end of the process, at some instruction."""


@pytest.mark.parametrize("moment", range(7))
def test_a_killed_process_leaves_whole_pages(descriptor: int, monkeypatch: pytest.MonkeyPatch, moment: int):
    """A page that was being replaced is gone; the others are there."""
    pages = open_pages(descriptor, total=2)
    for number in (1, 2):
        keep(pages, number)
    die_after(monkeypatch, pages, moment)
    with pytest.raises(Killed):
        keep(pages, 3)
    left = open_pages(descriptor, total=2)
    assert bytes_of(left, 2) == [2] * BYTES
    assert not left.has(content_of(3)) and (moment == 0) == left.has(content_of(1))


@pytest.fixture
def peer() -> Iterator[int]:
    """The file of another engine."""
    descriptor = os.memfd_create("pages")
    yield descriptor
    os.close(descriptor)


@given(actions=ACTIONS, total=st.integers(1, 5))
def test_what_a_peer_keeps_is_found_while_it_is_kept(actions: list[tuple[str, int]], total: int):
    """At every moment the pages of the peer are found, and nothing of it is changed."""
    own, other = os.memfd_create("own"), os.memfd_create("other")
    pages, theirs = open_pages(own, peers=(other,)), open_pages(other, total)
    for action, number in actions:
        if action == "open":
            theirs = open_pages(other, total)
        elif action == "keep":
            keep(theirs, number)
        before = os.pread(other, os.fstat(other).st_size, 0)
        for n in range(8):
            assert bytes_of(pages, n) == ([n] * BYTES if theirs.has(content_of(n)) else None)
        assert os.pread(other, os.fstat(other).st_size, 0) == before and pages.copies == 0
    os.close(own), os.close(other)


def test_own_copies_come_first(descriptor: int, peer: int):
    pages, theirs = open_pages(descriptor, peers=(peer,)), open_pages(peer)
    keep(theirs, 1, 9), keep(theirs, 2)
    keep(pages, 1)
    assert (bytes_of(pages, 1), bytes_of(pages, 2)) == ([1] * BYTES, [2] * BYTES)


@pytest.mark.parametrize("owner", ["model", "another model"])
def test_a_peer_may_start_late_shorten_its_file_and_come_back(descriptor: int, peer: int, owner: str):
    """Copies of another model are not found."""
    pages = open_pages(descriptor, peers=(peer,))
    assert bytes_of(pages, 1) is None
    keep(open_pages(peer, total=5, owner=owner), 1)
    assert (bytes_of(pages, 1) is not None) == (owner == "model")
    os.ftruncate(peer, 70)
    assert bytes_of(pages, 1) is None
    keep(open_pages(peer, total=2, owner=owner), 1)
    assert (bytes_of(pages, 1) is not None) == (owner == "model")


def test_a_peer_that_comes_back_with_another_model_is_not_read(descriptor: int, peer: int):
    """Its first page has the same place as before, and the same content."""
    pages = open_pages(descriptor, peers=(peer,))
    keep(open_pages(peer), 1)
    assert bytes_of(pages, 1) == [1] * BYTES
    keep(open_pages(peer, owner="another model"), 1, 9)
    assert bytes_of(pages, 1) is None
    keep(open_pages(peer), 1)
    assert bytes_of(pages, 1) == [1] * BYTES


@pytest.mark.parametrize("moment", range(7))
def test_a_page_that_a_peer_is_writing_is_not_found(
    descriptor: int, peer: int, monkeypatch: pytest.MonkeyPatch, moment: int
):
    pages, theirs = open_pages(descriptor, peers=(peer,)), open_pages(peer, total=1)
    keep(theirs, 1)
    assert bytes_of(pages, 1) is not None
    die_after(monkeypatch, theirs, moment)
    with pytest.raises(Killed):
        keep(theirs, 3)
    assert bytes_of(pages, 3) is None and (moment == 0) == (bytes_of(pages, 1) is not None)


@pytest.mark.parametrize("total", [1, 2])
def test_a_page_that_is_replaced_while_it_is_read_is_not_found(
    descriptor: int, peer: int, monkeypatch: pytest.MonkeyPatch, total: int
):
    """Also if the file has another number of places by then."""
    pages = open_pages(descriptor, peers=(peer,))
    keep(open_pages(peer, total=1), 1)
    read = os.pread

    def late(file: int, size: int, offset: int) -> bytes:
        if size == BYTES:
            keep(open_pages(peer, total=total), 3)
        return read(file, size, offset)

    monkeypatch.setattr(os, "pread", late)
    assert bytes_of(pages, 1) is None
    monkeypatch.undo()
    assert bytes_of(pages, 3) == [3] * BYTES


def die_after(monkeypatch: pytest.MonkeyPatch, pages: HostPages, writes: int) -> None:
    """Makes the process die after some writes to the file."""
    done = 0

    class Watched:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __getitem__(self, key: object) -> object:
            return Watched(self.array[key]) if isinstance(key, str) else self.array[key]

        def __setitem__(self, key: object, value: object) -> None:
            nonlocal done
            if done == writes:
                raise Killed
            done += 1
            self.array[key] = value

    monkeypatch.setattr(pages, "_keys", Watched(pages._keys))
    monkeypatch.setattr(pages, "_records", Watched(pages._records))
    monkeypatch.setattr(pages, "_bytes_NB", Watched(pages._bytes_NB))
