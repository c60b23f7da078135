"""A chat in the terminal: each line is a message, and the reply appears as it is generated.

Works the same if the lines come from a pipe, but prints no input prompt. Contains no HTTP.
"""

import sys
from collections.abc import Iterator
from contextlib import closing

from ..exit_codes import Failed
from .chat_client import ChatClient, Message

_PROMPT = "> "


def chat_in_terminal(client: ChatClient) -> None:
    """Chats until the input ends. Ctrl-C ends a reply; at the input prompt it ends the chat.

    Raises:
      Failed: the server cannot be reached; with input from a pipe, also if it refuses a request.
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
    """Prints a reply piece by piece; returns its text up to its end or Ctrl-C."""
    reply = ""
    with closing(client.reply(model, messages)) as pieces:
        try:
            for piece in pieces:
                reply += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass
    print(flush=True)
    return reply


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
