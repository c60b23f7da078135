"""`ServerChild`: one `distaff serve` on loopback, started and ended by an actor of Ray.

The server has a process group of its own and dies with the actor's thread that started it. It is asked over
HTTP how it is; what it logs goes on to the actor's log, and the last line is kept as the reason of an end.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from ..process import system

_POLL_SECONDS = 0.2
_STOP_SECONDS = 75.0
"""A server lets requests run for a minute after SIGTERM."""


class ServerChild:
    """A server process; start it in a thread that lives as long as it should."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts the process.

        Args:
          words: the arguments of `distaff serve`. environment: in addition to this process's.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distaff.server.command.cli", "serve", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | dict(environment),
            preexec_fn=system.die_with_parent,
        )
        self._last_line = ""
        self._reading = asyncio.create_task(asyncio.to_thread(self._pass_on_log))

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    async def wait(self) -> str:
        """Waits for the end; returns the reason."""
        while not self.ended:
            await asyncio.sleep(_POLL_SECONDS)
        await asyncio.shield(self._reading)
        return f"exit code {self._process.returncode}: {self._last_line or 'it gave no reason'}"

    async def stop(self) -> None:
        """Ends the process: it may finish its requests first."""
        if not self.ended:
            self._process.terminate()
        try:
            await asyncio.wait_for(self.wait(), _STOP_SECONDS)
        except TimeoutError:
            self.kill()
            await self.wait()

    def kill(self) -> None:
        """Ends the process and its engines at once."""
        if not self.ended:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _pass_on_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                text = line.decode(errors="replace")
                self._last_line = text.strip() or self._last_line
                sys.stderr.write(text)
