"""Uploads: what clients write is read exactly, and what is malformed is refused."""

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from distaff.server.errors import BadRequest
from distaff.server.protocol.multipart import Part, boundary_of, parts_of

BOUNDARY = b"b0und-ary"
NAMES = st.text(st.characters(exclude_characters='"\\\r\n', exclude_categories=("Cs", "Cc")), min_size=1)


def written(*parts: tuple[str, str | None, bytes]) -> bytes:
    body = b""
    for name, filename, content in parts:
        disposition = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
        head = f"Content-Disposition: {disposition}\r\nContent-Type: text/plain\r\n\r\n"
        body += b"--" + BOUNDARY + b"\r\n" + head.encode() + content + b"\r\n"
    return body + b"--" + BOUNDARY + b"--\r\n"


def read(body: bytes) -> list[tuple[str, str | None, bytes]]:
    return [(part.name, part.filename, body[part.start : part.end]) for part in parts_of(body, BOUNDARY)]


@given(st.lists(st.tuples(NAMES, st.none() | NAMES, st.binary()), min_size=1, max_size=5))
def test_parts_are_read_as_they_were_written(parts):
    assume(all(b"--" + BOUNDARY not in content for _, _, content in parts))
    assert read(written(*parts)) == parts


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_other_body_is_refused_or_read_in_bounds(noise, cut):
    body = written(("file", "a", noise))[:cut] + noise
    try:
        found = parts_of(body, BOUNDARY)
    except BadRequest as error:
        assert error.code == "invalid_multipart"
    else:
        assert all(isinstance(part, Part) and 0 <= part.start <= part.end <= len(body) for part in found)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--other--",
        b"--b0und-ary",
        b"--b0und-ary\r\n\r\n\r\n--b0und-ary--",
        b'--b0und-ary\r\nContent-Disposition: form-data; filename="a"\r\n\r\nx\r\n--b0und-ary--',
        written(*[("a", None, b"")] * 17),
        written(("a" * 5000, None, b"")),
        written(("a", None, b"x"))[:-20],
    ],
)
def test_malformed_bodies_are_refused(body):
    with pytest.raises(BadRequest, match="Invalid multipart body"):
        parts_of(body, BOUNDARY)


def test_the_boundary_is_that_of_the_content_type():
    assert boundary_of("multipart/form-data; boundary=abc") == b"abc"
    assert boundary_of('Multipart/Form-Data; charset=utf-8; boundary="a b:c"') == b"a b:c"
    for other in (None, "", "application/json", "multipart/mixed; boundary=abc"):
        with pytest.raises(BadRequest, match="only accepts 'multipart/form-data'"):
            boundary_of(other)
    for other in ("", "; boundary=", f"; boundary={'x' * 71}", '; boundary="a\u00e9"'):
        with pytest.raises(BadRequest, match="expected a boundary of 1 to 70"):
            boundary_of(f"multipart/form-data{other}")
