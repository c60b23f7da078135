"""What the tests of engine processes share: how to start one without JAX, ask it, and wait for it."""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distaff.runtime.request import Request, SamplingParams, TokenEvent
from distaff.server.dispatch.event_stream import BufferedStream

SCRIPT = Path(__file__).with_name("fake_engine_process.py")


def command(mode: str) -> list[str]:
    """Starts `fake_engine_process.py` in one of its modes."""
    return [sys.executable, str(SCRIPT), mode]


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """Waits for it; returns the seconds it took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
    return time.monotonic() - began


def request(
    name: str, *, prompt: int = 3, max_tokens: int | None = None, token: int = 7, grammar: str | None = None
) -> Request:
    params = SamplingParams(max_tokens=max_tokens, grammar=grammar)
    return Request(id=name, prompt=(token,) * prompt, params=params)


async def collect(stream: BufferedStream) -> list[TokenEvent]:
    return [event async for event in stream]
