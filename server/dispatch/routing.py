"""Which replica a prompt goes to: where its beginning has been before, unless that one is too busy.

The idea is cache-aware routing as known from SGLang's router: an engine that has served a prompt's beginning
may still have it in its cache, so equal beginnings belong together, but not at the price of requests that
wait for one engine while another idles. Here a beginning is a chain of digests over blocks of tokens, and
"too busy" is a lead in load over the idlest. Knows neither engines nor clocks: equal calls, equal answers.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence

BLOCK = 64
"""Tokens in a block; what of a prompt fills no block is not looked at."""
LEAD = 0.25
"""The load that a replica may have above the idlest and still be preferred for what it knows."""
MOST_BLOCKS = 65_536
"""The blocks remembered for each replica, some four million tokens; the stalest are forgotten."""

_DIGEST_BYTES = 16


def block_digests(prompt: Sequence[int]) -> list[bytes]:
    """For each full block of token ids a digest of everything up to its end."""
    chain = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    digests = []
    for end in range(BLOCK, len(prompt) + 1, BLOCK):
        chain.update(array("I", prompt[end - BLOCK : end]))
        digests.append(chain.digest())
    return digests


class Router:
    """What each replica has served, and whose turn it is."""

    def __init__(self, replicas: int) -> None:
        self._served: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in range(replicas)]
        self._turn = 0

    def choose(self, digests: Sequence[bytes], loads: Mapping[int, float]) -> int:
        """The replica for a prompt.

        Of those within LEAD of the idlest it is the one that knows most of the prompt's beginning, of these
        the least loaded, of these the next in turn.

        Args:
          digests: the prompt's `block_digests`.
          loads: of the replicas that may be chosen, at least one; 1.0 is all slots in use.
        """
        most = min(loads.values()) + LEAD
        return max(
            (replica for replica, load in loads.items() if load <= most),
            key=lambda replica: (self.known(replica, digests), -loads[replica], -self._wait(replica)),
        )

    def remember(self, replica: int, digests: Sequence[bytes]) -> None:
        """The replica serves this prompt; it is the next one's turn."""
        self._turn = replica + 1
        served = self._served[replica]
        for digest in reversed(digests):  # a beginning outlives what follows it
            served[digest] = None
            served.move_to_end(digest)
        while len(served) > MOST_BLOCKS:
            served.popitem(last=False)

    def forget(self, replica: int) -> None:
        """The replica begins anew, its cache empty."""
        self._served[replica].clear()

    def known(self, replica: int, digests: Sequence[bytes]) -> int:
        """How many of the prompt's leading blocks the replica has served."""
        served = self._served[replica]
        return next((count for count, digest in enumerate(digests) if digest not in served), len(digests))

    def _wait(self, replica: int) -> int:
        """How many others have their turn before it."""
        return (replica - self._turn) % len(self._served)
