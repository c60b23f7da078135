"""What the engine process finds out about its machine."""

from pathlib import Path

import pytest

from distaff.server.system import usable_cores


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


def test_processes_that_share_a_quota_share_its_cores(tmp_path: Path):
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert usable_cores(tmp_path, sharing=2) == 1
    assert usable_cores(tmp_path, sharing=9) == 1
    assert usable_cores(tmp_path / "none", sharing=2) == usable_cores(tmp_path / "none")
