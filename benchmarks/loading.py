"""Loading a folder of safetensors: seconds and memory, beside reading its files once and one copy in memory.

`python -m benchmarks.loading` writes folders of random weights below `build/bench`, 2 to 3 GB in shards of
500 MB, in bf16 and in f32. Each load runs in a process of its own with the environment of an engine, in turns
with the two yardsticks: warm, with all files in the page cache, and cold, after the kernel was asked to drop
them. The last line is JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from distaff.checkpoints.names import HUGGINGFACE
from distaff.model.config import ModelConfig
from distaff.model.parameters import parameter_shapes
from distaff.server.process.system import engine_environment

from .weights import FOLDER, config_sizes

LAYERS = {"bfloat16": 14, "float32": 8}
SHARD = 500 << 20
BLOCK = 8 << 20
TYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


def config_of(layers: int) -> ModelConfig:
    """A Llama as wide as one of 1 B parameters."""
    return ModelConfig(
        vocabulary=32000, layers=layers, width=2048, feed_forward=8192, heads=32, kv_heads=8, head_size=64,
        context=2048,
    )  # fmt: skip


def folder_of(kind: str) -> Path:
    """The folder with weights of a type, written unless it is there."""
    folder = FOLDER / f"random-{kind}"
    if not (folder / "model.safetensors.index.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        config = config_of(LAYERS[kind])
        sizes = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": kind}
        (folder / "config.json").write_text(json.dumps(sizes | config_sizes(config)))
        placement = {}
        for number, part in enumerate(_shards(config, TYPES[kind])):
            file = f"model-{number:05d}.safetensors"
            save_file(part, folder / file, {"format": "pt"})
            placement |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": placement}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _shards(config: ModelConfig, dtype: np.dtype) -> Iterator[dict[str, np.ndarray]]:
    """The tensors of each file; those of one shape are equal."""
    generator = np.random.default_rng(1)
    made: dict[tuple[int, ...], np.ndarray] = {}
    part: dict[str, np.ndarray] = {}
    for name, shape in parameter_shapes(config).items():
        layer, inner = name.split(".", 2)[1:] if name.startswith("layers.") else ("", name)
        stored = shape[::-1] if name != "embed" else shape
        if stored not in made:
            made[stored] = (generator.standard_normal(stored, np.float32) * 0.02).astype(dtype)
        part[HUGGINGFACE[inner].format(layer=layer)] = made[stored]
        if sum(values.nbytes for values in part.values()) > SHARD:
            yield part
            part = {}
    if part:
        yield part


def read_once(folder: Path) -> float:
    """Seconds to read all weights into one small buffer."""
    buffer = bytearray(BLOCK)
    started = time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started


def copy_once(nbytes: int) -> None:
    """Fills so many bytes of new memory with copies of a block; prints the seconds and processor seconds."""
    source = np.ones(32 * BLOCK, np.uint8)
    busy, started = time.process_time(), time.perf_counter()
    copy = np.empty(nbytes, np.uint8)
    for first in range(0, nbytes, source.size):
        part = copy[first : first + source.size]
        part[...] = source[: part.size]
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    print(json.dumps({"copy": seconds, "copy busy": busy}))


def drop(folder: Path) -> None:
    """Asks the kernel to forget the files' pages."""
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(folder: str, dtype: str) -> None:
    """Loads a folder's weights as an engine does.

    Prints seconds, processor seconds, bytes of weights, and the peak of resident memory beyond them.
    """
    import jax

    from distaff.checkpoints import load_parameters, open_checkpoint

    jax.block_until_ready(jax.numpy.zeros(1))
    before, busy, started = _peak(), time.process_time(), time.perf_counter()
    parameters = load_parameters(open_checkpoint(Path(folder)), np.dtype(dtype))
    jax.block_until_ready(parameters)
    found = {"seconds": time.perf_counter() - started, "busy": time.process_time() - busy}
    found["bytes"] = sum(values.nbytes for values in parameters.values())
    print(json.dumps(found | {"beyond": _peak() - before - found["bytes"]}))


def _peak() -> int:
    """The most bytes that this process has had resident; unlike `getrusage`, without those of its parent."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _in_process(call: str) -> dict[str, float]:
    """What a call of this module prints, in a process with the environment of an engine."""
    command = [sys.executable, "-c", f"from benchmarks.loading import *; {call}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=engine_environment())
    return json.loads(done.stdout.splitlines()[-1])


def turn(folder: Path, cold: bool) -> dict[str, float]:
    """One turn: reading once, loading as float32, one copy."""
    if cold:
        drop(folder)
    read = read_once(folder)
    if cold:
        drop(folder)
    found = _in_process(f"load({str(folder)!r}, 'float32')")
    return found | {"read": read} | _in_process(f"copy_once({int(found['bytes'])})")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=list(LAYERS), choices=LAYERS)
    arguments = parser.parse_args()
    results = {}
    for kind in arguments.kinds:
        folder = folder_of(kind)
        read_once(folder)
        for state in ("warm", "cold"):
            turns = [turn(folder, state == "cold") for _ in range(arguments.turns)]
            found = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
            print(f"{kind} {state}: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()))
            results[f"{kind} {state}"] = found
    print(json.dumps(results))


if __name__ == "__main__":
    main()
