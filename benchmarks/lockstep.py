"""What it costs that the devices of a mesh are in two processes: `python -m benchmarks.lockstep`.

The same random model over two CPU devices, once in one process and once in two that run in lockstep, in
turns. Each run decodes four streams; told are the time of a step, how long the engine's thread is kept by
telling the follower, and the share of the time in which no step was in flight (none, where overlap is kept).
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

TURNS = 3
STREAMS, TOKENS = 4, 96


def main() -> None:
    """Runs both in turns and prints the medians; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--process", type=int)
    parser.add_argument("--coordinator")
    wish = parser.parse_args()
    if wish.process is not None:
        run(wish.process, wish.coordinator)
        return
    found: dict[str, list[dict[str, float]]] = {"one process": [], "two processes": []}
    for _ in range(TURNS):
        found["one process"].append(measured(None))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
        follower = started(1, coordinator)
        found["two processes"].append(measured(coordinator))
        follower.wait(60)
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    for name, figures in medians.items():
        print(name, ", ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    print(json.dumps(medians))


def started(process: int, coordinator: str | None) -> subprocess.Popen[str]:
    """One of the processes."""
    words = [sys.executable, "-m", "benchmarks.lockstep", "--process", str(process)]
    words += ["--coordinator", coordinator] if coordinator else []
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def measured(coordinator: str | None) -> dict[str, float]:
    """What a leader, or a lone process, says of its run."""
    out, _ = started(0, coordinator).communicate(timeout=300)
    return json.loads(out.strip().splitlines()[-1])


def run(process: int, coordinator: str | None) -> None:
    """A process: leads and measures, or follows."""
    import jax.numpy as jnp

    from distaff.model.config import ModelConfig
    from distaff.model.sharding import place_all
    from distaff.model.transformer import random_parameters
    from distaff.runtime.assembly import assemble
    from distaff.runtime.devices import claim_mesh
    from distaff.runtime.engine import Engine
    from distaff.runtime.lockstep import Follower, Leader
    from distaff.runtime.settings import EngineSettings
    from distaff.runtime.wishes import Membership

    config = ModelConfig(
        vocabulary=8192,
        layers=12,
        width=512,
        feed_forward=1536,
        heads=8,
        kv_heads=2,
        head_size=64,
        context=256,
    )
    settings = EngineSettings(slots=STREAMS, context=256, kv_pages=64)
    member = coordinator and Membership(coordinator=coordinator, process=process, processes=2)
    mesh = claim_mesh("model=2", member or None)
    parameters = place_all(random_parameters(config, 0, jnp.dtype("float32")), config, mesh)
    if member and not member.leads:
        follower = Follower(member, sys.exit)
        runner = assemble(config, parameters, settings, mesh)
        runner.warm_up(lambda done, total: None)
        follower.run(runner)
        return
    leader = Leader(member, sys.exit) if member else None
    engine = Engine(config, parameters, settings, mesh=mesh, followers=leader)
    engine.warm_up()
    engine.start()
    print(json.dumps(decode(engine, leader)))
    engine.stop()


def decode(engine: Any, leader: Any) -> dict[str, float]:
    """Decodes the streams and takes the times of launches and reads."""
    from distaff.runtime.request import Request, SamplingParams

    in_flight, idle, since, told = 0, 0.0, 0.0, 0.0
    runner = engine._runner
    launch, read = runner.launch, runner.read

    def timed_launch(plan):
        nonlocal in_flight, idle
        idle += time.perf_counter() - since if since and not in_flight else 0.0
        in_flight += 1
        return launch(plan)

    def timed_read(flight):
        nonlocal in_flight, since
        rows = list(read(flight))
        in_flight, since = in_flight - 1, time.perf_counter()
        return iter(rows)

    if leader:
        tell = leader.launch

        def timed_tell(bucket, buffer):
            nonlocal told
            begun = time.perf_counter()
            tell(bucket, buffer)
            told += time.perf_counter() - begun

        leader.launch = timed_tell
    runner.launch, runner.read = timed_launch, timed_read
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS)
    requests = [Request(id=str(n), prompt=tuple(range(8)), params=params) for n in range(STREAMS)]
    begun, before = time.perf_counter(), engine.stats.steps
    list(engine.generate(requests))
    spent, steps = time.perf_counter() - begun, engine.stats.steps - before
    return {
        "ms a step": 1e3 * spent / steps,
        "share without a step in flight": idle / spent,
        "us a step to tell the follower": 1e6 * told / steps,
    }


if __name__ == "__main__":
    main()
