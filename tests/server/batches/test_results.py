"""The file of results: whatever ends its writer, no complete result is lost and no torn one counts."""

import json
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from distaff.server.batches import results
from distaff.server.batches.lines import Line
from distaff.server.batches.results import ResultsFile, ResultsRefused, answered, failed, write_in_order


def result(number: int, status: int = 200) -> results.Result:
    line = Line(number, f"batch_req_{number:032}", f"id {number}")
    return answered(line, status, "req_1", b'{\n "number": %d}' % number)


def test_a_result_is_a_line_as_openai_writes_it():
    assert json.loads(result(1).encode()) == {
        "id": f"batch_req_{1:032}",
        "custom_id": "id 1",
        "response": {"status_code": 200, "request_id": "req_1", "body": {"number": 1}},
        "error": None,
    }
    assert json.loads(failed(Line(1, "batch_req_1"), "code", "text").encode()) == {
        "id": "batch_req_1",
        "custom_id": None,
        "response": None,
        "error": {"code": "code", "message": "text"},
    }


@pytest.mark.parametrize("body", [b"<html>\n</html>", b"\xff", b""])
def test_a_body_that_is_no_json_is_a_string_in_one_line(body):
    encoded = answered(Line(1, "batch_req_1", "a"), 502, "", body).encode()
    assert encoded.count(b"\n") == 1
    assert json.loads(encoded)["response"]["body"] == body.decode(errors="replace")


@given(count=st.integers(0, 5), cut=st.integers(1, 200), rest=st.booleans())
@settings(deadline=None)
def test_a_file_cut_anywhere_keeps_what_is_complete(tmp_path_factory, count, cut, rest):
    """And the next run appends behind it; a loss of power may leave zeros at the end."""
    path = tmp_path_factory.mktemp("cut") / "out.jsonl"
    whole = b"".join(result(number).encode() for number in range(count))
    kept = whole[: max(len(whole) - cut, 0)]
    path.write_bytes(kept + (b"\0" * cut if rest and not kept.endswith(b"\n") else b""))
    complete = kept.count(b"\n")
    file = ResultsFile(path)
    assert list(file.done) == [result(number).id for number in range(complete)]
    file.append(result(99, status=400))
    file.close()
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines == [result(number).encode() for number in range(complete)] + [
        result(99, status=400).encode()
    ]
    again = ResultsFile(path)
    assert list(again.done.values()) == [True] * complete + [False]
    again.close()


@pytest.mark.parametrize(
    "content", [b"some text", b"some text\n", b"{}\n", b'{"custom_id": "a", "body": {}}\n']
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ResultsRefused, match=r"line 1 of .* is not the result"):
        ResultsFile(path)
    assert path.read_bytes() == content


def test_two_writers_are_one_too_many(tmp_path):
    first = ResultsFile(tmp_path / "out.jsonl")
    with pytest.raises(ResultsRefused, match="another process writes it"):
        ResultsFile(tmp_path / "out.jsonl")
    first.close()
    ResultsFile(tmp_path / "out.jsonl").close()


class FullDisk:
    """A file that takes only a few bytes more."""

    def __init__(self, file, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data) -> int:
        if not self._room:
            raise OSError(28, "No space left on device")
        part = self._file.write(data[: self._room])
        self._room -= part
        return part

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_a_full_disk_leaves_no_half_of_a_result(tmp_path):
    path = tmp_path / "out.jsonl"
    file = ResultsFile(path)
    file.append(result(1))
    real, file._file = file._file, FullDisk(file._file, 10)
    with pytest.raises(OSError, match="No space left"):
        file.append(result(2))
    file._file = real
    file.append(result(3))
    file.close()
    assert path.read_bytes() == result(1).encode() + result(3).encode()
    assert result(2).id not in file.done


def test_results_are_synced_once_a_second(tmp_path, monkeypatch):
    now, synced = [0.0], []
    file = ResultsFile(tmp_path / "out.jsonl", lambda: now[0])
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor))
    assert not file.sync_due
    now[0] = 1.0
    assert file.sync_due
    file.sync()
    assert len(synced) == 1 and not file.sync_due
    file.close()


@given(st.permutations(range(6)))
@settings(deadline=None)
def test_results_can_be_sorted_by_their_lines(tmp_path_factory, order):
    path: Path = tmp_path_factory.mktemp("sorted") / "out.jsonl"
    path.write_bytes(b"".join(result(number).encode() for number in order))
    write_in_order(path, [result(number).id for number in range(8)])
    assert path.read_bytes() == b"".join(result(number).encode() for number in range(6))
    assert [each.name for each in path.parent.iterdir()] == ["out.jsonl"]
