"""The pages that the TPU's attention kernel fetches, counted on the host.

JAX's ragged paged attention takes the step's tokens in blocks of queries. For each sequence with a token in
the block it fetches all of the sequence's keys, in blocks of whole pages. So a decode row's pages are fetched
once, rounded up to a block, and a prompt's chunk fetches its keys once for every block of queries. A test
repeats the kernel's own order of fetches, one by one.
"""

from collections.abc import Sequence

from ...model.kernels.tpu.ragged_attention import KEYS, QUERIES
from .work import Span


def pages_fetched(spans: Sequence[Span], *, tokens: int, page_size: int, table: int) -> int:
    """The pages that one layer's kernel fetches for rows of these spans, in order in `tokens`."""
    queries = min(QUERIES, tokens)
    block = max(1, min(KEYS // page_size, table))
    fetched = start = 0
    for count, end in spans:
        first, last = start // queries, (start + count - 1) // queries
        fetched += (last - first + 1) * -(-end // (block * page_size)) * block
        start += count
    return fetched
