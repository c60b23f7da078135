"""Chooses a replica for a prompt: one that has served its prefix before, unless that one is too busy.

This is cache-aware routing as in SGLang's router: an engine that has served a prompt's prefix may still have
it in its cache, so equal prefixes go to the same engine, and so do requests of one session. But requests must
not wait for one engine while another is idle. Here a prefix is a chain of digests over blocks of tokens, and
"too busy" means a lead in load over the least loaded replica. Contains neither engines nor clocks: equal
calls return equal results.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence

BLOCK = 64
"""Tokens in a block; an incomplete block at the end of a prompt is ignored."""
LEAD = 0.25
"""How far above the lowest load a replica may be and still be preferred for its cache."""
MOST_BLOCKS = 65_536
"""The most blocks remembered for each replica, some four million tokens; the least recently used go first."""

MOST_SESSIONS = 16_384
"""The most sessions whose last replica is remembered; the least recently used go first."""

_DIGEST_BYTES = 16


def block_digests(prompt: Sequence[int], block: int = BLOCK) -> list[bytes]:
    """For each full block of token ids, or of bytes, a digest of everything up to its end."""
    chain = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    digests = []
    for end in range(block, len(prompt) + 1, block):
        part = prompt[end - block : end]
        chain.update(part if isinstance(part, bytes) else array("I", part))
        digests.append(chain.digest())
    return digests


class Router:
    """Which prefixes each replica has served, and which replica is next in turn."""

    def __init__(self, replicas: int) -> None:
        self._served: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in range(replicas)]
        self._sessions: OrderedDict[str, int] = OrderedDict()
        self._turn = 0

    def extend(self, replicas: int) -> None:
        """Makes room for at least this many replicas."""
        self._served += [OrderedDict() for _ in range(replicas - len(self._served))]

    def choose(
        self,
        digests: Sequence[bytes],
        loads: Mapping[int, float],
        session: str = "",
        home: int | None = None,
    ) -> int:
        """The replica for a prompt.

        Of those within LEAD of the lowest load it is the one that served the session last, then the one that
        has served the longest prefix of the prompt; among equals its home, then the least loaded, then the
        next in turn.

        Args:
          digests: the prompt's `block_digests`. session: empty for none.
          loads: the load of each replica that may be chosen, at least one; 1.0 is all slots in use.
          home: the replica that others would choose for this conversation without knowing any prompt.
        """
        most, last = min(loads.values()) + LEAD, self._sessions.get(session)

        def worth(replica: int) -> tuple[float, ...]:
            known = self.known(replica, digests)
            return (replica == last, known, replica == home, -loads[replica], -self._wait(replica))

        return max((replica for replica, load in loads.items() if load <= most), key=worth)

    def remember(self, replica: int, digests: Sequence[bytes], session: str = "") -> None:
        """Records that the replica serves this prompt; the next replica is in turn."""
        self._turn = replica + 1
        if session:
            self._sessions[session] = replica
            self._sessions.move_to_end(session)
            if len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        served = self._served[replica]
        for digest in reversed(digests):  # a prefix stays longer than what follows it
            served[digest] = None
            served.move_to_end(digest)
        while len(served) > MOST_BLOCKS:
            served.popitem(last=False)

    def forget(self, replica: int) -> None:
        """Records that the replica has restarted with an empty cache."""
        self._served[replica].clear()
        for session in [each for each, last in self._sessions.items() if last == replica]:
            del self._sessions[session]

    def known(self, replica: int, digests: Sequence[bytes]) -> int:
        """How many of the prompt's leading blocks the replica has served."""
        served = self._served[replica]
        return next((count for count, digest in enumerate(digests) if digest not in served), len(digests))

    def _wait(self, replica: int) -> int:
        """The number of replicas in turn before it."""
        return (replica - self._turn) % len(self._served)
