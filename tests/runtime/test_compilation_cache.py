"""Compiled steps are kept, in a folder of their own."""

import stat
from pathlib import Path

from distaff.runtime.compilation_cache import compilation_folder, processor_digest


def test_compiled_programs_are_kept_where_only_we_can_write(tmp_path: Path):
    folder = compilation_folder(tmp_path, "NVIDIA H100 80GB")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.name.endswith(f"nvidia-h100-80gb-{processor_digest()}")
    folder.chmod(0o755)
    assert stat.S_IMODE(compilation_folder(tmp_path, "NVIDIA H100 80GB").stat().st_mode) == 0o700
