"""Receives an uploaded file: to the disk as it arrives, whatever its size, and then out of its form.

Knows forms and limits, not what is in the file. What an upload may need is reserved before its first byte, so
that any number of uploads at once stays within the limit of the folder.
"""

import asyncio
import mmap
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from sanic.exceptions import RequestTimeout

from ..batches.service import Batches
from ..errors import ApiError, BadRequest
from ..protocol.fields import missing, unknown, unsupported, wrong_value
from ..protocol.multipart import Part, boundary_of, parts_of
from .context import ApiRequest
from .read_request import note_unknown

_FORM_BYTES = 64 * 1024
"""What a body may have beside the file."""
_SLOWEST = 64 * 1024
"""An upload must arrive with so many bytes a second on average, beyond the time for any body."""
_LONGEST_NAME = 255


@asynccontextmanager
async def received(request: ApiRequest, batches: Batches) -> AsyncIterator[tuple[str, Path]]:
    """The name of the uploaded file, and its content in a temporary file, which may be moved.

    Raises:
      BadRequest: an invalid form, or no room. ApiError, a 413: too large. RequestTimeout: too slow.
    """
    boundary = boundary_of(request.headers.getone("content-type", None))
    most = batches.limits.most_file_bytes + _FORM_BYTES
    announced = cast(Any, request.stream).request_bytes or most  # chunks announce nothing
    if announced > most:
        raise _too_large(batches)
    body = batches.store.uploads / secrets.token_hex(16)
    content = body.with_suffix(".content")
    with batches.space(announced):
        try:
            await _write(request, body, most, batches)
            part = await asyncio.to_thread(_take, body, content, boundary, request)
            if content.stat().st_size > batches.limits.most_file_bytes:
                raise _too_large(batches)
            yield _plain_name(part.filename or ""), content
        finally:
            body.unlink(missing_ok=True)
            content.unlink(missing_ok=True)


async def _write(request: ApiRequest, body: Path, most: int, batches: Batches) -> None:
    """Writes the body of a request to a file."""
    with open(body, "wb") as file:
        async for data in _pieces(request):
            if file.tell() + len(data) > most:
                raise _too_large(batches)
            await asyncio.to_thread(file.write, data)


async def _pieces(request: ApiRequest) -> AsyncIterator[bytes]:
    """The pieces of a body, which may take longer the larger it is."""
    deadline = asyncio.get_running_loop().time() + request.app.ctx.settings.body_seconds
    pieces = aiter(cast(Any, request.stream))
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                data = await anext(pieces, None)
        except TimeoutError:
            raise RequestTimeout from None
        if data is None:
            return
        deadline += len(data) / _SLOWEST
        yield data


def _take(body: Path, content: Path, boundary: bytes, request: ApiRequest) -> Part:
    """Writes the content of the file in a form to a file of its own. Raises BadRequest."""
    if not body.stat().st_size:
        raise missing("file")
    with open(body, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        part = _file_part(mapped, parts_of(mapped, boundary), request)
        with open(content, "wb") as target:
            _copy(file.fileno(), target.fileno(), part.start, part.end)
    return part


def _copy(source: int, target: int, start: int, end: int) -> None:
    """Copies a range of a file."""
    while start < end:
        start += os.sendfile(target, source, start, end - start)


def _file_part(body: mmap.mmap, parts: list[Part], request: ApiRequest) -> Part:
    """The part with the file; checks the fields beside it. Raises BadRequest."""
    named = {part.name: part for part in parts}
    strict = request.app.ctx.settings.flags.strict
    others = tuple(name for name in named if name not in ("file", "purpose"))
    for name in others:
        if name.startswith("expires_after"):
            raise unsupported("expires_after")
        if strict:
            raise BadRequest(*unknown(name))
    note_unknown(request.app.ctx, others)
    for name in ("purpose", "file"):
        if name not in named:
            raise missing(name)
    start, end = named["purpose"].start, named["purpose"].end
    purpose = body[start : min(end, start + _LONGEST_NAME)].decode(errors="replace")
    if purpose != "batch":
        error = wrong_value("purpose", purpose, ("batch",))
        raise BadRequest(error.message, "purpose", error.code)
    if named["file"].filename is None:
        raise BadRequest(
            "Invalid 'file': expected a file with a name, but got a field.", "file", "invalid_type"
        )
    if named["file"].start == named["file"].end:
        raise BadRequest("Invalid 'file': the file is empty.", "file", "empty_file")
    return named["file"]


def _plain_name(name: str) -> str:
    """The last part of a client's path, without what is not printable; it is only shown."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(each for each in last if each.isprintable())[:_LONGEST_NAME] or "upload.jsonl"


def _too_large(batches: Batches) -> ApiError:
    message = f"The file is too large. Expected at most {batches.limits.most_file_bytes} bytes."
    return ApiError(413, message, param="file", code="request_too_large")
