"""The folder of compiled steps."""

import errno
import stat
from pathlib import Path

import jax
import pytest

from distaff.runtime.compilation_cache import compilation_folder, keep_compiled, processor_digest


def test_only_this_user_can_access_the_folder(tmp_path: Path):
    folder = compilation_folder(tmp_path, "NVIDIA H100 80GB")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.name.endswith(f"nvidia-h100-80gb-{processor_digest()}")
    folder.chmod(0o755)
    assert stat.S_IMODE(compilation_folder(tmp_path, "NVIDIA H100 80GB").stat().st_mode) == 0o700


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    before = jax.config.jax_compilation_cache_dir
    (tmp_path / "file").touch()
    assert keep_compiled(tmp_path / "file" / "cache", "cpu") is None
    (record,) = caplog.records
    assert record.levelname == "WARNING" and str(tmp_path / "file") in record.getMessage()
    assert jax.config.jax_compilation_cache_dir == before


def test_another_users_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Even if it is writable, because that user could have put any program there."""

    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    assert keep_compiled(tmp_path, "cpu") is None
