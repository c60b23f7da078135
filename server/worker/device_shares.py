"""The devices of an engine process when several share a host: replica i of R owns the i-th share.

GPUs and TPU chips are assigned by environment variables that their runtimes read once, cores by affinity, all
before jax is imported. For a single engine nothing changes. jax itself checks that the devices exist.

Sources: the CUDA programming guide for `CUDA_VISIBLE_DEVICES`. For TPUs libtpu's variables as JAX issue 14977
and Ray's TPU accelerator manager use them: processes that do not communicate have process bounds of 1,1,1 and
the box of chips that each one sees; libtpu's lock, which allows one process per host, is disabled.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...model.errors import ConfigError

_BOXES = {4: "2,2,1", 8: "2,4,1"}
"""The layout of this many neighbouring chips on a TPU host; fewer form a row."""
_CPUS = Path("/sys/devices/system/cpu")

_GOOGLE = "0x1ae0"
_LEFT_BY_JAX = {"TPU_SKIP_MDS_QUERY", "TPU_LIBRARY_PATH"}
"""Variables that importing JAX sets for itself and its children, with or without a TPU."""
_NO_ACCELERATORS = ("0x01", "0x02")
"""Other PCI device classes by Google: storage and network, also on hosts without a TPU."""


def hide_absent_tpu() -> None:
    """Prevents JAX from loading libtpu on a host without a TPU. Call it before jax is imported.

    Otherwise JAX loads libtpu to look for TPUs, which prints many warnings. Nothing is hidden if the operator
    names platforms, or if there is any sign of a TPU.
    """
    if "JAX_PLATFORMS" not in os.environ and not may_have_tpu(os.environ):
        # In Python, None in `sys.modules` makes the import raise ImportError.
        sys.modules["libtpu"] = None  # type: ignore[assignment]  # the stub lacks this case


def may_have_tpu(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether there are device files or a PCI function of a TPU, or a variable for its runtime.

    JAX's own start-up checks the PCI ids; the device files belong to libtpu's drivers. In a container only
    one of the two may be visible.
    """
    names = environment.keys() - _LEFT_BY_JAX
    hinted = any(name.startswith(("TPU_", "LIBTPU_", "JAX_FORCE_TPU")) for name in names)
    files = [*root.glob("dev/accel[0-9]*"), *root.glob("dev/vfio/[0-9]*")]
    functions = root.glob("sys/bus/pci/devices/*")
    return hinted or bool(files) or any(_is_accelerator_of_google(function) for function in functions)


def _is_accelerator_of_google(function: Path) -> bool:
    try:
        vendor, kind = ((function / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == _GOOGLE and not kind.startswith(_NO_ACCELERATORS)


def claim_devices(replica: int, replicas: int, each: int = 1) -> None:
    """Restricts this process to the devices of one replica: `each` accelerators and a share of the cores.

    Raises:
      ConfigError: the operator's list of devices is too short.
    """
    if replicas == 1:
        return
    os.environ.update(device_variables(replica, replicas, each, os.environ))
    if sys.platform == "linux":
        os.sched_setaffinity(0, share_of_cores(replica, replicas, _neighbours(os.sched_getaffinity(0))))


def device_variables(replica: int, replicas: int, each: int, given: Mapping[str, str]) -> dict[str, str]:
    """The variables to set for one replica, given an environment that may already list devices.

    Raises:
      ConfigError: a list in `given` has fewer devices than all replicas need.
    """
    gpus = _share("CUDA_VISIBLE_DEVICES", replica, replicas, each, given)
    chips = _share("TPU_VISIBLE_CHIPS", replica, replicas, each, given)
    return {
        "CUDA_VISIBLE_DEVICES": gpus,
        "TPU_VISIBLE_CHIPS": chips,
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": _BOXES.get(each, f"1,{each},1"),
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def _share(name: str, replica: int, replicas: int, each: int, given: Mapping[str, str]) -> str:
    """The replica's part of the list; a list that hides every device (empty, or -1) is unchanged."""
    needed = replicas * each
    named = given[name].split(",") if name in given else [str(number) for number in range(needed)]
    if named[0].strip() in ("", "-1"):
        return given[name]
    if len(named) < needed:
        raise ConfigError(
            f"{name} is {given[name]!r}; expected at least {needed} devices for {replicas} replicas of {each}"
        )
    return ",".join(named[replica * each : (replica + 1) * each])


def share_of_cores(replica: int, replicas: int, cores: Sequence[int]) -> set[int]:
    """The cores of one replica: equal shares, disjoint unless there are too few cores."""
    begin, end = (len(cores) * number // replicas for number in (replica, replica + 1))
    return set(cores[begin:end]) or {cores[replica % len(cores)]}


def _neighbours(cores: set[int]) -> list[int]:
    """The cores ordered so that threads of one core, and cores of one socket, are adjacent."""
    levels = ("physical_package_id", "core_id")
    return sorted(cores, key=lambda core: ([_place(core, level) for level in levels], core))


def _place(core: int, name: str) -> int:
    try:
        return int((_CPUS / f"cpu{core}" / "topology" / name).read_text())
    except (OSError, ValueError):
        return 0
