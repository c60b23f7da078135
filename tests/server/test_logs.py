"""Lines of the log: text, and JSON that a collector of logs can join with traces."""

import json
import logging

import httpx
import pytest

from distaff.server.logs import configure_logging

from .conftest import MODEL

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def lines(capsys, logging_as_before):
    """Logs as JSON; returns the lines since the last call."""
    configure_logging("INFO", "replica 1", "json")
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_record_is_one_object_whatever_is_in_it(lines):
    log = logging.getLogger("distaff.test")
    log.info('a "quoted"\nline of %d', 2, extra={"trace_id": TRACE})
    try:
        raise ValueError("no\nway")
    except ValueError:
        log.exception("failed")
    said, failed = lines()
    assert said.pop("time").endswith("+00:00")
    assert said == {
        "level": "INFO",
        "logger": "distaff.test",
        "message": 'a "quoted"\nline of 2',
        "process": "replica 1",
        "trace_id": TRACE,
    }
    assert failed["exception"].endswith("ValueError: no\nway")


def test_text_that_is_no_utf_8_loses_no_line(logging_as_before):
    configure_logging("INFO", format="json")
    [handler] = logging.getLogger().handlers
    line = handler.format(logging.makeLogRecord({"msg": "a file named %s", "args": ("\udcff",)}))
    assert json.loads(line)["message"] == "a file named \udcff" and line.isascii()


def test_a_call_has_its_values_as_keys_and_the_clients_trace(lines, server):
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-client-request-id": "mine"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a secret"}]}
    answered = httpx.post(server.url + "/v1/chat/completions", json=body, headers=headers)
    assert "traceparent" not in answered.headers
    said = lines()
    [line] = [line for line in said if line["logger"] == "distaff.server.call_record"]
    assert 0 < line["first_token_seconds"] <= line["total_seconds"]
    assert {
        "request": answered.headers["x-request-id"],
        "client": "mine",
        "trace_id": TRACE,
        "model": MODEL,
        "completion_tokens": 14,
        "finish": "stop",
    }.items() <= line.items()
    assert f"client=mine trace_id={TRACE} model={MODEL}" in line["message"]
    assert "secret" not in json.dumps(said)


def test_an_early_end_has_the_trace_as_well(lines, server):
    server.engine.fail_after = 1
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    httpx.post(
        server.url + "/v1/chat/completions", json=body, headers={"traceparent": f"00-{TRACE}-{'1' * 16}-00"}
    )
    [line] = [line for line in lines() if line["logger"] == "distaff.server.endings"]
    assert (line["level"], line["trace_id"]) == ("ERROR", TRACE)
