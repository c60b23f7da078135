"""The content of a keys file: on each line a key, or a key and its settings (`key_settings.py`).

Contains no file and no HTTP: `server/keys.py` reads the file and looks keys up. Only digests of keys leave
this module, and errors name the line and the setting, never the key.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from ...model.errors import DistaffError
from .key_settings import KeySettings, SettingRefused, combined, read_settings

SHORTEST_KEY = 8
ALL = "*"
"""In place of a key: the settings behind it are those of all keys that do not set them themselves."""


class KeysRefused(DistaffError):
    """An invalid key or key file. The message contains the location, never the key."""


@dataclass(frozen=True, slots=True)
class FileKeys:
    """The digests and settings of a file's keys. `others`: the settings of keys that are not in it."""

    keys: dict[bytes, KeySettings]
    others: KeySettings


def parse_keys(content: bytes, name: str) -> FileKeys:
    """The keys in the content of the file `name`. Raises KeysRefused."""
    own: dict[bytes, dict[str, object]] = {}
    common: dict[str, object] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        text = line.decode("ascii", "replace")
        if not text.strip() or text.startswith("#"):
            continue
        key, *words = text.rstrip(" ").split(" ")
        place = f"line {number} of {name}"
        values = _settings_of(filter(None, words), place)
        if key == ALL:
            common = _common(values, place)
        else:
            own[checked_digest(key, place)] = values
    if not own:
        raise KeysRefused(f"{name} holds no key")
    keys = {digest: combined(common, values) for digest, values in own.items()}
    return FileKeys(keys, combined(common, {}))


def _settings_of(words: Iterable[str], place: str) -> dict[str, object]:
    words = list(words)
    if not all(map(is_plain, words)):
        raise KeysRefused(f"{place} has a character that is not visible ASCII")
    try:
        return read_settings(words)
    except SettingRefused as error:
        raise KeysRefused(f"{place}: {error}") from None


def _common(values: dict[str, object], place: str) -> dict[str, object]:
    if "name" in values:
        raise KeysRefused(f"{place} names all keys; expected a name behind one key")
    return values


def is_plain(key: str) -> bool:
    """Whether a key consists of visible ASCII, which a header can carry."""
    return key.isascii() and key.isprintable() and " " not in key


def checked_digest(key: str, place: str) -> bytes:
    """The digest of a key. Raises KeysRefused with the place of an invalid one."""
    if not is_plain(key):
        raise KeysRefused(f"{place} has a character that is not visible ASCII")
    if len(key) < SHORTEST_KEY:
        raise KeysRefused(f"{place} is shorter than {SHORTEST_KEY} characters")
    return digest_of(key)


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
