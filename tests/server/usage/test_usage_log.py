"""The log of usage: complete lines, in the file that the path names, and no harm without a disk."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from distaff.server.usage import usage_log
from distaff.server.usage.usage_log import UsageLine, UsageLog, UsageLogRefused


def line(number: int) -> UsageLine:
    return UsageLine(
        time=1.0,
        request_id=f"req_{number}",
        key="01234567",
        name="team-a",
        model="m",
        route="/v1/chat/completions",
        priority=0,
        batch=False,
        prompt_tokens=number,
        cached_tokens=0,
        completion_tokens=2,
        device_seconds=0.25,
        page_seconds=1.5,
        queue_seconds=None,
        first_token_seconds=0.1,
        seconds=0.2,
        finish=["stop"],
    )


def numbers(path: Path) -> list[int]:
    return [json.loads(text)["prompt_tokens"] for text in path.read_text().splitlines()]


def written(log: UsageLog, path: Path, expected: list[int]) -> None:
    """Waits until the file has these lines."""
    deadline = time.monotonic() + 10
    while not path.exists() or numbers(path) != expected:
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.005)


def waiting(log: UsageLog, expected: int) -> None:
    """Waits until so many lines are queued."""
    deadline = time.monotonic() + 10
    while log._lines.qsize() != expected:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch):
    monkeypatch.setattr(usage_log, "LOOK_SECONDS", 0.0)


def test_lines_are_appended_and_all_are_written_at_the_end(tmp_path):
    path = tmp_path / "usage"
    for start in (0, 200):
        log = UsageLog(path)
        for number in range(start, start + 200):
            log.write(line(number))
        log.close()
    assert numbers(path) == list(range(400))
    first = json.loads(path.read_text().splitlines()[0])
    assert first["queue_seconds"] is None and first["finish"] == ["stop"] and first["device_seconds"] == 0.25
    assert path.stat().st_mode & 0o007 == 0


def test_a_file_that_is_moved_away_or_truncated_is_followed(tmp_path):
    """As logrotate does, with `create` or `copytruncate`."""
    path, moved = tmp_path / "usage", tmp_path / "usage.1"
    log = UsageLog(path)
    log.write(line(1))
    written(log, path, [1])
    path.rename(moved)
    log.write(line(2))
    written(log, path, [2])
    os.truncate(path, 0)
    log.write(line(3))
    written(log, path, [3])
    log.close()
    assert numbers(moved) == [1]


def test_a_full_disk_loses_lines_and_is_logged_once(tmp_path, monkeypatch, caplog):
    """And a line that was cut off spoils no other."""
    path, room = tmp_path / "usage", 450
    log = UsageLog(path)
    real = os.write

    def write(file: int, data: bytes) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(28, "No space left on device")
        room -= len(data)
        return real(file, data[: len(data) + min(room, 0)])

    monkeypatch.setattr(os, "write", write)
    for number in range(5):
        log.write(line(number))
    log._lines.put(None)
    log._thread.join(10)
    assert [record.getMessage() for record in caplog.records] == [
        f"lines of the usage log {path} are lost: only {450 - len(path.read_text().splitlines()[0]) - 1} of "
        f"{len(path.read_text().splitlines()[0]) + 1} bytes could be written",
        f"4 lines of the usage log {path} were lost",
    ]
    room = 10_000
    again = UsageLog(path)
    again._torn = log._torn
    again.write(line(7))
    again.close()
    whole = [text for text in path.read_text().splitlines() if text.endswith("}")]
    assert [json.loads(text)["prompt_tokens"] for text in whole] == [0, 7]


def test_lines_that_a_slow_disk_loses_are_logged_once_and_counted_when_it_has_caught_up(
    tmp_path, monkeypatch, caplog
):
    """A line that is written meanwhile starts no new complaint."""
    monkeypatch.setattr(usage_log, "MOST_WAITING", 3)
    path, turns, real = tmp_path / "usage", threading.Semaphore(0), os.write

    def write(file: int, data: bytes) -> int:
        assert turns.acquire(timeout=10)
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    log = UsageLog(path)
    log.write(line(0))
    waiting(log, 0)
    for number in (1, 2, 3, 4):  # the last one is lost
        log.write(line(number))
    for number in (5, 7):  # the disk takes one, another fits, the next one is lost
        turns.release()
        waiting(log, 2)
        log.write(line(number))
        log.write(line(number + 1))
    turns.release(9)
    written(log, path, [0, 1, 2, 3, 5, 7])
    log.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"lines of the usage log {path} are lost: more than 3 lines wait",
        f"3 lines of the usage log {path} were lost",
    ]


def test_a_disk_that_hangs_delays_nobody(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(usage_log, "MOST_WAITING", 3)
    monkeypatch.setattr(usage_log, "_CLOSE_SECONDS", 0.01)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = UsageLog(path)
    for number in range(1000):
        log.write(line(number))
    assert any("more than 3 lines wait" in record.getMessage() for record in caplog.records)
    os.close(reader)


def test_a_file_that_cannot_be_opened_is_refused_at_the_start(tmp_path):
    with pytest.raises(UsageLogRefused, match=r"cannot append to .*: No such file"):
        UsageLog(tmp_path / "nowhere" / "usage")
