"""The key file of a soak: written again at intervals, while clients use its keys.

It always holds a lasting key, the newest and the one before that, so no client uses a key that is about to
go. After each change the newest key must be accepted, and the one that has gone refused.
"""

import asyncio
import secrets
from pathlib import Path

from ..trials.sse import Call, ask

SETTLED_SECONDS = 4.0
"""When a change must be in force: within two seconds after one without a change, and one for this machine."""


class KeyFile:
    """A file of keys that changes.

    Attributes:
      lasting: a key that is always accepted. current: the newest key that is in force.
      changes: how often the file was written again. faults: what was accepted or refused wrongly.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lasting = secrets.token_hex(12)
        self._newest = [secrets.token_hex(12)]
        self.current = self._newest[-1]
        self.changes = 0
        self.faults: list[str] = []
        self._write()

    async def run(self, url: str, every: float) -> None:
        """Changes the file at intervals, until it is cancelled."""
        while True:
            await asyncio.sleep(every)  # the interval itself
            gone = self._newest[0] if len(self._newest) > 1 else None
            self._newest = [self._newest[-1], secrets.token_hex(12)]
            self._write()
            self.changes += 1
            await asyncio.sleep(SETTLED_SECONDS)  # what is measured is that no more is needed
            await self._check(url, self._newest[-1], 200)
            if gone:
                await self._check(url, gone, 401)
            self.current = self._newest[-1]

    async def _check(self, url: str, key: str, wanted: int) -> None:
        status = (await ask(url, Call("/v1/models"), key)).status
        if status != wanted:
            self.faults.append(f"change {self.changes}: a key is answered {status}, not {wanted}")

    def _write(self) -> None:
        written = self._path.with_suffix(".new")
        written.write_text("\n".join([self.lasting, *self._newest, ""]))
        written.replace(self._path)
