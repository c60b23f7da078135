"""Engines with edits, over the weights of another engine: the last ones used, ready to be used again.

An engine that a call uses is never stopped, so calls with different edits can run at the same time.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from .edits import Edits
from .engine import Engine

_KEPT = 1
"""Engines that stay when nobody uses them."""


class EditedEngines:
    """The edited forms of one engine; thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._engines: OrderedDict[Edits, Engine] = OrderedDict()
        self._users: Counter[Edits] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def use(self, edits: Edits) -> Iterator[Engine]:
        """The engine with these edits, compiled and started if it is new; it runs as long as the block.

        Raises what the edits raise when they are traced.
        """
        with self._lock:
            engine = self._engines.get(edits) or self._start(edits)
            self._engines.move_to_end(edits)
            self._users[edits] += 1
        try:
            yield engine
        finally:
            with self._lock:
                self._users[edits] -= 1
                self._stop_unused()

    def stop(self) -> None:
        """Ends all of them; running requests fail. Idempotent."""
        with self._lock:
            for engine in self._engines.values():
                engine.stop()
            self._engines.clear()

    def _start(self, edits: Edits) -> Engine:
        engine = self._engine.edited(edits)
        engine.warm_up()
        engine.start()
        self._engines[edits] = engine
        return engine

    def _stop_unused(self) -> None:
        """Ends the engines that nobody uses, except the last ones."""
        unused = [edits for edits in self._engines if not self._users[edits]]
        for edits in unused[: max(0, len(self._engines) - _KEPT)]:
            self._engines.pop(edits).stop()
