"""What the engine process asks of the operating system: to die with its parent, its share of the processors,
and a place behind the web process.

Knows nothing of engines or frames. Linux is served fully; elsewhere each function does what it can.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

import psutil

from .keys import VARIABLE

_PR_SET_PDEATHSIG = 1
_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_VMSTAT = Path("/proc/vmstat")
_TASKS = Path("/proc/self/task")

_NICENESS = 10
"""How much nicer the threads become: each gets a tenth of the time of one that wants the same core too."""


def engine_environment() -> dict[str, str]:
    """The environment to start the engine process in.

    Has the C library ask for huge pages (glibc from 2.35 on; others ignore it): the first touch of a cache of
    3 GB takes 0.4 s with them and 4.6 s without. An operator's own tunables stand. API keys stay here.
    """
    return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | environment_without_keys()


def environment_without_keys() -> dict[str, str]:
    """Our own environment but for the API keys: no process that we start needs them."""
    return {name: value for name, value in os.environ.items() if name != VARIABLE}


def die_with_parent() -> None:
    """Has the kernel kill this process when the thread that spawned it ends. Linux only.

    Elsewhere, and where the kernel refuses, the end of the socketpair tells the same a little later.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def oom_kills() -> int | None:
    """How many processes of this machine the kernel has killed for want of memory since it was booted, also
    for that of a control group (`oom_kill` of /proc/vmstat, Linux 4.13); None where that is not known."""
    try:
        lines = _VMSTAT.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def usable_cores(cgroup: Path | None = None, sharing: int = 1) -> int:
    """Processors that this process may keep busy: those it may run on, or its part of its group's quota.

    Args:
      cgroup: instead of our own group's folder. sharing: processes like this one that live on the quota.
    """
    affinity = psutil.Process().cpu_affinity() if sys.platform == "linux" else None
    cores = len(affinity) if affinity else os.cpu_count() or 1
    quota = _quota(cgroup or _own_cgroup())
    return max(1, min(cores, round(quota / sharing))) if quota else cores


def _own_cgroup() -> Path:
    """The folder of our control group; in a container, and with version 1, the root."""
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
    """Sizes XLA's thread pool by `usable_cores`; to be called before jax is imported.

    XLA counts the machine's processors and does not know quotas; more threads than the quota carries are
    all throttled together. `NPROC` is the variable its thread pool reads; an operator's own value stands.
    """
    cores = usable_cores(sharing=sharing)
    if cores < (os.cpu_count() or 1):
        os.environ.setdefault("NPROC", str(cores))


def lower_priority() -> None:
    """Has every thread of this process, and all that they start, leave the processors to others. Linux only.

    For an engine that computes on the processors: its many threads would otherwise have the web process wait
    for its turn many times for each request, for a few microseconds of work each time. See sched(7).
    """
    if sys.platform == "linux":
        for thread in _TASKS.iterdir():
            number = int(thread.name)
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, number, os.getpriority(os.PRIO_PROCESS, number) + _NICENESS)
