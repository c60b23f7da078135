"""The cost of the way through Ray Serve: `.venv-ray/bin/python -m benchmarks.ray_overhead [MODEL]`.

One server alone, and the application for Ray Serve with one ingress and one replica, a server with the same
flags. Both run all the time; `distaff bench` loads them in turns, and the median of the rounds is printed.
With a tiny model (`build/bench/tiny-8192`, which the trials make) nearly all time is the server's and Ray's;
with the bundled one, most of it is arithmetic.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .server import Contender, free_port, running

ROUNDS = 3
STREAMS = (1, 8, 32)
FIGURES = ("median_ttft_ms", "median_itl_ms", "output_throughput")
PROGRAM = [sys.executable, "-m", "distaff.server.command.cli"]
_PROMPT, _ANSWER = 118, 64
_OBJECT_STORE = 200 << 20


def alone(flags: Sequence[str]) -> Contender:
    """The server without Ray."""
    return Contender(command=lambda port: [*PROGRAM, "serve", *flags, "--port", str(port)], ready="/ready")


@contextlib.contextmanager
def over_ray(flags: Sequence[str]) -> Iterator[str]:
    """The application on one node; yields its URL."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    from distaff.server.ray_serve.app import build

    port = free_port()
    ray.init(include_dashboard=False, object_store_memory=_OBJECT_STORE, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({"flags": list(flags)}))
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
    finally:
        ray.shutdown()


def measured(url: str, seed: int) -> list[dict[str, Any]]:
    """The results of `distaff bench`, one for each number of streams."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*PROGRAM, "bench", "--base-url", url, "--backend", "openai-chat", "--disable-tqdm"]
        command += ["--random-input-len", str(_PROMPT), "--random-output-len", str(_ANSWER)]
        command += ["--num-prompts", "32", "--num-warmups", "4", "--seed", str(seed)]
        command += ["--max-concurrency", ",".join(map(str, STREAMS)), "--save-result"]
        command += ["--result-dir", folder, "--result-filename", "result.json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / "result.json").read_text())


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="by default the bundled one")
    model = parser.parse_args().model
    words = [str(Path(model).resolve())] if model else []
    flags = [*words, *"--auth none --slots 32 --context 1024".split()]
    rounds: dict[str, list[list[dict[str, Any]]]] = {"alone": [], "over Ray": []}
    with running(alone(flags)) as server, over_ray(flags) as url:
        for seed in range(ROUNDS):
            rounds["alone"].append(measured(server.url, seed))
            rounds["over Ray"].append(measured(url, seed))
            print(f"round {seed + 1} of {ROUNDS}", file=sys.stderr, flush=True)
    print(f"{'streams':>7} {'server':>9} " + " ".join(f"{figure:>17}" for figure in FIGURES))
    for number, streams in enumerate(STREAMS):
        for name, results in rounds.items():
            values = [statistics.median(result[number][figure] for result in results) for figure in FIGURES]
            print(f"{streams:>7} {name:>9} " + " ".join(f"{value:>17.2f}" for value in values), flush=True)


if __name__ == "__main__":
    main()
