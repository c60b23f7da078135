"""What the engine process finds out about its machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distaff.server.process.system import engine_environment, usable_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "99900000 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_cores_follow_the_control_groups_quota(tmp_path: Path, files: dict[str, str], cores: int | None):
    unlimited = usable_cores(tmp_path / "none")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == (cores or unlimited)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities are a process's, not a thread's")
@pytest.mark.parametrize(("before", "leads"), [(0, True), (5, False), (15, True)])
def test_all_threads_leave_the_processors_to_others(before: int, leads: bool):
    """Those that run already and those that they start, also where the operator made the server nice; and the
    session, if it is the process's own."""
    code = f"""
import os, threading
from pathlib import Path
from distaff.server.process.system import lower_priority
os.nice({before})
done, nices = threading.Event(), []
def look():
    nices.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
early = threading.Thread(target=lambda: (done.wait(), look()))
early.start()
lower_priority(os.getpid(), 10)
late = threading.Thread(target=look)
late.start()
done.set()
early.join(), late.join(), look()
group = Path("/proc/self/autogroup")
print(*nices, *(group.read_text().split()[-1:] if group.exists() else ()))"""
    command, group = [sys.executable, "-c", code], Path("/proc/self/autogroup")
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=leads)
    base = os.getpriority(os.PRIO_PROCESS, 0)
    session = (["10"] if leads else group.read_text().split()[-1:]) if group.exists() else []
    assert done.stdout.split() == [str(min(base + before + 10, 19))] * 3 + session


def test_processes_that_share_a_quota_share_its_cores(tmp_path: Path):
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert usable_cores(tmp_path, sharing=2) == 1
    assert usable_cores(tmp_path, sharing=9) == 1
    assert usable_cores(tmp_path / "none", sharing=2) == usable_cores(tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "fraction"),
    [
        ({}, "0.95"),
        ({"XLA_CLIENT_MEM_FRACTION": "0.5"}, "0.5"),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, None),
    ],
)
def test_most_of_a_gpus_memory_is_used_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], fraction: str | None
):
    """By either of JAX's names; JAX refuses both together."""
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    environment = engine_environment()
    assert environment.get("XLA_CLIENT_MEM_FRACTION") == fraction and given.items() <= environment.items()
