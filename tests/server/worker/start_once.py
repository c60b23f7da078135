"""One start of a real engine: `start_once.py FLAGS`, as the web process would start it.

Prints a JSON object: how many programs it compiled, how many steps were ready, the ids of a greedy answer.
"""

import json
import os
import sys
import threading
import time

import jax

from distaff.runtime.request import Request, SamplingParams, TokenEvent
from distaff.server.flags import ServeFlags
from distaff.server.logs import configure_logging
from distaff.server.process.system import open_memory_file
from distaff.server.worker.main import build_engine

counts = {"compile_requests_use_cache": 0, "cache_hits": 0}


def count(event: str, **details: object) -> None:
    """Counts the programs that JAX needs, and those that it loads."""
    if (name := event.rpartition("/")[2]) in counts:
        counts[name] += 1


def main() -> None:
    """Builds the engine, waits until all steps are ready, and asks for twelve tokens."""
    configure_logging("INFO")
    jax.monitoring.register_event_listener(count)
    tokens: list[int] = []
    ended = threading.Event()

    def receive(events: list[TokenEvent]) -> None:
        tokens.extend(event.token for event in events if event.token is not None)
        if any(event.finish for event in events):
            ended.set()

    flags = ServeFlags.from_argument(sys.argv[1])
    with open_memory_file("pages") as pages:
        engine, _ = build_engine(flags, 0, lambda frame: None, receive, [pages.fileno()])
        engine.start()
        while engine.stats.buckets_ready < engine.stats.buckets:
            time.sleep(0.02)  # the engine has no event for a compiled step
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        engine.submit(Request(id="a", prompt=tuple(range(3, 40)), params=params))
        assert ended.wait(60)
    compiled = counts["compile_requests_use_cache"] - counts["cache_hits"]
    print(json.dumps({"compiled": compiled, "steps": engine.stats.buckets, "tokens": tokens}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
