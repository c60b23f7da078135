"""The chat page: a client of this API that runs in a browser, as files without a build step.

Reads the files that lie beside this one; `routes/page.py` sends them. The page is one more client: it uses
the documented routes alone, and this package knows none of them. The files are read once, so no request
names a path of the file system.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
PREFIX = "/page/"
"""Where the files are served; index.html is served at the root."""

_INDEX = "index.html"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""The suffixes of the files that are served."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file as it is sent.

    Attributes:
      type: its media type. tag: its entity tag (RFC 9110, 8.8.3), in quotes.
    """

    body: bytes
    type: str
    tag: str


@cache
def page_files() -> dict[str, PageFile]:
    """Every file by its path in the URL."""
    found = sorted(path for path in FOLDER.rglob("*") if path.suffix in _TYPES)
    return {_served_at(path.relative_to(FOLDER).as_posix()): _read(path) for path in found}


def _served_at(name: str) -> str:
    return "/" if name == _INDEX else PREFIX + name


def _read(path: Path) -> PageFile:
    body = path.read_bytes()
    return PageFile(body, _TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:16]}"')
