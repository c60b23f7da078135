"""The cost of a mesh with devices in two processes: `python -m benchmarks.lockstep`.

The same random model over two CPU devices, in turns: in one process; in two processes, one of which leads the
other; and in two that plan independently, which reach the same steps because there is one request. The last
two differ only in the control connection. Reports the time of a step, how long the engine's thread launches,
reads and sends to the follower, and the share of the time without a step in flight (none if overlap is kept).
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

TURNS = 3
TOKENS = 96
LED, UNLED = "led", "unled"


def main() -> None:
    """Runs both in turns and prints the medians; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--process", type=int)
    parser.add_argument("--coordinator")
    parser.add_argument("--mode", choices=(LED, UNLED), default=LED)
    arguments = parser.parse_args()
    if arguments.process is not None:
        run(arguments.process, arguments.coordinator, arguments.mode)
        return
    found: dict[str, list[dict[str, float]]] = {"one process": [], LED: [], UNLED: []}
    for _ in range(TURNS):
        found["one process"].append(measured(None))
        for mode in (LED, UNLED):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
            other = started(1, coordinator, mode)
            found[mode].append(measured(coordinator, mode))
            other.communicate(timeout=60)
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    for name, figures in medians.items():
        print(name, ", ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    print(json.dumps(medians))


def started(process: int, coordinator: str | None, mode: str) -> subprocess.Popen[str]:
    """Starts one of the processes."""
    words = [sys.executable, "-m", "benchmarks.lockstep", "--process", str(process), "--mode", mode]
    words += ["--coordinator", coordinator] if coordinator else []
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def measured(coordinator: str | None, mode: str = LED) -> dict[str, float]:
    """The figures that the first or only process reports."""
    out, _ = started(0, coordinator, mode).communicate(timeout=300)
    return json.loads(out.strip().splitlines()[-1])


def end(reason: str, code: int | None) -> None:
    """Ends a process after the other one is lost."""
    print(reason, file=sys.stderr)
    os._exit(1)


def run(process: int, coordinator: str | None, mode: str) -> None:
    """A process: leads and measures, or follows."""
    import jax.numpy as jnp

    from distaff.model.config import ModelConfig
    from distaff.model.sharding import place_all
    from distaff.model.transformer import random_parameters
    from distaff.runtime.cluster.lockstep import Follower, Leader
    from distaff.runtime.device.assembly import assemble
    from distaff.runtime.device.processes import leave
    from distaff.runtime.device.settings import EngineSettings
    from distaff.runtime.devices import claim_mesh
    from distaff.runtime.engine import Engine
    from distaff.runtime.options import Membership

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
    settings = EngineSettings(slots=4, context=256, kv_pages=64)
    member = coordinator and Membership(coordinator=coordinator, process=process, processes=2)
    mesh = claim_mesh("model=2", member or None)
    parameters = place_all(random_parameters(config, 0, jnp.dtype("float32")), config, mesh)
    led = member if mode == LED else None
    if member and led and not member.leads:
        follower = Follower(member, end)
        runner = assemble(config, parameters, settings, mesh)
        runner.warm_up(lambda done, total: None)
        follower.run(runner)
        return
    leader = Leader(led, end) if led else None
    engine = Engine(config, parameters, settings, mesh=mesh, followers=leader)
    engine.warm_up()
    engine.start()
    print(json.dumps(decode(engine, leader)))
    engine.stop()
    if member and not led:
        leave()


def decode(engine: Any, leader: Any) -> dict[str, float]:
    """Decodes a stream and measures the times of launches and reads."""
    from distaff.runtime.request import Request, SamplingParams

    in_flight, idle, since = 0, 0.0, 0.0
    sending = launching = reading = 0.0
    runner = engine._loop.runner
    launch, read = runner.launch, runner.read

    def timed_launch(plan):
        nonlocal in_flight, idle, launching
        begun = time.perf_counter()
        idle += begun - since if since and not in_flight else 0.0
        in_flight += 1
        flight = launch(plan)
        launching += time.perf_counter() - begun
        return flight

    def timed_read(flight):
        nonlocal in_flight, since, reading
        begun = time.perf_counter()
        rows = list(read(flight))
        in_flight, since = in_flight - 1, time.perf_counter()
        reading += since - begun
        return iter(rows)

    if leader:
        send = leader.launch

        def timed_send(bucket, buffer):
            nonlocal sending
            begun = time.perf_counter()
            send(bucket, buffer)
            sending += time.perf_counter() - begun

        leader.launch = timed_send
    runner.launch, runner.read = timed_launch, timed_read
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS)
    begun, before = time.perf_counter(), engine.stats.steps
    list(engine.stream(Request(id="one", prompt=tuple(range(8)), params=params)))
    spent, steps = time.perf_counter() - begun, engine.stats.steps - before
    return {
        "ms a step": 1e3 * spent / steps,
        "of these to launch": 1e3 * launching / steps,
        "to read": 1e3 * reading / steps,
        "share without a step in flight": idle / spent,
        "us a step to send to the follower": 1e6 * sending / steps,
    }


if __name__ == "__main__":
    main()
