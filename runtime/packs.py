"""Packs: compiled steps that travel. One start compiles them into a folder, and other starts load them.

A pack is a folder of programs as JAX keeps them, and a manifest of what they were compiled for. JAX finds a
program by a key over its text, versions, flags and devices, so a program that does not fit is never loaded.
The manifest adds what a key cannot: the reason why a pack does not fit, in words, the size of the KV pool,
and a digest of every file.

The one idea: a program is machine code that this process runs. So a pack is used only where an operator names
it, only if nobody else can have changed it, and only as a whole. JAX's format is a number and XLA's own
serialization, compressed; it has no pickles. Nothing is ever written to a pack that is in use.
"""

import hashlib
import logging
import os
import shutil
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import msgspec
from jax.experimental.compilation_cache import compilation_cache

from ..model.errors import ConfigError

log = logging.getLogger(__name__)

MANIFEST_FILE = "pack.json"
PROGRAMS_FOLDER = "programs"
_FORMAT = 1
_NEVER_SECONDS = 1e9
"""JAX keeps programs that took longer to compile; this is none of them."""
_LONGEST_VALUE = 80
_REQUESTED = "/jax/compilation_cache/compile_requests_use_cache"
_FOUND = "/jax/compilation_cache/cache_hits"

Facts = Mapping[str, str]
"""What decides the programs, under names that an operator knows."""


class _FileRecord(msgspec.Struct, frozen=True):
    """A file's length in bytes and SHA-256."""

    size: int
    sha256: str


class _Manifest(msgspec.Struct, frozen=True):
    """The contents of `pack.json`: the facts, the pages of the KV pool, and every program's file by name."""

    format: int
    facts: dict[str, str]
    pages: int
    files: dict[str, _FileRecord]


class _Unfit(Exception):
    """A pack cannot be used; the message says why."""


class Pack:
    """A pack that fits and is whole.

    Attributes:
      path: its folder. pages: of the KV pool that its steps are compiled for.
      requested, found: how many programs JAX has needed since `use`, and how many of them it has loaded.
    """

    def __init__(self, path: Path, pages: int) -> None:
        self.path, self.pages = path, pages
        self.requested = self.found = 0
        self._lock = threading.Lock()

    def use(self) -> None:
        """Makes JAX load programs from here from now on; others are compiled, and kept nowhere."""
        _keep_in(self.path / PROGRAMS_FOLDER, least_seconds=_NEVER_SECONDS)
        jax.monitoring.register_event_listener(self._count)

    def report(self) -> None:
        """Logs whether all programs so far were here."""
        if missing := self.requested - self.found:
            log.warning(
                "the pack %s lacks %d of %d programs; make it again", self.path, missing, self.requested
            )
        else:
            log.info("all %d programs so far came from the pack", self.requested)

    def _count(self, event: str, **details: str | int) -> None:
        with self._lock:
            self.requested += event == _REQUESTED
            self.found += event == _FOUND


def open_pack(path: Path, facts: Facts, pages: int | None = None) -> Pack | None:
    """Checks a pack; None, with one warning in the log, if it is damaged, unsafe, or for something else.

    Args:
      facts: of this start. pages: of the KV pool, if the operator has set them.
    """
    try:
        manifest = _read_manifest(path)
        _check_facts(manifest, facts, pages)
        _check_files(path, manifest)
    except (_Unfit, OSError) as reason:
        log.warning("the pack %s is not used, so steps are compiled: %s", path, reason)
        return None
    size = sum(record.size for record in manifest.files.values())
    log.info("the pack %s has %d compiled programs, %.1f MB", path, len(manifest.files), size / 1e6)
    return Pack(path, manifest.pages)


class PackWriter:
    """Writes a pack: `begin` before anything is compiled, `finish` when everything is.

    It has the name `DST.partial` until it is complete.
    """

    def __init__(self, destination: Path) -> None:
        """Raises ConfigError if the destination exists, or OSError if its parent cannot be written to."""
        if destination.exists():
            raise ConfigError(f"{destination} exists; expected the name of a new folder")
        self._destination = destination
        self._partial = destination.with_name(destination.name + ".partial")
        self._facts: Facts = {}
        shutil.rmtree(self._partial, ignore_errors=True)
        (self._partial / PROGRAMS_FOLDER).mkdir(parents=True)

    def begin(self, facts: Facts) -> None:
        """Makes JAX keep everything that it compiles from now on in this pack."""
        self._facts = facts
        _keep_in(self._partial / PROGRAMS_FOLDER, least_seconds=0)

    def finish(self, pages: int) -> int:
        """Completes the pack for a KV pool of so many pages; returns the number of programs."""
        programs = self._partial / PROGRAMS_FOLDER
        files = {name: _record(programs / name) for name in sorted(os.listdir(programs))}
        manifest = _Manifest(_FORMAT, dict(self._facts), pages, files)
        path = self._partial / MANIFEST_FILE
        path.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
        for file in _parts(self._partial, manifest):
            file.chmod(0o755 if file.is_dir() else 0o644)  # whatever the umask: see `_check_owner`
            _sync(file)
        self._partial.rename(self._destination)
        _sync(self._destination.parent)
        return len(files)


def _keep_in(folder: Path, least_seconds: float) -> None:
    """Makes JAX read programs from a folder, and keep there those that take as long as this to compile."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # XLA's own caches would lie in the same folder, and its path would be part of each program's key.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    compilation_cache.reset_cache()  # JAX may already have opened another folder


def _read_manifest(path: Path) -> _Manifest:
    for part in (path, path / PROGRAMS_FOLDER, path / MANIFEST_FILE):
        _check_owner(part)
    try:
        manifest = msgspec.json.decode((path / MANIFEST_FILE).read_bytes(), type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _Unfit(f"{path / MANIFEST_FILE} is damaged ({error})") from None
    if manifest.format != _FORMAT:
        raise _Unfit(f"its format is {manifest.format}; expected {_FORMAT}")
    return manifest


def _check_facts(manifest: _Manifest, facts: Facts, pages: int | None) -> None:
    mine = {**facts, "the pages of the KV pool": str(manifest.pages if pages is None else pages)}
    theirs = {**manifest.facts, "the pages of the KV pool": str(manifest.pages)}
    names = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if names:
        raise _Unfit("; ".join(_difference(name, theirs.get(name), mine.get(name)) for name in names))


def _difference(name: str, theirs: str | None, mine: str | None) -> str:
    if max(len(str(theirs)), len(str(mine))) > _LONGEST_VALUE:
        return f"{name} is another one"
    return f"{name} is {mine!r}, in the pack {theirs!r}"


def _check_files(path: Path, manifest: _Manifest) -> None:
    """Checks that the programs are exactly those of the manifest."""
    programs = path / PROGRAMS_FOLDER
    if different := set(os.listdir(programs)) ^ manifest.files.keys():
        raise _Unfit(f"{programs / min(different)} is missing, or not listed in {MANIFEST_FILE}")
    for name, record in manifest.files.items():
        _check_owner(programs / name)
        found = _record(programs / name)
        if found != record:
            raise _Unfit(
                f"{programs / name} is damaged: {found.size} bytes; expected {record.size}, or others"
            )


def _check_owner(path: Path) -> None:
    """Refuses what another user owns or can write to, because that user could put any program there."""
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise _Unfit(f"{path} belongs to user {status.st_uid}; expected this user or root")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _Unfit(f"other users can change {path}; expected that none can (chmod -R go-w)")


def _record(path: Path) -> _FileRecord:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _FileRecord(path.stat().st_size, digest)


def _parts(path: Path, manifest: _Manifest) -> Iterator[Path]:
    """Everything in a pack, the folders last."""
    yield from (path / PROGRAMS_FOLDER / name for name in manifest.files)
    yield from (path / MANIFEST_FILE, path / PROGRAMS_FOLDER, path)


def _sync(path: Path) -> None:
    """Makes a file or the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
