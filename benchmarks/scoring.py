"""The cost of scoring a prompt compared with answering it: `python -m benchmarks.scoring`.

Milliseconds of a completion of one token, with log-probabilities of that token only and of the whole prompt
(`echo`), in turns: prompts of several lengths, alone and many in one call. Prompts are random ids, so that
the prefix cache has none of them; each figure is the minimum of several turns.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx

from .server import await_all_steps, distaff, running

CALLS = ((1, 6), (1, 64), (1, 250), (16, 6), (16, 24), (64, 24))
"""Prompts per call, and tokens of each."""


def _milliseconds(client: httpx.Client, prompts: int, tokens: int, **asked: Any) -> float:
    ids = [[random.randrange(100, 40_000) for _ in range(tokens)] for _ in range(prompts)]
    body = {"model": "tgi", "prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 1, **asked}
    begun = time.perf_counter()
    reply = client.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    return 1000 * (time.perf_counter() - begun)


def measure(url: str, turns: int) -> None:
    """Prints a line for each kind of call."""
    with httpx.Client(base_url=url, timeout=120) as client:
        for prompts, tokens in CALLS:
            plain, scored = (
                min(column)
                for column in zip(
                    *(
                        [_milliseconds(client, prompts, tokens, echo=echo) for echo in (False, True)]
                        for _ in range(turns)
                    ),
                    strict=True,
                )
            )
            print(
                f"{prompts:3} prompts of {tokens:3} tokens: {plain:7.1f} ms plain, {scored:7.1f} ms scored: "
                f"{scored / plain:.2f} times",
                flush=True,
            )


def main(arguments: Sequence[str]) -> None:
    """Serves a model and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    options, rest = parser.parse_known_args(arguments)
    with running(distaff(*rest)) as served:
        await_all_steps(served)
        measure(served.url, options.turns)


if __name__ == "__main__":
    main(sys.argv[1:])
