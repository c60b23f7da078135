"""A server for programs whose prompts are long and whose tools must be called: its engine plays a script."""

from collections.abc import Callable

import pytest

from distaff.runtime.request import Request
from distaff.server.testing import FakeEngine

from ...programs import said
from ..conftest import Server

Script = Callable[[bytes], str]
Play = Callable[[Script], Server]


@pytest.fixture
def play(make_server: Callable[..., Server]) -> Play:
    """Starts one that answers what `script` makes of the prompt's text, and refuses unknown parameters."""

    def started(script: Script) -> Server:
        def reply(request: Request) -> bytes:
            return script(said(request)).encode()

        server = make_server(strict=True)
        fresh = FakeEngine(reply, context=1_000_000)
        server.engine.info, server.engine.reply = fresh.info, fresh.reply
        return server

    return started
