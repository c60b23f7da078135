"""A `multipart/form-data` body -> its parts, without a copy of their contents.

Source: RFC 7578 and RFC 2046, 5.1. The body may be a file mapped into memory, so that an upload of any size
needs no memory of its own. Only what clients of the files API send is accepted: few parts, small heads.
"""

import mmap
import re
from dataclasses import dataclass
from email.message import Message

from ..errors import BadRequest

MOST_PARTS = 16
_MOST_HEAD_BYTES = 4096
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER = r'(?:^|[;\s]){}="((?:[^"\\]|\\.)*)"'
_NAME = re.compile(_PARAMETER.format("name"), re.IGNORECASE)
_FILENAME = re.compile(_PARAMETER.format("filename"), re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """One part; its content is `body[start:end]`. `filename` is None for a plain field."""

    name: str
    filename: str | None
    start: int
    end: int


def boundary_of(content_type: str | None) -> bytes:
    """What separates the parts. Raises BadRequest for another content type."""
    message = Message()
    message["content-type"] = content_type or ""
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data":
        raise BadRequest(
            f"Unsupported content type: '{(content_type or '')[:64]}'. This API method only accepts "
            "'multipart/form-data' requests.",
            code="unsupported_content_type",
        )
    if not isinstance(boundary, str) or not _BOUNDARY.fullmatch(boundary):
        raise _malformed("expected a boundary of 1 to 70 characters in the content type")
    return boundary.encode()


def parts_of(body: bytes | mmap.mmap, boundary: bytes) -> list[Part]:
    """The parts of a body.

    Raises:
      BadRequest: it is malformed or incomplete, or has too many parts.
    """
    found: list[Part] = []
    delimiter = b"\r\n--" + boundary
    place = len(delimiter) - 2
    if body[:place] != delimiter[2:]:
        raise _malformed("expected the boundary at the beginning of the body")
    while body[place : place + 2] != b"--":
        if len(found) == MOST_PARTS:
            raise _malformed(f"expected at most {MOST_PARTS} parts")
        head = body.find(b"\r\n", place)
        start = body.find(b"\r\n\r\n", head, head + _MOST_HEAD_BYTES) + 4
        end = body.find(delimiter, start - 2)
        if head != place or start < 4 or end < 0:
            raise _malformed("a part without a head, or the end of the body is missing")
        found.append(_part(body[head + 2 : start - 4].decode(errors="replace"), start, max(start, end)))
        place = end + len(delimiter)
    return found


def _part(head: str, start: int, end: int) -> Part:
    for line in head.split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition" and (name := _NAME.search(value)):
            filename = _FILENAME.search(value)
            return Part(name[1], filename and filename[1], start, end)
    raise _malformed("expected a name in the content disposition of each part")


def _malformed(reason: str) -> BadRequest:
    return BadRequest(f"Invalid multipart body: {reason}.", code="invalid_multipart")
