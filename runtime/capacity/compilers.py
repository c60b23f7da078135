"""The compilers for devices that are not here: libtpu for TPUs, XLA's plugin for CUDA and ptxas for GPUs.

A compiler needs only a description of the devices. libtpu has its own; a GPU is described by the figures
below. On a GPU that is not here nothing can be timed, so XLA does not tune: it takes its own products with
default tiles, where a machine with the GPU may take those of cuBLAS.
"""

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh

from ...model.sharding import AXIS
from .chips import Chip, Topology

_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
"""libtpu contacts no metadata server, allows another copy of itself on the host, and logs nothing."""

_CUDA_ENVIRONMENT = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
"""JAX does not look for the libraries that a GPU needs to run, and XLA logs nothing. Both are read when JAX
looks for devices."""

_GPUS: dict[str, dict[str, Any]] = {
    "h100": dict(capability=(9, 0), units=132, lanes=128, threads=2048, clock=1.98, l2=50, shared=228),
    "a100": dict(capability=(8, 0), units=108, lanes=64, threads=2048, clock=1.41, l2=40, shared=164),
    "l4": dict(capability=(8, 9), units=58, lanes=128, threads=1536, clock=2.04, l2=48, shared=100),
}
"""Compute capability, multiprocessors, each one's f32 lanes and threads, GHz, MiB of the second cache, KiB of
a multiprocessor's shared memory: NVIDIA's data sheets; CUDA programming guide, "Compute Capabilities"."""


def can_compile(chip: Chip) -> bool:
    """Whether the compiler for this chip is installed."""
    if chip.platform == "gpu":
        plugin = importlib.util.find_spec("jax_plugins")
        found = plugin is not None and importlib.util.find_spec("jax_plugins.xla_cuda13") is not None
        return found and chip.name in _GPUS and _cuda_folder() is not None
    return chip.platform == "tpu" and importlib.util.find_spec("libtpu") is not None


def compiler_of(chip: Chip) -> str:
    """The name and the version of a chip's compiler."""
    package = "libtpu" if chip.platform == "tpu" else "jax-cuda13-plugin"
    return f"{package} {version(package)}"


def described_mesh(chip: Chip, topology: Topology) -> Mesh:
    """The devices of a topology, as the compiler describes them, in one row."""
    devices = _described_tpus(topology) if chip.platform == "tpu" else _described_gpus(chip, topology)
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _described_tpus(topology: Topology) -> list[Any]:
    for name, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": (1, 1, 1)} if topology.size == 1 else {}
    with _own_signals():
        return topologies.get_topology_desc(platform="tpu", topology_name=str(topology), **options).devices


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restores the handler of SIGTERM: libtpu sets one that prints a stack trace when it is loaded."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _described_gpus(chip: Chip, topology: Topology) -> list[Any]:
    for name, value in _CUDA_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name=chip.name,
        target_config=_target_config(chip),
        topology=f"1x1x{topology.size}",
    )
    return described.devices


def _target_config(chip: Chip) -> str:
    """The GPU as XLA's `GpuTargetConfigProto`, in text."""
    gpu = _GPUS[chip.name]
    major, minor = gpu["capability"]
    return f"""
        platform_name: "CUDA"
        device_description_str: "{chip.kind}"
        runtime_version {{ major: 13 minor: 0 patch: 0 }}
        dnn_version_info {{ major: 9 minor: 12 }}
        gpu_device_info {{
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          core_count: {gpu["units"]} fpus_per_core: {gpu["lanes"]} clock_rate_ghz: {gpu["clock"]}
          device_memory_size: {int(chip.memory)} memory_bandwidth: {int(chip.bandwidth)}
          l2_cache_size: {gpu["l2"] << 20} shared_memory_per_core: {gpu["shared"] << 10}
          shared_memory_per_block: {48 << 10} shared_memory_per_block_optin: {(gpu["shared"] - 1) << 10}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {gpu["threads"]}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        }}"""


def compile_absent(lowered: jax.stages.Lowered, chip: Chip) -> jax.stages.Compiled:
    """Compiles a step for a chip that need not exist here.

    Raises:
      jax.errors.JaxRuntimeError: the compiled step does not fit into the device's memory.
    """
    with _uncached():
        return lowered.compile(compiler_options=compiler_options(chip))


def compiler_options(chip: Chip) -> dict[str, str | bool] | None:
    """XLA's options for a chip that is not here."""
    if chip.platform != "gpu":
        return None
    return {"xla_gpu_cuda_data_dir": str(_cuda_folder()), "xla_gpu_autotune_level": "0"}


def _cuda_folder() -> Path | None:
    """The folder in which pip has installed ptxas and the device library; None without."""
    folders = (Path(path) / "nvidia" / "cu13" for path in sys.path)
    return next((folder for folder in folders if (folder / "bin" / "ptxas").exists()), None)


@contextmanager
def _uncached() -> Iterator[None]:
    """Turns JAX's cache off, because it could not load programs for devices that are not here."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()
