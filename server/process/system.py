"""The engine process's use of the operating system: death with its parent, its share of the processors,
and a lower priority than the web process.

Linux is fully supported; on other systems each function does what is possible.
"""

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import IO

import psutil

from ..keys import VARIABLE

_PR_SET_PDEATHSIG = 1
_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_VMSTAT = Path("/proc/vmstat")


def engine_environment() -> dict[str, str]:
    """The environment for the engine process.

    Makes the C library request huge pages (glibc from 2.35 on; others ignore it): the first touch of a cache
    of 3 GB takes 0.4 s with them and 4.6 s without. numpy's matrix products, which prepare int8 weights, run
    on one thread: OpenBLAS's threads wait in busy loops, and take the cores from everything else that starts.
    JAX takes 95 % of a GPU's memory instead of 75; the rest is for CUDA itself and its libraries. An
    operator's own values are kept. API keys are removed.
    """
    ours = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "OPENBLAS_NUM_THREADS": "1"}
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # its old name; JAX refuses both together
        ours["XLA_CLIENT_MEM_FRACTION"] = "0.95"
    return ours | environment_without_keys()


def environment_without_keys() -> dict[str, str]:
    """This process's environment without the API keys, which no child process needs."""
    return {name: value for name, value in os.environ.items() if name != VARIABLE}


def open_memory_file(name: str) -> IO[bytes]:
    """An empty file without a path, in memory where the system has such files; it ends with its last user."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create(name), "r+b")
    return tempfile.TemporaryFile()


def die_with_parent() -> None:
    """Makes the kernel kill this process when the thread that spawned it ends. Linux only.

    On other systems, or if the kernel refuses, the closed socketpair has the same effect a little later.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def oom_kills() -> int | None:
    """The number of processes that the kernel's out-of-memory killer has ended since boot, also in control
    groups (`oom_kill` of /proc/vmstat, Linux 4.13); None if unknown."""
    try:
        lines = _VMSTAT.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def usable_cores(cgroup: Path | None = None, sharing: int = 1) -> int:
    """The number of processors that this process may use: by its affinity, or its part of the group's quota.

    Args:
      cgroup: the folder of a control group; by default our own. sharing: processes that share the quota.
    """
    affinity = psutil.Process().cpu_affinity() if sys.platform == "linux" else None
    cores = len(affinity) if affinity else os.cpu_count() or 1
    quota = _quota(cgroup or _own_cgroup())
    return max(1, min(cores, round(quota / sharing))) if quota else cores


def _own_cgroup() -> Path:
    """The folder of our control group; the root in a container and with version 1."""
    try:
        line = _MEMBERSHIP.read_text().splitlines()[-1]
    except (OSError, IndexError):
        return _CGROUP
    own = _CGROUP / line.removeprefix("0::/") if line.startswith("0::/") else _CGROUP
    return own if own.is_dir() else _CGROUP


def _quota(cgroup: Path) -> float | None:
    """A group's processors, from version 2's `cpu.max` or version 1's two files; None for no limit."""
    if (cgroup / "cpu.max").exists():
        words = (cgroup / "cpu.max").read_text().split()
    else:
        names = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
        words = [(cgroup / name).read_text().strip() for name in names if (cgroup / name).exists()]
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None
    return int(words[0]) / int(words[1])


def limit_threads(sharing: int = 1) -> None:
    """Sizes XLA's thread pool by `usable_cores`. Call it before jax is imported.

    XLA counts the machine's processors and ignores quotas; more threads than the quota allows are all
    throttled together. `NPROC` is the variable that its thread pool reads; an operator's own value is kept.
    """
    cores = usable_cores(sharing=sharing)
    if cores < (os.cpu_count() or 1):
        os.environ.setdefault("NPROC", str(cores))


def lower_priority(process: int, niceness: int) -> None:
    """Makes all threads of a process nicer by `niceness`, and a session that it leads. Linux only.

    An engine that computes on the processors has many threads, and the web process would otherwise wait for a
    core many times for each request, for a few microseconds of work each time. With autogroups, which most
    distributions turn on, the kernel compares the niceness of threads only within a session, and sessions by
    a niceness of their own; without them, for example in a container, that of all threads. See sched(7).
    """
    if sys.platform != "linux":
        return
    account = Path(f"/proc/{process}")
    for thread in (account / "task").iterdir():
        number = int(thread.name)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, number, os.getpriority(os.PRIO_PROCESS, number) + niceness)
    if os.getsid(process) == process:
        with contextlib.suppress(OSError):  # a kernel without autogroups
            (account / "autogroup").write_text(str(niceness))
