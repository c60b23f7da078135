"""What the trials read from answers and metrics with known contents."""

import asyncio
import json
from collections.abc import Sequence

import pytest

from benchmarks.trials import fatal, mixed
from benchmarks.trials.faults import Differences
from benchmarks.trials.mixed import Expected, limit_of, with_limit
from benchmarks.trials.replies import Content, content_of, first_token, longest_pause
from benchmarks.trials.retries import is_true
from benchmarks.trials.sse import Answer, Call, ask
from benchmarks.trials.tiny import is_plain
from benchmarks.trials.trial import Metrics, percentile
from benchmarks.trials.uneven import is_idle

CHAT, COMPLETION, RESPONSE, TGI = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/generate_stream",
)
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


def streamed(*events: object, done: bool = True, whole: bool = True) -> Answer:
    """An answer requested at 0 and begun at 1, with events at 2, 3 …"""
    texts = [f"data: {json.dumps(event)}\n\n".encode() for event in events] + [b"data: [DONE]\n\n"] * done
    pieces = [(2.0 + n, text) for n, text in enumerate(texts)]
    return Answer(0.0, 1.0, 200, {"content-type": "text/event-stream; charset=utf-8"}, pieces, whole)


def in_one(body: object) -> Answer:
    """An answer in one object."""
    return Answer(
        0.0, 1.0, 200, {"content-type": "application/json"}, [(2.0, json.dumps(body).encode())], True
    )


def chunk(delta: dict, finish: str | None = None, **more: object) -> dict:
    """Of a chat."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None} | more]}


def test_a_streamed_chat_equals_one_in_one_piece():
    """Texts, calls, names of tokens, finish reasons and usage, for any pieces."""
    entries = [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}]
    pieces = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "a"}, logprobs={"content": entries[:1]}),
    ]
    ends = [chunk({"content": "b"}, logprobs={"content": entries[1:]}), chunk({}, "length")]
    message = {"role": "assistant", "content": "ab"}
    choice = {"index": 0, "message": message, "finish_reason": "length", "logprobs": {"content": entries}}
    whole = content_of(CHAT, in_one({"choices": [choice], "usage": USAGE}))
    assert content_of(CHAT, streamed(*pieces, *ends, {"choices": [], "usage": USAGE})) == whole
    assert whole == Content((("ab", "", "length", ("a", "b")),), (-1.0, -2.0), (3, 2))


def test_the_calls_of_a_stream_are_those_of_an_object():
    """Names and arguments; ids are random."""
    begun = {"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}
    rest = {"index": 0, "function": {"arguments": "{}"}}
    events = [chunk({"tool_calls": [begun]}), chunk({"tool_calls": [rest]}), chunk({}, "tool_calls")]
    full = {"id": "call_2", "function": {"name": "f", "arguments": "{}"}}
    message = {"content": None, "tool_calls": [full]}
    one = {"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": None}
    assert content_of(CHAT, streamed(*events)) == content_of(CHAT, in_one({"choices": [one]}))


def test_completions_responses_and_tgi_are_read_in_their_own_shapes():
    """The deltas of a response must add up to the object at its end."""
    choices = [
        {"index": n, "text": t, "finish_reason": None, "logprobs": None} for n, t in ((0, "a"), (1, "b"))
    ]
    assert content_of(COMPLETION, streamed({"choices": choices})).choices == (
        ("a", None, ()),
        ("b", None, ()),
    )
    item = {"type": "message", "content": [{"text": "ab", "logprobs": []}]}
    usage = {"input_tokens": 3, "output_tokens": 2}
    last = {
        "type": "response.completed",
        "response": {"output": [item], "status": "completed", "usage": usage},
    }
    parts = [{"type": "response.output_text.delta", "delta": text} for text in "ab"]
    assert content_of(RESPONSE, streamed(*parts, last, done=False)).usage == (3, 2)
    assert content_of(RESPONSE, streamed(parts[0], last, done=False)).error
    token = {"id": 5, "text": "a", "logprob": -1.0, "special": False}
    details = {"finish_reason": "length", "generated_tokens": 1, "input_length": 3}
    event = {"token": token, "generated_text": "a", "details": details}
    assert content_of(TGI, streamed(event, done=False)) == Content((("a", "length", (5,)),), (-1.0,), (3, 1))


@pytest.mark.parametrize(
    "answer",
    [
        Answer(0.0),
        streamed(chunk({"content": "a"}), done=False),
        streamed(chunk({"content": "a"}), whole=False),
        streamed(chunk({"content": "a"}), {"error": {"message": "lost"}}),
    ],
)
def test_incomplete_answers_are_errors(answer: Answer):
    """Also if the connection was closed in order."""
    assert content_of(CHAT, answer).error


def test_times_are_of_events_with_content():
    """Neither the chunk with the role, nor the last one, nor a comment; an event may come in two pieces."""
    answer = streamed(chunk({"role": "assistant", "content": ""}), chunk({"content": "a"}))
    answer.pieces += [(9.0, b": alive\n\n"), (9.5, b"data: " + json.dumps(chunk({"content": "b"})).encode())]
    answer.pieces += [(10.0, b"\n\n")]
    assert first_token(answer) == 3.0
    assert longest_pause(answer) == 7.0
    assert first_token(streamed(chunk({}, "stop"))) is None


def test_the_time_before_a_call_starts_is_no_pause():
    """No event can show the tokens of its mark and its name; its arguments are streamed as any text."""
    begun = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    piece = {"index": 0, "function": {"arguments": "{"}}
    chat = streamed(chunk({"tool_calls": [begun]}), chunk({"tool_calls": [piece]}))
    item = {"type": "response.output_item.added", "item": {"type": "function_call", "arguments": ""}}
    response = streamed(item, {"type": "response.function_call_arguments.delta", "delta": "{"})
    for answer in (chat, response):
        answer.pieces[1] = (5.0, answer.pieces[1][1])
        answer.answered = -10.0
        assert longest_pause(answer) == 3.0
    message = streamed({"type": "response.output_item.added", "item": {"type": "message"}})
    message.pieces += [(7.0, b'data: {"type": "response.output_text.delta", "delta": "a"}\n\n')]
    assert longest_pause(message) == 6.0


def test_each_difference_counts_once():
    """An answer that ended with an error has no text that could differ."""
    expected = Expected(Call(CHAT, {}), Content(("a",), (-1.0,), (3, 2)), 1.0)
    found = Differences()
    for received in (
        expected.content,
        Content(error="lost"),
        Content(("b",), (-1.0,), (3, 2)),
        Content(("a",), (-1.1,), (3, 1)),
    ):
        found.add(expected, received)
    assert (found.answers, len(found.ended), len(found.texts), found.usage, found.logprobs) == (4, 1, 1, 1, 1)


def test_every_kind_of_call_has_a_limit_that_can_be_set():
    """And all 32 differ."""
    made = mixed.calls()
    assert len(made) == 32 and len({json.dumps([each.path, each.body]) for each in made}) == 32
    assert all(limit_of(with_limit(each, 77)) == 77 for each in made)


@pytest.mark.parametrize(
    ("announced", "waited", "true"),
    [(1, 3, True), (1, 3.1, False), (30, 61, True), (30, 14, False), (30, 15, True)],
)
def test_a_wait_is_true_within_a_factor_of_two_and_a_second(announced: float, waited: float, true: bool):
    """In both directions."""
    assert is_true(announced, waited) is true


def metrics(running: Sequence[int], ready: Sequence[int]) -> Metrics:
    named = {"running": running, "ready": ready}
    return Metrics(
        {f'distaff_engine_{name}{{replica="{n}"}}': v for name, vs in named.items() for n, v in enumerate(vs)}
    )


def test_idle_means_a_free_slot_of_a_ready_engine_while_a_request_waits():
    """Not if all slots are in use, no request waits, or the free slot is of an engine that is not ready."""
    assert is_idle(metrics([4, 3], [1, 1]), 4, 8)
    assert not is_idle(metrics([4, 4], [1, 1]), 4, 9)
    assert not is_idle(metrics([4, 3], [1, 1]), 4, 7)
    assert not is_idle(metrics([4, 0], [1, 0]), 4, 8)


def test_the_planted_fault_needs_its_prompt_and_so_many_tokens():
    """Another request never triggers it."""
    fuse = fatal.Fuse()
    fuse.submitted("deadly", [*fatal.PROMPT, 1])
    fuse.submitted("harmless", fatal.PROMPT[1:])
    assert not any(fuse.generated("harmless") for _ in range(2 * fatal.TOKENS))
    assert [fuse.generated("deadly") for _ in range(fatal.TOKENS)] == [False] * (fatal.TOKENS - 1) + [True]


def test_percentiles_and_plain_tokens():
    """The maximum of few values is their 99th percentile."""
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0 and percentile(range(10), 0.99) == 9
    assert is_plain("Ġa") and is_plain("<") and not is_plain("<|im_end|>") and not is_plain("é")


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("sent", "status", "body", "whole"),
    [
        (HEAD + b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", 200, b"abcde", True),
        (HEAD + b"2\r\nab\r\n3\r\ncd", 200, b"abcd", False),
        (REFUSAL, 503, b"{}", True),
        (b"", 0, b"", False),
    ],
)
async def test_a_client_knows_the_answer_and_whether_it_is_whole(
    sent: bytes, status: int, body: bytes, whole: bool
):
    """Over a real connection, which the server closes after it has sent the answer."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"{}"))
        writer.write(sent)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        answer = await ask(f"http://127.0.0.1:{port}", Call("/x", {}), "a-key")
    assert (answer.status, answer.body, answer.whole) == (status, body, whole)
    assert answer.retry_after == (7.0 if status == 503 else None)
    assert seen[0].startswith(b"POST /x HTTP/1.1\r\n") and b"Authorization: Bearer a-key\r\n" in seen[0]
