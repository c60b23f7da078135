"""One engine process, as a child of the web process: spawned, read, monitored, and reliably ended.

Handles frames but not requests, and never restarts a process: `supervisor.py` does. A child counts as dead
when its end of the socketpair closes, when it sends invalid frames, or when it sends nothing for too long. In
each case its whole process group is killed, so that no process that it started remains.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import IO, cast

from ..process.system import engine_environment, oom_kills, open_memory_file
from . import wire

log = logging.getLogger(__name__)

SILENCE_SECONDS = 9.5
"""A child that sends nothing for longer counts as dead, so that all users of it know within ten seconds."""

_TICK_SECONDS = 0.25
_STOP_SECONDS = 5.0
_EXIT_SECONDS = 0.5
"""How long to wait for the exit status of a child whose connection has closed."""
_LEFT_TO_US = (signal.SIGINT, signal.SIGTERM)
"""Signals that a child never receives: an orchestrator or a terminal sends them to all processes at once, but
the web process must drain first. They are blocked before the child exists, because libraries that it loads
install their own handlers (libtpu's writes a stack trace)."""


class EngineProcess(asyncio.Protocol):
    """A spawned engine process. Use `await EngineProcess.spawn(…)`."""

    def __init__(self, process: subprocess.Popen[bytes], receive: Callable[[wire.ToWeb], None]) -> None:
        self._process = process
        self._receive = receive
        self._reader = wire.web_reader()
        self._transport: asyncio.WriteTransport | None = None
        self._closed = asyncio.Event()
        self._last_received = time.monotonic()
        self._silent: float | None = None
        self._killed_by_us = False
        self._oom_kills = oom_kills()

    @classmethod
    async def spawn(
        cls, command: Sequence[str], receive: Callable[[wire.ToWeb], None], page_files: Sequence[int] = ()
    ) -> "EngineProcess":
        """Starts `command --fd N` in its own session, unless `start_early` has; `receive` is called with each
        frame that it sends.

        Args:
          page_files: the descriptors of files that the process receives, each as `--page-file`: its own one,
            then those of the other replicas.

        Raises:
          OSError: the program cannot be started.
        """
        early = _early.pop(tuple(command), None)
        process, ours = early[:2] if early else _start(command, page_files)
        child = cls(process, receive)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: child, sock=ours)
        except BaseException:
            child.kill()
            process.wait()
            raise
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def silence(self) -> float:
        """Seconds since its last frame."""
        return time.monotonic() - self._last_received

    def send(self, frame: wire.ToEngine) -> None:
        """Queues a frame for it; drops the frame if the child is gone."""
        if self._transport and not self._transport.is_closing():
            self._transport.write(wire.encode(frame))

    async def lost(self) -> None:
        """Waits until it is dead or counts as dead."""
        self._silent = await self._closed_or_silent()

    async def killed_by_others(self) -> bool:
        """Whether a SIGKILL ended it that came neither from us nor from the kernel's out-of-memory killer.

        Then none of its requests is the cause. False if that is unknown. Call it after `lost` has returned.
        """
        if self._silent or self._killed_by_us or self._oom_kills is None:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = await asyncio.to_thread(self._process.wait, _EXIT_SECONDS)
            return code == -signal.SIGKILL and self._oom_kills == oom_kills()
        return False

    async def reap(self) -> str:
        """Kills what remains of it, waits for its exit, and returns how it ended, for the log."""
        self.kill()
        code = await asyncio.to_thread(self._process.wait)
        if self._silent:
            return f"sent nothing for {self._silent:.1f} s and was killed"
        return f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"

    async def stop(self) -> None:
        """Requests its exit, and kills it after a timeout. `lost` returns as a result."""
        self.send(wire.Stop())
        await self._closed_within(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kills its process group at once. Idempotent."""
        self._killed_by_us = True
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        if self._transport:
            self._transport.abort()

    async def _closed_or_silent(self) -> float | None:
        """Waits for the end of the stream (returns None), or for a silence that is too long (its seconds).

        Only time in which this process runs counts: while it, or both, are paused (a stopped terminal job, a
        frozen container), it cannot receive anything, and the child is not at fault.
        """
        silent, last = 0.0, self._last_received
        while silent < SILENCE_SECONDS:
            asleep = time.monotonic()
            if await self._closed_within(_TICK_SECONDS):
                return None
            silent += min(time.monotonic() - asleep, 2 * _TICK_SECONDS)
            if self._last_received != last:
                silent, last = 0.0, self._last_received
        return silent

    async def _closed_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        return self._closed.is_set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's transports are not subclasses

    def data_received(self, data: bytes) -> None:
        """Called by asyncio. Invalid frames, or frames whose handling fails, end the child."""
        self._last_received = time.monotonic()
        try:
            for frame in self._reader.feed(data):
                self._receive(frame)
        except wire.WireError as error:
            log.error("the engine process %d sent an invalid frame and is killed: %s", self.pid, error)
            self.kill()
        except Exception:
            log.exception("a frame of the engine process %d could not be handled; it is killed", self.pid)
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._closed.set()


_early: dict[tuple[str, ...], tuple[subprocess.Popen[bytes], socket.socket, list[IO[bytes]]]] = {}
"""Processes that are started and not yet spawned, by command, with our end of the socketpair and the files
for copies of pages of all replicas."""


def start_early(commands: Sequence[Sequence[str]]) -> None:
    """Starts the first replica's process, which the next `EngineProcess.spawn` of its command takes over.

    So it loads while this process still imports what a server needs. Until then it ends only with this one.

    Args:
      commands: one for each replica.
    """
    with contextlib.suppress(OSError):  # the next attempt will report it
        files = open_page_files(commands)
        started = _start(commands[0], [file.fileno() for file in files])
        _early[tuple(commands[0])] = *started, files


def open_page_files(commands: Sequence[Sequence[str]]) -> list[IO[bytes]]:
    """A file for copies of pages for each replica; those that `start_early` has opened, if it has."""
    early = _early.get(tuple(commands[0]))
    return early[2] if early else [open_memory_file("pages") for _ in commands]


def _start(
    command: Sequence[str], page_files: Sequence[int]
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        files = [("--page-file", file) for file in page_files] + [("--fd", theirs.fileno())]
        words = [*command, *(word for name, file in files for word in (name, str(file)))]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_US)  # a child inherits it
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                pass_fds=[file for _, file in files],
                start_new_session=True,
                env=engine_environment(),
            )
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return process, ours
