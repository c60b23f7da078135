"""What the engine process finds out about its machine."""

import stat
from pathlib import Path

import pytest

from distaff.server.system import compilation_folder, processor_digest, usable_cores


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


def test_compiled_programs_are_kept_where_only_we_can_write(tmp_path: Path):
    folder = compilation_folder(tmp_path, "NVIDIA H100 80GB")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.name.endswith(f"nvidia-h100-80gb-{processor_digest()}")
    folder.chmod(0o755)
    assert stat.S_IMODE(compilation_folder(tmp_path, "NVIDIA H100 80GB").stat().st_mode) == 0o700
