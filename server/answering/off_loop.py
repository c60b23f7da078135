"""Runs work that a client can make long in threads, so that it does not block the event loop.

Contains neither text nor HTTP. Threads are shared fairly between clients, like the engines' slots
(`fair_queue.py`): a client with much work delays only itself.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from ..dispatch.fair_queue import FairQueue
from ..errors import RenderingOverloaded
from ..text.rendering import PROCESSES

_INLINE = 4096
"""The most characters that are processed on the event loop: a thread would take longer."""
_THREADS = 2
_LONGEST_TURN = 10.0
"""The longest time, in seconds, that a conversation waits to be rendered."""

_Result = TypeVar("_Result")


@dataclass(eq=False, slots=True)
class _Task:
    """A task that waits for a thread; all cost the same."""

    client: str
    order: tuple[float, int]
    begun: asyncio.Future[None]
    cost: float = 1.0
    weight: float = 1.0
    length: int = 0


class FairPool:
    """A thread pool that serves clients in turn. Use it on one event loop."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = threads
        self._queue: FairQueue[_Task] = FairQueue()
        self._arrivals = itertools.count()

    async def run(
        self, client: str, function: Callable[[], _Result], longest: float | None = None
    ) -> _Result:
        """Runs `function()` in a thread when it is the client's turn.

        Raises:
          RenderingOverloaded: no thread became free within `longest` seconds.
        """
        loop = asyncio.get_running_loop()
        task = _Task(client, (0.0, next(self._arrivals)), loop.create_future())
        self._queue.push(task)
        self._begin()
        try:
            async with asyncio.timeout(longest):
                await asyncio.shield(task.begun)
        except TimeoutError:
            self._leave(task)
            raise RenderingOverloaded(f"no thread became free within {longest} s") from None
        except BaseException:
            self._leave(task)
            raise
        work = self._pool.submit(function)
        work.add_done_callback(lambda _: self._release_soon(loop, client))
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Accepts nothing more, and drops tasks that have not started."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        while self._free and self._queue:
            task = self._queue.queues()[0][0]
            self._queue.take(task)
            self._free -= 1
            task.begun.set_result(None)

    def _leave(self, task: _Task) -> None:
        """Removes a task that was cancelled before it started."""
        if task.begun.done():
            self._release(task.client)
        else:
            self._queue.remove(task)

    def _release_soon(self, loop: asyncio.AbstractEventLoop, client: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._release, client)

    def _release(self, client: str) -> None:
        self._free += 1
        self._queue.give_back(client)
        self._begin()


class OffLoop:
    """The threads for parsing and encoding, and those for rendering, which wait for renderer processes."""

    def __init__(self) -> None:
        self.work = FairPool(_THREADS, "text")
        self.renders = FairPool(PROCESSES, "render")

    def of(self, client: str) -> "ClientWork":
        """The threads as one client uses them."""
        return ClientWork(self, client)

    def close(self) -> None:
        """Accepts nothing more, and drops tasks that have not started."""
        self.work.close()
        self.renders.close()


class ClientWork:
    """Runs one client's work off the event loop."""

    def __init__(self, off_loop: OffLoop, client: str) -> None:
        self._off_loop, self._client = off_loop, client

    async def run(self, size: int, function: Any, /, *arguments: Any, **options: Any) -> Any:
        """Runs `function(*arguments, **options)`, in another thread if `size`, in characters, is large."""
        if size <= _INLINE:
            return function(*arguments, **options)
        return await self._off_loop.work.run(self._client, lambda: function(*arguments, **options))

    async def render(self, function: Callable[..., _Result], /, *arguments: Any) -> _Result:
        """Runs `function(*arguments)`, which renders a conversation, always in another thread.

        Raises:
          RenderingOverloaded: no thread became free in time.
        """
        return await self._off_loop.renders.run(self._client, lambda: function(*arguments), _LONGEST_TURN)
