"""/v1/batches over the fake engine, with the official client and its strict types."""

import re

import httpx
import openai
import pytest

from distaff.server.batches import runner
from distaff.server.batches.limits import BatchLimits
from distaff.server.engine_client import ShutDown
from distaff.server.keys import Keys

from ..conftest import Server, post_chat
from .batch_client import client_of, content, ended, line, started, until, upload


@pytest.fixture
def server(make_server, tmp_path) -> Server:
    return make_server(batches=tmp_path / "batches", embeddings=True)


@pytest.fixture
def client(server):
    with client_of(server) as client:
        yield client


def test_a_batch_from_its_upload_to_its_results(client, server):
    lines = [line(f"id {number}", f"text {number}") for number in range(9)]
    batch = started(client, *lines, line("bad", "refuse me"), metadata={"purpose": "a test"})
    assert batch.status in ("validating", "in_progress") and batch.object == "batch"
    assert batch.metadata == {"purpose": "a test"} and batch.expires_at == batch.created_at + 24 * 3600
    done = ended(client, batch)
    assert (done.status, done.errors, done.model) == ("completed", None, "org/fake-model")
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 10, "completed": 9, "failed": 1}
    assert done.in_progress_at and done.finalizing_at and done.completed_at and not done.cancelled_at
    results = content(client, done.output_file_id)
    assert set(results) == {f"id {number}" for number in range(9)}
    for result in results.values():
        assert result["id"].startswith("batch_req_") and result["error"] is None
        assert result["response"]["status_code"] == 200 and result["response"]["request_id"].startswith(
            "req_"
        )
        assert result["response"]["body"]["choices"][0]["message"]["content"] == "Hello, world!"
    (error,) = content(client, done.error_file_id).values()
    assert (error["custom_id"], error["response"]["status_code"]) == ("bad", 400)
    assert "Conversation roles must alternate" in error["response"]["body"]["error"]["message"]
    output = client.files.retrieve(done.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{done.id}_output.jsonl")
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'distaff_batch_lines_total{outcome="completed"} 9.0' in metrics
    assert 'distaff_batch_lines_total{outcome="failed"} 1.0' in metrics


def test_the_times_of_lines_are_in_no_metric(client, server):
    """Lines wait for all others, so their times would hide those of clients; their tokens are counted."""
    names = ("time_to_first_token", "request_duration", "time_per_output_token")
    theirs = ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time")
    times = [*(f"distaff_{name}" for name in names), *(f"vllm:{name}" for name in theirs)]

    def counted(name: str) -> float:
        found = re.search(
            rf"^{name}(?:{{.*}})? (\S+)$", httpx.get(f"{server.url}/metrics").text, re.MULTILINE
        )
        assert found, name
        return float(found[1])

    server.engine.waited = 0.1
    ended(client, started(client, line("a")))
    assert counted("vllm:generation_tokens_total") == counted("distaff_completion_tokens_total") == 14
    assert [counted(f"{name}_seconds_count") for name in times] == [0] * len(times)
    with httpx.Client(base_url=server.url) as http:
        post_chat(http)
    assert [counted(f"{name}_seconds_count") for name in times] == [1, 1, 1, 1, 13, 1, 1]


@pytest.mark.parametrize(
    ("url", "body", "key"),
    [
        ("/v1/completions", {"prompt": "Once", "messages": ...}, "choices"),
        ("/v1/embeddings", {"input": ["a", "b"], "messages": ...}, "data"),
        ("/v1/responses", {"input": "hi", "messages": ...}, "output"),
        ("/v1/messages", {"max_tokens": 5}, "stop_reason"),
    ],
)
def test_every_endpoint_answers_lines(client, server, url, body, key):
    raw = line("a", url=url)
    raw["body"] = {name: value for name, value in (raw["body"] | body).items() if value is not ...}
    done = ended(client, started(client, raw, endpoint=url))
    assert done.status == "completed"
    assert key in content(client, done.output_file_id)["a"]["response"]["body"]
    assert all(each.background for each in server.engine.requests)


def test_an_invalid_file_fails_with_the_numbers_of_its_lines(client, server):
    lines = [line("a"), b"", b"{", line("a"), line("b", url="/v1/completions"), line("c", stream=True)]
    done = ended(client, started(client, *lines))
    assert (done.status, done.output_file_id, done.error_file_id) == ("failed", None, None)
    assert done.failed_at and done.errors is not None and done.errors.data is not None
    assert [(each.line, each.code, each.param) for each in done.errors.data] == [
        (3, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "invalid_url", "url"),
        (6, "unsupported_value", "body.stream"),
    ]
    assert not server.engine.requests


def test_too_many_lines_and_none_are_errors(make_server, tmp_path):
    server = make_server(batches=tmp_path / "b", batch_limits=BatchLimits(most_lines=2))
    with client_of(server) as client:
        many = ended(client, started(client, *(line(str(number)) for number in range(4))))
        assert many.errors and many.errors.data and many.errors.data[0].code == "request_limit_exceeded"
        assert many.errors.data[0].message == "The input file has too many lines. Expected at most 2."
        none = ended(client, started(client, b"\n\n"))
        assert none.errors and none.errors.data and none.errors.data[0].code == "empty_file"


def test_requests_of_clients_come_before_lines(client, server):
    """While one waits in the queue, no further line is handed out; those in progress run on."""
    server.engine.gate.clear()
    batch = started(client, *(line(f"line {number}") for number in range(20)))
    room = 4 + 1  # the slots, and one that is prepared
    until(lambda: len(server.engine.requests) == room)
    server.engine.queued = (1, 10)
    server.engine.gate.set()
    until(lambda: not server.engine.running)
    with httpx.Client(base_url=server.url) as http:
        assert post_chat(http).status_code == 200
    assert [each.background for each in server.engine.requests] == [True] * room + [False]
    assert client.batches.retrieve(batch.id).status == "in_progress"
    server.engine.queued = (0, 0)
    assert ended(client, batch).status == "completed"
    assert [each.background for each in server.engine.requests[room + 1 :]] == [True] * (20 - room)
    clients = {each.client for each in server.engine.requests}
    assert clients == {"batches of ", "127.0.0.1"}


def test_no_more_lines_are_in_progress_than_the_slots_can_hold(client, server):
    server.engine.delay = 0.002
    most = 0
    batch = started(client, *(line(f"line {number}") for number in range(40)))
    while client.batches.retrieve(batch.id).status != "completed":
        most = max(most, len(server.engine.running))
    assert 2 <= most <= 5


def test_overload_and_restarts_delay_lines_and_fail_none(client, server, monkeypatch):
    server.engine.capacity, server.engine.retry_after = 2, 0.01
    batch = started(client, *(line(f"line {number}") for number in range(12)))
    done = ended(client, batch)
    assert done.request_counts is not None and done.request_counts.completed == 12


def test_a_request_that_loses_its_engine_is_an_error(client, server):
    server.engine.fail_after = 2
    done = ended(client, started(client, line("a")))
    assert done.status == "completed" and done.output_file_id is None
    error = content(client, done.error_file_id)["a"]
    assert error["response"]["status_code"] == 500
    assert error["response"]["body"]["error"]["code"] == "engine_error"


def test_cancel_ends_what_runs_and_keeps_what_is_done(client, server):
    server.engine.reply = lambda request: b"x" * (1 if request.prompt[-5:-1] == tuple(b"fast") else 50)
    server.engine.delay = 0.1
    lines = [line("a", "fast"), *(line(f"slow {number}", "slow") for number in range(8))]
    batch = started(client, *lines)
    until(lambda: (counts := client.batches.retrieve(batch.id).request_counts) and counts.completed == 1)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(client, batch)
    assert (done.status, bool(done.cancelling_at), bool(done.cancelled_at)) == ("cancelled", True, True)
    until(lambda: not server.engine.running)
    assert set(content(client, done.output_file_id)) == {"a"}
    errors = content(client, done.error_file_id)
    assert len(errors) == 8 and {each["error"]["code"] for each in errors.values()} == {"batch_cancelled"}
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 9, "completed": 1, "failed": 8}
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a batch with the status 'cancelled'"):
        client.batches.cancel(batch.id)


def test_a_batch_expires_with_an_error_for_each_line_that_is_left(client, server, monkeypatch):
    server.engine.gate.clear()
    monkeypatch.setattr("distaff.server.routes.batches._HOUR", 1)
    done = ended(client, started(client, line("a"), line("b"), completion_window="1h"))
    server.engine.gate.set()
    assert done.status == "expired" and done.expired_at and done.expires_at == done.created_at + 1
    errors = content(client, done.error_file_id)
    assert {name: each["error"]["code"] for name, each in errors.items()} == {
        "a": "batch_expired",
        "b": "batch_expired",
    }


def test_lists_come_in_pages_newest_first(client):
    ids = [started(client, line("a")).id for _ in range(5)]
    first = client.batches.list(limit=2)
    assert [each.id for each in first.data] == ids[:2:-1] and first.has_more
    assert [each.id for each in client.batches.list(limit=2)] == ids[::-1]  # the client follows the pages
    assert [each.id for each in client.batches.list(after=ids[1]).data] == [ids[0]]
    for query, param in [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=101", "limit"),
        ("after=x", "after"),
    ]:
        reply = httpx.get(f"{client.base_url}batches?{query}")
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("changes", "status", "param", "text"),
    [
        ({"input_file_id": "file-none"}, 404, "id", "No such File object: file-none"),
        ({"input_file_id": "../lock"}, 404, "id", "No such File object: ../lock"),
        ({"endpoint": "/v1/models"}, 400, "endpoint", "Supported values are: '/v1/chat/completions'"),
        ({"completion_window": "soon"}, 400, "completion_window", "Expected a number of hours such as '24h'"),
        ({"completion_window": 24}, 400, "completion_window", "expected a string"),
        ({"metadata": {"a": 1}}, 400, None, "expected a string"),
        ({"input_file_id": None}, 400, "input_file_id", "Missing required parameter: 'input_file_id'."),
        ({"output_expires_after": {}}, 400, "output_expires_after", "is not supported"),
    ],
)
def test_a_bad_request_says_what_is_wrong(client, changes, status, param, text):
    usual = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    body = usual | {"input_file_id": upload(client, line("a")).id} | changes
    reply = httpx.post(f"{client.base_url}batches", json=body)
    error = reply.json()["error"]
    assert reply.status_code == status and text in error["message"]
    assert param is None or error["param"] == param


def test_outputs_are_no_inputs_and_embeddings_need_their_flag(client, make_server, tmp_path):
    done = ended(client, started(client, line("a")))
    with pytest.raises(openai.BadRequestError, match=r"has the purpose 'batch_output'\. Expected 'batch'"):
        client.batches.create(
            input_file_id=done.output_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    server = make_server(batches=tmp_path / "others")
    with client_of(server) as other, pytest.raises(openai.BadRequestError, match="without --embeddings"):
        started(other, line("a"), endpoint="/v1/embeddings")


def test_keys_see_only_their_own(make_server, tmp_path):
    server = make_server(batches=tmp_path / "b", keys=Keys(["key-of-alice", "key-of-bob-"]))
    with client_of(server, "key-of-alice") as alice, client_of(server, "key-of-bob-") as bob:
        done = ended(alice, started(alice, line("a")))
        assert alice.batches.list().data and not bob.batches.list().data and not bob.files.list().data
        for ask in (
            lambda: bob.batches.retrieve(done.id),
            lambda: bob.batches.cancel(done.id),
            lambda: bob.files.retrieve(done.output_file_id),
            lambda: bob.files.content(done.output_file_id),
            lambda: bob.files.delete(done.input_file_id),
            lambda: bob.batches.create(
                input_file_id=done.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError, match=r"No such (File|Batch) object"):
                ask()
        assert server.engine.requests[0].client.startswith("batches of ")
        assert server.engine.requests[0].cache_salt == server.engine.requests[0].client.split()[-1]
        with pytest.raises(openai.AuthenticationError), client_of(server, "key-of-nobody") as nobody:
            nobody.batches.list()


def test_without_the_flag_the_routes_name_it(make_server):
    server = make_server()
    with client_of(server) as client:
        for ask in (
            client.batches.list,
            client.files.list,
            lambda: upload(client, line("a")),
            lambda: client.files.content("file-x"),
            lambda: client.batches.create(
                input_file_id="x", endpoint="/v1/chat/completions", completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError, match="the server was started without --batches"):
                ask()


def test_a_batch_continues_in_the_next_server_without_asking_again(make_server, tmp_path):
    """Also when the first one was told to stop in the middle: what did not end is asked again."""
    first = make_server(batches=tmp_path / "b", drain_seconds=0.1)
    first.engine.reply = lambda request: b"x" * (1 if request.prompt[-5:-1] == tuple(b"fast") else 50)
    first.engine.delay = 0.1
    lines = [*(line(f"fast {number}", "fast") for number in range(4)), *(line(f"slow {n}") for n in range(9))]
    with client_of(first) as client:
        batch = started(client, *lines)
        until(lambda: (counts := client.batches.retrieve(batch.id).request_counts) and counts.completed == 4)
    first.close()
    second = make_server(batches=tmp_path / "b")
    with client_of(second) as client:
        done = ended(client, batch)
        assert done.status == "completed" and done.request_counts is not None
        assert done.request_counts.model_dump() == {"total": 13, "completed": 13, "failed": 0}
        assert len(content(client, done.output_file_id)) == 13
        assert client.batches.list().data[0].id == batch.id
    assert len(second.engine.requests) == 9


def test_a_defect_fails_a_batch_and_no_other(client, server, monkeypatch):
    def broken(*arguments: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(runner, "write_files", broken)
    done = ended(client, started(client, line("a")))
    assert done.status == "failed" and done.errors and done.errors.data
    assert done.errors.data[0].message == "The batch failed on the server: RuntimeError."
    monkeypatch.undo()
    assert ended(client, started(client, line("a"))).status == "completed"


def test_a_full_disk_delays_a_batch(client, server, monkeypatch):
    """Results are not lost, nor the batch."""
    monkeypatch.setattr(runner, "_RETRY_SECONDS", 0.01)
    failures = iter([OSError(28, "No space left on device")] * 3)
    append = runner.ResultsFile.append

    def full(self, result):
        if failure := next(failures, None):
            raise failure
        append(self, result)

    monkeypatch.setattr(runner.ResultsFile, "append", full)
    done = ended(client, started(client, line("a"), line("b")))
    assert done.status == "completed" and set(content(client, done.output_file_id)) == {"a", "b"}


def test_the_shutdown_of_the_engine_is_no_answer(client, server):
    server.engine.gate.clear()
    batch = started(client, line("a"))
    until(lambda: server.engine.running)

    server.loop.call_soon_threadsafe(server.engine.lose, ShutDown("shut down"))
    until(lambda: not server.engine.running)
    server.engine.gate.set()
    assert set(content(client, ended(client, batch).output_file_id)) == {"a"}
