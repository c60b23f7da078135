"""The process that renders a checkpoint's chat template; forked by `renderer_parent.py`.

A template is code from the checkpoint's author. The kernel limits it here: an alarm ends this process if
loading or one rendering takes too long, and its memory cannot grow by more than MEMORY. Beside the standard
streams it has one file descriptor, its connection. `rendering.py` sends the requests and replaces a process
that ended. When the web process has closed the connection, this process ends, too. Imports no jax.
"""

import contextlib
import os
import resource
import signal
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ...checkpoints.tokenization.chat_template import ChatTemplate, TemplateError
from ...runtime.framing import TooLong, received
from . import renderer_wire as wire

MEMORY = 1 << 29
"""The most bytes for loading and rendering, in addition to the interpreter and its libraries."""

_LONGEST_MESSAGE = 4096
_STATUS = Path("/proc/self/status")
_OUT_OF_MEMORY = f"the chat template needs more than {MEMORY >> 20} MiB of memory"


def run(connection: socket.socket) -> NoReturn:
    """Renders requests until the web process closes the connection; then ends this process.

    Only the end of the process closes the connection here, so its exit code is known to whoever sees that.
    """
    code = 1
    try:
        with contextlib.suppress(StopIteration, OSError):
            serve(connection)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # without the handlers that libraries have registered for the parent's end


def serve(connection: socket.socket) -> None:
    """Loads a template and sends its properties, then renders until memory runs out.

    Raises StopIteration, OSError: the connection is closed.
    """
    questions = received(connection, wire.renderer_reader())
    load = next(questions)
    assert isinstance(load, wire.Load)
    limit_memory()
    template = ChatTemplate(load.source, load.special)
    answer: wire.ToWeb = examine(template, load.seconds)
    connection.sendall(wire.encode(answer))
    while not isinstance(answer, wire.Exhausted):
        question = next(questions)
        assert isinstance(question, wire.Render)
        answer = render(template, question, load.seconds)
        connection.sendall(wire.encode(answer))


def examine(template: ChatTemplate, seconds: float) -> wire.Loaded | wire.Exhausted:
    """The template's options and features, found by trial renderings."""
    try:
        with alarm(seconds):
            _ = template.folds_system
            return wire.Loaded(sorted(template.options), template.knows_tools)
    except MemoryError:
        return wire.Exhausted(_OUT_OF_MEMORY)


def render(template: ChatTemplate, question: wire.Render, seconds: float) -> wire.ToWeb:
    """The rendered text of a conversation, or the reason for a failure."""
    try:
        with alarm(seconds):
            answer = wire.Rendered(template.render(question.messages, **question.keywords))
            wire.encode(answer)
            return answer
    except TemplateError as error:
        return wire.Refused(str(error)[:_LONGEST_MESSAGE])
    except MemoryError:
        return wire.Exhausted(_OUT_OF_MEMORY)
    except TooLong as error:
        return wire.Exhausted(f"the chat template produced a text of {error}")


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """The kernel ends this process, whatever it is doing, unless the block finishes within `seconds`."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def import_libraries() -> None:
    """Imports the libraries for rendering, before this process is forked and time and memory are limited."""
    messages = [{"role": "user", "content": ""}]
    ChatTemplate("{{ messages }}", {}).render(
        messages, add_generation_prompt=True, continue_final_message=False
    )


def limit_memory() -> None:
    """Limits the growth of this process's private memory to MEMORY. Linux only; elsewhere a no-op."""
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmData:"))
        most = int(line.split()[1]) * 1024 + MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
