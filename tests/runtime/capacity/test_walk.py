"""The pages that the TPU's attention kernel fetches, against its own order of fetches."""

from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from distaff.model.kernels.tpu.ragged_attention import KEYS, QUERIES
from distaff.runtime.capacity.walk import pages_fetched
from distaff.runtime.capacity.work import Span


def walk(spans: Sequence[Span], tokens: int, page_size: int, table: int) -> Iterator[tuple[int, int]]:
    """Each block of pages that JAX's kernel fetches, `(sequence, block)`, in its order.

    Follows `ragged_paged_attention_kernel` of JAX 0.10.2: the first block is fetched before all others; the
    computation of a block starts the fetch of the next one; a block is computed only after its fetch. Derived
    from the kernel's control flow, not from `pages_fetched`.
    """
    queries, pages = min(QUERIES, tokens), max(1, min(KEYS // page_size, table))
    starts = [sum(count for count, _ in spans[:n]) for n in range(len(spans) + 1)]
    fetched = [(0, 0)]
    yield fetched[0]
    sequence = 0
    for first in range(0, tokens, queries):
        done = False
        while not done and first < starts[-1] and sequence < len(spans):
            length, ends_here = spans[sequence][1], starts[sequence + 1] <= first + queries
            block = 0
            while block * pages * page_size < length:
                assert fetched.pop(0) == (sequence, block)
                following = (sequence, block + 1)
                if (block + 1) * pages * page_size >= length:
                    following = (sequence + 1 if ends_here else sequence, 0)
                if following[0] < len(spans):  # there is nothing after the last sequence
                    fetched.append(following)
                    yield following
                block += 1
            sequence, done = sequence + ends_here, starts[sequence + 1] >= first + queries
    assert not fetched


spans = st.integers(1, 90).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, 1500)))
rows = st.lists(spans, min_size=1, max_size=12)


@given(rows, st.sampled_from([16, 64, 256, 512]), st.integers(0, 70))
def test_pages_are_those_of_the_kernels_order(rows: list[Span], page_size: int, padding: int) -> None:
    """For any mixture of prompts and decode rows, any page size, and padding after the last token."""
    tokens, table = sum(count for count, _ in rows) + padding, -(-1500 // page_size)
    block = max(1, min(KEYS // page_size, table))
    expected = len(list(walk(rows, tokens, page_size, table))) * block
    assert pages_fetched(rows, tokens=tokens, page_size=page_size, table=table) == expected


@given(st.lists(st.integers(1, 8000), min_size=1, max_size=64))
def test_decoding_reads_each_row_once(lengths: list[int]) -> None:
    """It fetches less than one block of keys more than the row has."""
    read = 64 * pages_fetched([(1, n) for n in lengths], tokens=len(lengths), page_size=64, table=125)
    assert sum(lengths) <= read < sum(lengths) + KEYS * len(lengths)
