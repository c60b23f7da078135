"""A conversation in the terminal: a line is a turn, the reply appears as it is made.

Works the same when the lines come from a pipe, only without prompts. Knows no HTTP.
"""

import sys
from collections.abc import Iterator
from contextlib import closing

from ..exit_codes import Failed
from .chat_client import ChatClient, Message

_PROMPT = "> "


def converse(client: ChatClient) -> None:
    """Talks until the input ends. Ctrl-C ends a reply; at the prompt it ends the conversation.

    Raises:
      Failed: the server cannot be reached; from a pipe also when it refuses a turn.
    """
    model = client.model()
    by_hand = sys.stdin.isatty()
    if by_hand:
        print(f"Talking to {model}. Ctrl-D ends.")
    messages: list[Message] = []
    for line in _typed() if by_hand else _piped():
        messages.append({"role": "user", "content": line})
        try:
            messages.append({"role": "assistant", "content": _show(client, model, messages)})
        except Failed as error:
            if not by_hand:
                raise
            messages.pop()
            print(f"\n[{error}]", file=sys.stderr)


def _show(client: ChatClient, model: str, messages: list[Message]) -> str:
    """Prints a reply piece by piece; returns what was said until its end or Ctrl-C."""
    said = ""
    with closing(client.reply(model, messages)) as pieces:
        try:
            for piece in pieces:
                said += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass
    print(flush=True)
    return said


def _typed() -> Iterator[str]:
    import readline  # noqa: F401 - gives `input` history and editing

    while True:
        try:
            line = input(_PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line:
            yield line


def _piped() -> Iterator[str]:
    return (line.strip() for line in sys.stdin if line.strip())
