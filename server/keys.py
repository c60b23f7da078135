"""`Keys`: the accepted API keys, from a file, which may change while the server runs, and the environment.

A line of the file is a key, or a key and its settings (`quotas/key_settings.py`); the key `*` stands for all.

Contains no HTTP: `authorization.py` reads the header and looks up the key here. Only SHA-256 digests of keys
are stored, so that no log, error or dump can contain a key, and comparisons take constant time.
"""

import hmac
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .quotas.key_settings import NO_SETTINGS, KeySettings
from .quotas.keys_file import FileKeys, KeysRefused, checked_digest, digest_of, parse_keys

log = logging.getLogger(__name__)

VARIABLE = "DISTAFF_API_KEYS"
"""The environment variable that holds a server's keys, separated by commas."""

MOST_FILE_BYTES = 256 * 1024
"""The largest size of a key file: each request is compared with every key."""

CHECK_SECONDS = 1.0
"""The interval of checks for a change of the file, and the time for which it must then be unchanged, because
its writer may have written half a key."""

_ID_DIGITS = 8


class Keys:
    """The accepted keys, as digests; at least one."""

    def __init__(
        self,
        keys: Iterable[str] = (),
        file: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Reads the file, if there is one.

        Args:
          keys: accepted as long as the server runs.
          file: further keys, one per line with their settings; read again when it changes.
          clock: seconds. wall: seconds on the clock of the file's times.

        Raises:
          KeysRefused: no key at all, an invalid key, or a file that cannot be read.
        """
        self._fixed = _fixed_keys(keys)
        self._file = file
        self._clock, self._wall = clock, wall
        self._next_check = clock() + CHECK_SECONDS
        self._complaint = ""
        self._accepted: Mapping[bytes, KeySettings] = self._fixed
        self._settings: dict[str, KeySettings] = {}
        self._others = NO_SETTINGS
        self._stamp: tuple[int, ...] = ()
        self._seen: tuple[int, ...] = ()
        if file is not None:
            self._take(*_read(file))
        elif not self._fixed:
            raise KeysRefused(f"{VARIABLE} is set and holds no key")

    def identify(self, key: str) -> str | None:
        """The id of a key, eight hexadecimal digits; None if it is not accepted.

        Checks the file first, at most once a second. Takes constant time for every key.
        """
        self._look_again()
        came = digest_of(key)
        found = None
        for digest in self._accepted:
            if hmac.compare_digest(came, digest):
                found = digest
        return None if found is None else _id(found)

    def settings(self, key_id: str) -> KeySettings:
        """The settings of the key with this id; those of all keys for an id that is no longer accepted."""
        return self._settings.get(key_id, self._others)

    def _look_again(self) -> None:
        """Reads a changed file. An invalid file changes nothing, and is tried again at each check."""
        now = self._clock()
        if self._file is None or now < self._next_check:
            return
        self._next_check = now + CHECK_SECONDS
        try:
            if self._is_new(os.stat(self._file)):
                self._take(*_read(self._file))
                log.info("read %s again; %d keys are accepted", self._file, len(self._accepted))
            self._complaint = ""
        except (OSError, KeysRefused) as error:
            self._complain(_reason(self._file, error))

    def _is_new(self, status: os.stat_result) -> bool:
        """Whether the file has changed, and has then been unchanged for a while.

        Its times show that (the kernel sets `ctime` at every write), so that a key removed an hour ago is
        refused at the next request. If the file's clock is ahead of ours, the file must be unchanged since
        the last check.
        """
        stamp, seen = _stamp(status), self._seen
        self._seen = stamp
        left_alone = self._wall() - status.st_ctime >= CHECK_SECONDS or stamp == seen
        return stamp != self._stamp and left_alone

    def _take(self, from_file: FileKeys, stamp: tuple[int, ...]) -> None:
        fixed = dict.fromkeys(self._fixed, from_file.others)
        self._accepted = fixed | from_file.keys
        self._settings = {_id(digest): settings for digest, settings in self._accepted.items()}
        self._others = from_file.others
        self._stamp = stamp

    def _complain(self, complaint: str) -> None:
        """Logs why the file cannot be used, once until the reason changes."""
        if complaint != self._complaint:
            self._complaint = complaint
            log.error("%s; the keys read before remain valid", complaint)


def configured_keys(file: Path | None, environment: Mapping[str, str]) -> Keys | None:
    """The keys that an operator set; None if neither a file nor the variable is given.

    Raises:
      KeysRefused: the file or the variable holds no key, or an invalid one.
    """
    if file is None and VARIABLE not in environment:
        return None
    return Keys(filter(None, environment.get(VARIABLE, "").split(",")), file)


def _read(file: Path) -> tuple[FileKeys, tuple[int, ...]]:
    """A file's keys, and its stamp from before the read, to detect later changes."""
    try:
        # Opening a pipe without a writer would block the event loop for ever.
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeysRefused(f"{file} is not a regular file")
            content = opened.read(MOST_FILE_BYTES + 1)
            if _stamp(os.fstat(opened.fileno())) != _stamp(status):
                raise KeysRefused(f"{file} changed while it was read; expected an unchanged file")
    except OSError as error:
        raise KeysRefused(_reason(file, error)) from None
    if len(content) > MOST_FILE_BYTES:
        raise KeysRefused(f"{file} is larger than the limit of {MOST_FILE_BYTES} bytes")
    return parse_keys(content, str(file)), _stamp(status)


def _fixed_keys(keys: Iterable[str]) -> dict[bytes, KeySettings]:
    """The digests of the environment's keys, without empty ones."""
    named = ((key, f"key {number} of {VARIABLE}") for number, key in enumerate(keys, start=1))
    return {checked_digest(key, place): NO_SETTINGS for key, place in named if key}


def _id(digest: bytes) -> str:
    return digest.hex()[:_ID_DIGITS]


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """Properties that change when a file is written or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _reason(file: Path, error: Exception) -> str:
    return f"cannot read {file}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
