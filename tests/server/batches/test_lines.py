"""The input of a batch: every line is read, and what is wrong with one never touches another."""

import io
import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from distaff.server.batches import lines
from distaff.server.batches.lines import count_lines, read_lines

GOOD = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}


def read(*written: object, endpoint: str | None = None) -> list[lines.Line]:
    """The lines of a file of these; anything but bytes is written as JSON."""
    raw = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in written]
    return list(read_lines(io.BytesIO(b"\n".join(raw)), endpoint))


def test_a_line_is_a_request_with_its_body_as_it_was_written():
    (line,) = read(
        b'\xef\xbb\xbf {"custom_id": "a", "url": "/v1/embeddings", "body": {"n":  1e2, "x": "\\u00e9"}}\r'
    )
    assert (line.number, line.custom_id, line.url, line.problem) == (1, "a", "/v1/embeddings", None)
    assert line.body == b'{"n":  1e2, "x": "\\u00e9"}'


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"custom_id": ...}, "missing_required_parameter", "Missing required parameter: 'custom_id'."),
        ({"custom_id": 7}, "invalid_type", "expected a string, but got an integer"),
        ({"custom_id": ""}, "invalid_value", "empty string"),
        ({"custom_id": "x" * 513}, "string_above_max_length", "maximum length 512"),
        ({"method": "GET"}, "invalid_value", "Supported values are: 'POST'"),
        (
            {"url": "/v1/nothing"},
            "invalid_url",
            "'/v1/nothing'. Supported values are: '/v1/chat/completions'",
        ),
        ({"url": 1}, "invalid_type", "'url': expected a string"),
        ({"body": [1]}, "invalid_type", "'body': expected an object, but got an array"),
        ({"body": ...}, "missing_required_parameter", "'body'"),
        ({"body": {"stream": True}}, "unsupported_value", "'body.stream': a batch answers no streams"),
    ],
)
def test_a_bad_line_says_what_is_wrong_and_the_next_one_is_read(changes, code, text):
    bad = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    line, good = read(bad, GOOD | {"custom_id": "b"})
    assert line.problem is not None and line.problem.code == code and text in line.problem.message
    assert good.problem is None and good.number == 2


@pytest.mark.parametrize("raw", [b"{", b"[]", b"1", b"\xff", b'{"custom_id": NaN}', b"[" * 100_000])
def test_what_is_not_an_object_is_a_bad_line(raw):
    line, good = read(raw, GOOD)
    assert line.problem is not None and line.problem.code == "invalid_json_line"
    assert good.problem is None


def test_the_second_line_with_a_custom_id_is_refused():
    first, second = read(GOOD, GOOD)
    assert first.problem is None and first.id != second.id
    assert second.problem is not None and second.problem.code == "duplicate_custom_id"
    assert second.custom_id == "a"


def test_a_line_that_is_too_long_is_skipped(monkeypatch):
    monkeypatch.setattr(lines, "MOST_LINE_BYTES", 200)
    line, good = read(GOOD | {"custom_id": "x" * 500}, GOOD)
    assert (
        line.problem is not None
        and line.problem.message == "The line is too long. Expected at most 200 bytes."
    )
    assert good.problem is None and good.number == 2


def test_an_endpoint_allows_no_other_url():
    (line,) = read(GOOD, endpoint="/v1/embeddings")
    assert line.problem is not None and "Supported values are: '/v1/embeddings'" in line.problem.message


@given(st.lists(st.one_of(st.binary(max_size=30), st.just(json.dumps(GOOD).encode()), st.just(b" \t"))))
def test_whatever_is_in_a_file_each_line_comes_once(written):
    """Blank lines do not count; ids differ, and are the same at the next reading."""
    file = b"\n".join(written)
    found = list(read_lines(io.BytesIO(file)))
    expected = [
        n for n, raw in enumerate(file.split(b"\n"), start=1) if raw.removeprefix(b"\xef\xbb\xbf").strip()
    ]
    assert [line.number for line in found] == expected
    assert count_lines(io.BytesIO(file)) == len(found) == len({line.id for line in found})
    assert [line.id for line in read_lines(io.BytesIO(file))] == [line.id for line in found]
