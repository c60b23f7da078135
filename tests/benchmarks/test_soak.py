"""What a soak counts: right and wrong answers, growth, and what is left while nothing runs."""

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.soak import keys
from benchmarks.soak.__main__ import Tally
from benchmarks.soak.calls import MALFORMED, Asked, Mix, fault_of, is_as_long_as_allowed, is_record, matches
from benchmarks.soak.keys import KeyFile
from benchmarks.soak.watch import Held, Idle, differences, growth
from benchmarks.trials.mixed import body_of
from benchmarks.trials.sse import Answer, Call
from distaff.server.keys import Keys

CHAT = "/v1/chat/completions"


def answered(body: object, status: int = 200, **headers: str) -> Answer:
    """An answer in one piece, complete after two seconds."""
    given = {
        "content-type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    return Answer(0.0, 1.0, status, given, [(2.0, json.dumps(body).encode())], True)


def chat(text: str | None, tokens: int, finish: str = "length", **more: object) -> dict:
    """The answer of a chat with one choice."""
    choice = {"index": 0, "message": {"content": text, **more}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}}


def test_an_answer_has_as_many_tokens_as_it_must():
    """All of them, if the model may not end it; the protocol's own errors and broken answers are faults."""
    call = Call(CHAT, {"max_tokens": 5, "ignore_eos": True})
    asked = Asked(call, is_as_long_as_allowed)
    assert fault_of(asked, answered(chat("abcde", 5))) is None
    assert "expected 5 to 5" in str(fault_of(asked, answered(chat("abcd", 4))))
    ending = Asked(Call(CHAT, {"max_tokens": 5}), is_as_long_as_allowed)
    assert fault_of(ending, answered(chat("abcd", 4))) is None
    assert fault_of(ending, answered(chat("", 0))) is not None
    several = Asked(Call(CHAT, {"max_tokens": 5, "n": 2}), is_as_long_as_allowed)
    assert fault_of(several, answered(chat("abcd", 4))) == "1 choices, not 2"
    assert "status 500, not 200" in str(fault_of(asked, answered({"error": {}}, 500)))
    assert fault_of(asked, Answer(0.0)) is not None
    assert "unreadable" in str(fault_of(asked, answered({"choices": 7})))


def test_a_refusal_under_load_says_when_to_return():
    """Else it is a fault; whoever must be refused anyway needs the right status and an error object."""
    asked = Asked(Call(CHAT, {}), is_as_long_as_allowed)
    error = {"error": {"message": "full"}}
    assert fault_of(asked, answered(error, 503, retry_after="3")) is None
    assert fault_of(asked, answered(error, 503)) is not None
    message = Asked(Call("/v1/messages", {}), is_as_long_as_allowed)
    assert fault_of(message, answered(error, 529, retry_after="3")) is None
    assert fault_of(message, answered(error, 503, retry_after="3")) is not None
    malformed = Asked(Call(CHAT, b"{"), status=400)
    assert fault_of(malformed, answered(error, 400)) is None
    assert fault_of(malformed, answered({"detail": "no"}, 400)) is not None
    assert fault_of(malformed, answered(error, 422)) is not None


def test_constrained_answers_are_read():
    """A text of a schema, the arguments of several calls, a text of a pattern."""
    right, wrong = '{"word": "a", "numbers": [1, 2]}', '{"word": "a", "numbers": [1]}'

    def called(*arguments: str) -> Answer:
        calls = [{"id": "c", "function": {"name": "record", "arguments": each}} for each in arguments]
        return answered(chat(None, 9, "tool_calls", tool_calls=calls))

    record = Asked(Call(CHAT, {}), is_record)
    assert fault_of(record, answered(chat(right, 9))) is None
    assert fault_of(record, called(right, right)) is None
    for each in (answered(chat(wrong, 9)), answered(chat(right[:-1], 9)), called(right, wrong)):
        assert fault_of(record, each) is not None
    pattern = Asked(Call(CHAT, {}), matches)
    assert fault_of(pattern, answered(chat("abc-12", 9))) is None
    assert fault_of(pattern, answered(chat("abc-1", 9))) is not None


def test_messages_are_read_streamed_and_whole():
    """The fifth protocol of the calls."""
    usage = {"input_tokens": 3, "output_tokens": 2}
    asked = Asked(Call("/v1/messages", {"max_tokens": 2}), is_as_long_as_allowed)
    whole = {"type": "message", "content": [{"text": "ab"}], "stop_reason": "max_tokens", "usage": usage}
    assert fault_of(asked, answered(whole)) is None
    events = [
        {"type": "message_start", "message": {}},
        {"type": "content_block_delta", "index": 0, "delta": {"text": "ab"}},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": usage},
        {"type": "message_stop"},
    ]

    def streamed(told: list) -> Answer:
        text = "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in told)
        return Answer(0.0, 1.0, 200, {"content-type": "text/event-stream"}, [(2.0, text.encode())], True)

    assert fault_of(asked, streamed(events)) is None
    assert fault_of(asked, streamed(events[:-1])) == "cut off"


@given(st.integers(0, 2**20))
def test_drawn_calls_are_all_kinds_and_their_own(seed: int):
    """Two clients with one seed send the same; every call can be judged; its text is new."""
    one, other = Mix(seed), Mix(seed)
    drawn = [one.draw() for _ in range(20)]
    assert [each.call for each in drawn] == [other.draw().call for _ in range(20)]
    assert all(each.judge is not None and each.status == 200 for each in drawn)
    names = ("messages", "prompt", "input", "inputs")
    texts = {json.dumps([body_of(each.call).get(name) for name in names]) for each in drawn}
    assert len(texts) == len(drawn)
    assert one.draw_malformed() in MALFORMED


def test_calls_are_counted_once():
    """By what became of them."""
    tally, good = Tally(), Asked(Call(CHAT, {"max_tokens": 5}), is_as_long_as_allowed)
    tally.add(good, answered(chat("abcd", 4)))
    tally.add(good, answered({"error": {}}, 503, retry_after="1"))
    tally.add(good, answered({"error": {}}, 500))
    tally.add(Asked(Call(CHAT, b"{"), status=400), answered({"error": {}}, 400))
    assert tally.counts == {"right": 1, "refused": 1, "malformed": 1} and len(tally.faults) == 1
    assert tally.seconds == [(2.0, 2.0)] * 4


@pytest.mark.parametrize("hourly", [0.0, 36.0])
def test_growth_is_of_the_last_minute_over_the_first(hourly: float):
    """The slope is of the second half: what fills before does not count. A spike changes no median."""
    series = [(float(second), 100 + hourly * second / 3600) for second in range(600)]
    found = growth(series)
    assert found.slope == pytest.approx(hourly, abs=1e-6)
    assert found.added == pytest.approx(hourly * 539 / 3600, rel=0.01, abs=1e-9)
    filling = growth([(moment, value + min(moment, 200)) for moment, value in series])
    assert filling.slope == pytest.approx(hourly, abs=1e-6) and filling.added > found.added
    spiked = growth([*series[:-1], (599.0, 1e6)])
    assert spiked.added == pytest.approx(found.added, rel=0.02, abs=1e-9)


def test_what_is_left_while_nothing_runs_is_compared_by_process():
    """Files and threads, of each."""
    before, after = (Idle({"web": Held(files, 4)}, {0: 0.0}, 0.0) for files in (10, 12))
    assert differences(before, after) == [("open files, web", 10, 12), ("threads, web", 4, 4)]


async def test_the_key_file_keeps_the_keys_that_clients_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Over several changes: the lasting and the current one are in it, and what has gone is refused."""
    path, checks = tmp_path / "keys.txt", []

    async def status(url: str, call: Call, key: str) -> Answer:
        checks.append(key)
        return Answer(0.0, status=200 if Keys(file=path).identify(key) else 401)

    monkeypatch.setattr(keys, "ask", status)
    monkeypatch.setattr(keys, "SETTLED_SECONDS", 0.0)
    file = KeyFile(path)
    task = asyncio.create_task(file.run("", 0.0))
    while file.changes < 5:
        accepted = Keys(file=path)
        assert accepted.identify(file.lasting) and accepted.identify(file.current)
        await asyncio.sleep(0)
    task.cancel()
    assert not file.faults and len(checks) > 5
    monkeypatch.setattr(keys, "ask", lambda *_: asyncio.sleep(0, Answer(0.0, status=200)))
    task = asyncio.create_task(file.run("", 0.0))
    while len(file.faults) < 1:
        await asyncio.sleep(0)
    task.cancel()
    assert "answered 200, not 401" in file.faults[0]
