"""Chat templates rendered in separate processes, so that no template can block this one or use up its memory.

`RemoteTemplate` replaces `ChatTemplate` and sends each conversation to one of a few renderer processes
(`renderer.py`). A process that takes too long or too much memory is ended and replaced; if one was killed
from outside, the conversation is tried again. Calls block, so they are made from threads. The kernel limits
the time and memory of a template. `renderer_process.py` forks and ends the processes.
"""

import atexit
import contextlib
import logging
import signal
import socket
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoints.errors import CheckpointError
from ...checkpoints.tokenization.chat_template import ChatTemplate, Message, TemplateError
from ...runtime.framing import TooLong, WireError, received
from ..errors import RenderingOverloaded
from . import renderer_wire as wire
from .renderer_process import RendererParent

log = logging.getLogger(__name__)

SECONDS = 5.0
"""The longest time for loading a template or rendering one conversation."""
PROCESSES = 2
"""The number of renderers, so that a slow conversation does not block all others."""
QUEUE_SECONDS = 5.0
"""The longest time that a conversation waits for a renderer."""

_GRACE_SECONDS = 2.0
"""How long after its alarm a renderer counts as hung."""
_TRIES = 2

_parent = RendererParent()
"""Forks the renderers of all templates of this process."""
atexit.register(_parent.end)  # an orderly end leaves no process


class Lost(Exception):
    """A renderer has ended; the conversation may be tried on another one."""


class RemoteTemplate(ChatTemplate):
    """A chat template that is rendered in other processes. Thread-safe.

    Attributes:
      options, knows_tools: determined in the renderer.
    """

    def __init__(self, source: str, special: Mapping[str, str], seconds: float = SECONDS) -> None:
        """Starts the renderers, and waits until the first one has examined the template.

        Args:
          seconds: the longest time for loading the template or rendering one conversation.

        Raises:
          CheckpointError: loading the template takes too long or too much memory.
        """
        super().__init__(source, special)
        self._seconds = seconds
        self._free = threading.Semaphore(PROCESSES)
        self._closed = False
        self._living: weakref.WeakSet[Renderer] = weakref.WeakSet()
        self._renderers: deque[Renderer | None] = deque()
        try:
            self._load = wire.encode(wire.Load(source, dict(special), seconds))
            first = self._start()
            self._renderers.extend([*(self._start() for _ in range(PROCESSES - 1)), first])
            if first is None:
                raise Lost("its process cannot be started")
            loaded = first.loaded()
        except (Lost, TemplateError, TooLong) as error:
            self.close()
            raise CheckpointError(f"the chat template cannot be used: {error}") from None
        self.options = frozenset(loaded.options)
        self.knows_tools = loaded.knows_tools

    @property
    def pids(self) -> list[int]:
        """The ids of the idle processes."""
        return [each.pid for each in self._renderers if each is not None and each.usable]

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The rendered text of a conversation; see `ChatTemplate.render`.

        Raises:
          TemplateError: the template refuses it, or needs too much time or memory for it.
          RenderingOverloaded: no renderer became free, or none can be started.
        """
        keywords = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tools": tools,
            "options": options,
        }
        question = wire.Render(list(messages), keywords)
        for _ in range(_TRIES):
            with contextlib.suppress(Lost):
                return self._ask(question)
        raise TemplateError(f"the process that renders the chat template ended {_TRIES} times")

    def close(self) -> None:
        """Ends the renderers, including those that are rendering. Otherwise they end with this process."""
        self._closed = True
        for renderer in list(self._living):
            renderer.end()
        for renderer in list(self._renderers):
            if renderer is not None:
                renderer.kill()

    def _apply(
        self,
        messages: Sequence[Message],
        generate: bool,
        unfinished: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Used by `ChatTemplate` for trial renderings, which run in the renderer."""
        return self.render(
            messages,
            add_generation_prompt=generate,
            continue_final_message=unfinished,
            tools=tools,
            options=options,
        )

    def _ask(self, question: wire.Render) -> str:
        if not self._free.acquire(timeout=QUEUE_SECONDS):
            raise RenderingOverloaded(f"no chat template renderer became free in {QUEUE_SECONDS:.0f} s")
        renderer = None
        try:
            renderer = self._renderers.pop() or self._start()
            if renderer is None:
                raise RenderingOverloaded("no chat template renderer can be started")
            return renderer.render(question)
        finally:
            if renderer is not None and renderer.usable:
                self._renderers.append(renderer)
            else:  # a new one is used last, because it must load the template
                self._renderers.appendleft(self._start())
            self._free.release()

    def _start(self) -> "Renderer | None":
        """A new renderer; None if the system cannot start one, which is tried again when needed."""
        if self._closed:
            return None
        try:
            renderer = Renderer(self._load, self._seconds)
        except OSError as error:
            log.error("a chat template renderer cannot be started: %s", error)
            return None
        self._living.add(renderer)
        if self._closed:  # in the meantime, so `close` may have missed it
            renderer.kill()
            return None
        return renderer


class Renderer:
    """One renderer process, which renders one conversation at a time.

    Attributes:
      usable: it can render another conversation.
    """

    def __init__(self, load: bytes, seconds: float) -> None:
        """Starts it with the frame `load`, which allows `seconds` for each task; `loaded` waits for it.

        Raises:
          OSError: no process or socket can be created.
        """
        self.usable = True
        self._seconds = seconds
        self._loaded: wire.Loaded | None = None
        self._connection, theirs = socket.socketpair()
        self._answers = received(self._connection, wire.web_reader())
        try:
            with theirs:
                self._process = _parent.fork(theirs)
        except OSError:
            self._connection.close()
            raise
        self._connection.settimeout(seconds + _GRACE_SECONDS)
        self._send(load)

    @property
    def pid(self) -> int:
        return self._process.pid

    def loaded(self) -> wire.Loaded:
        """The template's properties; waits for them the first time.

        Raises:
          TemplateError: too slow or too large. Lost: the process ended for another reason.
        """
        if self._loaded is None:
            answer = self._answer()
            assert isinstance(answer, wire.Loaded)
            self._loaded = answer
        return self._loaded

    def render(self, question: wire.Render) -> str:
        """The rendered text of a conversation. Raises TemplateError, Lost."""
        try:
            self.loaded()
        except TemplateError as error:  # it could be loaded before, so the conversation is not the cause
            raise Lost(str(error)) from None
        try:
            data = wire.encode(question)
        except TooLong as error:
            raise TemplateError(f"the conversation is too long to be rendered: {error}") from None
        self._send(data)
        answer = self._answer()
        if isinstance(answer, wire.Refused):
            raise TemplateError(answer.message)
        assert isinstance(answer, wire.Rendered)
        return answer.text

    def end(self) -> None:
        """Ends the process at once; thread-safe. A thread that waits for its answer sees the socket close."""
        self.usable = False
        self._process.end()

    def kill(self) -> None:
        """Ends it and closes the connection, while no thread waits on it. Idempotent."""
        self.end()
        self._connection.close()

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the read of the answer reports the cause
            self._connection.sendall(data)

    def _answer(self) -> wire.Loaded | wire.Rendered | wire.Refused:
        try:
            answer = next(self._answers)
        except TimeoutError:
            raise self._ended(-signal.SIGALRM) from None
        except (StopIteration, OSError, WireError):
            raise self._ended(None) from None
        if isinstance(answer, wire.Exhausted):
            self.kill()
            raise TemplateError(answer.message)
        return answer

    def _ended(self, code: int | None) -> Exception:
        """The exception for its end: TemplateError if its alarm ended it or it hangs, else Lost."""
        code = self._process.end() if code is None else code
        self.kill()
        if code == -signal.SIGALRM:
            return TemplateError(f"the chat template takes longer than {self._seconds:g} s")
        how = "an unknown code" if code is None else f"code {code}"
        log.error("a chat template renderer ended with %s; another one replaces it", how)
        return Lost(f"its renderer ended with {how}")
