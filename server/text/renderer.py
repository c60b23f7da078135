"""The process that renders a checkpoint's chat template: `python -m distaff.server.text.renderer --fd N`.

A template is a program of whoever made the checkpoint. Here it runs where the kernel bounds it: an alarm ends
this process where loading or one rendering takes longer than it may, and its memory cannot grow by more than
MEMORY. Who asks, and starts another process where this one ended, is `rendering.py`. Ends with the web
process, by the end of the socket or, while it renders, by the alarm. Imports no jax.
"""

import argparse
import contextlib
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from ...checkpoints.chat_template import ChatTemplate, TemplateError
from . import renderer_wire as wire

MEMORY = 1 << 29
"""Bytes that loading and rendering may take beside the interpreter and its libraries."""

_LONGEST_MESSAGE = 4096
_STATUS = Path("/proc/self/status")
_OUT_OF_MEMORY = f"the chat template needs more than {MEMORY >> 20} MiB of memory"


def main() -> None:
    """Answers until the web process closes the socket."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with socket.socket(fileno=parser.parse_args().fd) as connection, contextlib.suppress(EOFError, OSError):
        load = wire.receive(connection, wire.renderer_decoder)
        assert isinstance(load, wire.Load)
        import_libraries()
        limit_memory()
        serve(connection, ChatTemplate(load.source, load.special), load.seconds)


def serve(connection: socket.socket, template: ChatTemplate, seconds: float) -> None:
    """Says what the template knows, then renders what is sent, until the connection or the memory ends."""
    answer: wire.ToWeb = examine(template, seconds)
    connection.sendall(wire.encode(answer))
    while not isinstance(answer, wire.Exhausted):
        question = wire.receive(connection, wire.renderer_decoder)
        assert isinstance(question, wire.Render)
        answer = render(template, question, seconds)
        connection.sendall(wire.encode(answer))


def examine(template: ChatTemplate, seconds: float) -> wire.Loaded | wire.Exhausted:
    """What the template reads and knows, found by trying."""
    try:
        with alarm(seconds):
            _ = template.folds_system
            return wire.Loaded(sorted(template.options), template.knows_tools)
    except MemoryError:
        return wire.Exhausted(_OUT_OF_MEMORY)


def render(template: ChatTemplate, question: wire.Render, seconds: float) -> wire.ToWeb:
    """The text of a conversation, or why there is none."""
    try:
        with alarm(seconds):
            answer = wire.Rendered(template.render(question.messages, **question.keywords))
            wire.encode(answer)
            return answer
    except TemplateError as error:
        return wire.Refused(str(error)[:_LONGEST_MESSAGE])
    except MemoryError:
        return wire.Exhausted(_OUT_OF_MEMORY)
    except wire.TooLong as error:
        return wire.Exhausted(f"the chat template made a text of {error}")


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Has the kernel end this process unless the block ends within `seconds`, whatever it is doing."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def import_libraries() -> None:
    """Imports whatever rendering needs, before time and memory are counted."""
    messages = [{"role": "user", "content": ""}]
    ChatTemplate("{{ messages }}", {}).render(
        messages, add_generation_prompt=True, continue_final_message=False
    )


def limit_memory() -> None:
    """Lets the private memory of this process grow by MEMORY from here on. Linux only; elsewhere nothing."""
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmData:"))
        most = int(line.split()[1]) * 1024 + MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    main()
