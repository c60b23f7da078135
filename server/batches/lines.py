"""The lines of a batch's input: each a request, or a line with a problem.

The format is OpenAI's: `{"custom_id", "method", "url", "body"}`. `distaff batch` and `/v1/batches` both
read their input here; what is done about a problem is up to them. A line's id is a digest of its number and
its bytes, so the results of an earlier run tell which lines are done, without other records.
"""

import codecs
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec

from ..errors import BadRequest
from ..protocol.body import parse_object
from ..protocol.fields import Fields, shown, wrong_value
from ..protocol.openai.parameters import BATCH_ENDPOINTS

MOST_LINE_BYTES = 8 * 2**20
"""The longest line: as long as the largest body of a request."""

_LONGEST_ID = 512
_BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank.

    Attributes:
      number: its number in the file, from 1; blank lines count. id: of its result.
      custom_id: the client's name for it; None if it has none that can be used.
      url, body: what to request, and the bytes of the JSON to send.
      problem: why it cannot be requested; None if it can.
    """

    number: int
    id: str
    custom_id: str | None = None
    url: str = ""
    body: bytes = b""
    problem: BadRequest | None = None


class _Body(msgspec.Struct):
    body: msgspec.Raw


def read_lines(file: BinaryIO, endpoint: str | None = None) -> Iterator[Line]:
    """The lines of an input file, without blank ones.

    Args:
      file: at its beginning. endpoint: the URL that every line must have; None for any that is supported.
    """
    seen: set[str] = set()
    endpoints = BATCH_ENDPOINTS if endpoint is None else (endpoint,)
    for number, raw in enumerate(_raw_lines(file), start=1):
        if raw:
            yield _read(number, raw, endpoints, seen)


def count_lines(file: BinaryIO) -> int:
    """The number of lines that are not blank."""
    return sum(1 for raw in _raw_lines(file) if raw)


def _raw_lines(file: BinaryIO) -> Iterator[bytes]:
    """Each line without white space around it. Of one that is too long, only the beginning is kept."""
    file.seek(0)
    beginning = codecs.BOM_UTF8
    while raw := file.readline(MOST_LINE_BYTES + 1):
        if len(raw) > MOST_LINE_BYTES:
            rest = raw
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(_BLOCK)
            yield raw
        else:
            yield raw.removeprefix(beginning).strip()
        beginning = b""


def _read(number: int, raw: bytes, endpoints: tuple[str, ...], seen: set[str]) -> Line:
    """A line; `seen`: the custom ids of the lines before it, to which this one's is added."""
    id = "batch_req_" + hashlib.sha256(b"%d:%b" % (number, raw)).hexdigest()[:32]
    custom_id = None
    try:
        fields = Fields(_object(raw))
        custom_id = _custom_id(fields)
        if custom_id in seen:
            raise _duplicate(custom_id)
        seen.add(custom_id)
        url = _checked(fields, endpoints)
        return Line(number, id, custom_id, url, bytes(msgspec.json.decode(raw, type=_Body).body))
    except BadRequest as problem:
        return Line(number, id, custom_id, problem=problem)
    except msgspec.DecodeError:
        return Line(number, id, custom_id, problem=_not_json())


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MOST_LINE_BYTES:
        message = f"The line is too long. Expected at most {MOST_LINE_BYTES} bytes."
        raise BadRequest(message, code="line_too_long")
    try:
        return parse_object(raw, None)
    except BadRequest as error:
        raise _not_json() if error.code is None else error from None


def _not_json() -> BadRequest:
    expected = (
        'Expected a JSON object such as {"custom_id": "1", "method": "POST", "url": "/v1/…", "body": {…}}.'
    )
    return BadRequest(f"The line is not valid JSON. {expected}", code="invalid_json_line")


def _custom_id(fields: Fields) -> str:
    fields.require("custom_id")
    custom_id = fields.string("custom_id", _LONGEST_ID)
    if not custom_id:
        raise BadRequest("Invalid 'custom_id': an empty string.", "custom_id", "invalid_value")
    return custom_id


def _duplicate(custom_id: str) -> BadRequest:
    message = (
        f"Invalid 'custom_id': an earlier line has '{shown(custom_id)}' as well. Expected unique values."
    )
    return BadRequest(message, "custom_id", "duplicate_custom_id")


def _checked(fields: Fields, endpoints: tuple[str, ...]) -> str:
    """The URL of a line; its other fields are checked, except what its route will check."""
    fields.one_of("method", ("POST",))
    url = fields.require("url")
    if url not in endpoints:
        fields.string("url")
        raise BadRequest(str(wrong_value("url", url, endpoints)), "url", "invalid_url")
    fields.require("body")
    body = fields.object("body")
    if body is not None and body.get("stream"):
        message = "Invalid 'body.stream': a batch answers no streams. Expected false."
        raise BadRequest(message, "body.stream", "unsupported_value")
    return url
