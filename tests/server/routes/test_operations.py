"""Health, readiness, overload, metrics, log lines: what operators see."""

import re
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from distaff.server.dispatch import admission
from distaff.server.flags import ServeFlags
from distaff.server.testing import FakeEngine

from ...patience import patient

RETRY = re.compile(r"[1-9]|[1-5][0-9]|60")


def test_before_the_model_is_loaded(http, ask, server, engine):
    server.served.text = None
    engine.state = "loading"
    assert http.get("/health").status_code == 200
    ready = http.get("/ready")
    assert (ready.status_code, ready.json()["error"]["type"]) == (503, "server_error")
    reply = ask()
    assert reply.status_code == 503
    assert RETRY.fullmatch(reply.headers["retry-after"])
    assert list(reply.json()["error"]) == ["message", "type", "param", "code"]
    assert ask(temperature=3).status_code == 400


MODELS = ("/v1/models", "/v1/models/tgi", "/v1/models/", "/v1/models?client_version=0.171.0")


@pytest.mark.parametrize("path", MODELS)
@pytest.mark.parametrize("state", ["starting", "loading", "restarting", "draining", "stopped", "ready"])
def test_models_are_listed_while_requests_are_accepted(http, ask, engine, path, state):
    """KServe, SkyServe and scripts take 200 for readiness. The refusal is that of a completion."""
    engine.state = state
    reply, asked = http.get(path), ask()
    assert reply.status_code == asked.status_code == (200 if state == "ready" else 503)
    if state != "ready":
        assert reply.json() == asked.json()
        assert RETRY.fullmatch(reply.headers["retry-after"])
    assert http.head(path).status_code == reply.status_code


@pytest.mark.parametrize("path", MODELS)
def test_models_are_listed_only_with_the_text_and_before_draining(http, server, monkeypatch, path):
    with monkeypatch.context() as patch:
        patch.setattr(server.app.ctx, "draining", True)
        reply = http.get(path)
        assert reply.status_code == 503 and RETRY.fullmatch(reply.headers["retry-after"])
    assert http.get(path).status_code == 200
    server.served.text = None
    assert http.get(path).json()["error"]["type"] == "server_error"


def test_models_are_listed_while_the_only_engine_restarts(http, engine, monkeypatch):
    """Requests wait for it then, but `/ready` is 503, so that a load balancer prefers other servers."""
    monkeypatch.setattr(FakeEngine, "takes", True)
    engine.state = "restarting"
    assert http.get("/v1/models").status_code == 200
    assert http.get("/ready").status_code == 503


def test_ready_needs_the_engine_and_the_text(http, ask, server, engine):
    assert http.get("/ready").json() == {"status": "ready", "ready": 1, "replicas": 1}
    server.served.text = None
    assert http.get("/ready").status_code == 503
    assert ask().status_code == 503


@pytest.mark.parametrize("path", ["/ready", "/health", "/ping"])
def test_one_ready_engine_of_several_is_enough(make_server, monkeypatch, path):
    """The answer says how many there are; so does the refusal, in the message."""
    server = make_server(health_when_ready=True)
    server.reset()
    engines = [server.engine, FakeEngine(), FakeEngine()]
    monkeypatch.setattr(FakeEngine, "replicas", property(lambda self: engines))
    for states, ready in [("ready loading ready", 2), ("ready stopped restarting", 1)]:
        for engine, state in zip(engines, states.split(), strict=True):
            engine.state = state
        reply = httpx.get(server.url + path)
        assert (reply.status_code, reply.json()) == (200, {"status": "ready", "ready": ready, "replicas": 3})
    server.engine.state = "loading"
    assert (
        "engine is loading; 0 of 3 replicas accept" in httpx.get(server.url + path).json()["error"]["message"]
    )
    server.engine.state, server.served.text = "ready", None
    reply = httpx.get(server.url + path)
    assert (reply.status_code, RETRY.fullmatch(reply.headers["retry-after"]) is not None) == (503, True)
    assert "engine is loading; 0 of 3 replicas accept" in reply.json()["error"]["message"]


@pytest.mark.parametrize("state", ["starting", "loading", "restarting", "draining", "stopped"])
def test_only_a_ready_engine_is_ready(http, ask, engine, state):
    engine.state = state
    assert http.get("/ready").status_code == 503
    assert ask(stream=True).status_code == 503
    assert http.get("/health").status_code == 200


def test_health_may_wait_until_requests_are_taken(make_server):
    """As TGI's does, for what knows one route only."""
    server = make_server(health_when_ready=True)
    with httpx.Client(base_url=server.url) as http:
        assert http.get("/health").json() == {"status": "ready", "ready": 1, "replicas": 1}
        server.engine.state = "loading"
        assert http.get("/health").status_code == 503


@pytest.mark.parametrize(("age", "status"), [(0.0, 200), (9.9, 200), (10.1, 503)])
def test_health_is_false_when_the_engine_has_fallen_silent(http, engine, age, status):
    engine.heartbeat_age = age
    assert http.get("/health").status_code == status


def test_overload_is_told_at_once(ask, engine):
    engine.capacity = 0
    begin = time.perf_counter()
    reply = ask(stream=True)
    assert time.perf_counter() - begin < patient(0.5)
    assert reply.status_code == 503
    assert RETRY.fullmatch(reply.headers["retry-after"])
    assert reply.json()["error"] == {
        "message": "The engine is currently overloaded, please try again later",
        "type": "server_error",
        "param": None,
        "code": "server_overloaded",
    }


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": ["a", "b", "c"], "n": 11}, "prompt"),
        ("/v1/completions", {"prompt": ["a"] * 33}, "prompt"),
        ("/v1/completions", {"prompt": ["a", "b", "c"], "best_of": 11}, "prompt"),
    ],
)
def test_more_sequences_than_ever_fit_are_refused_with_the_numbers(http, engine, path, body, param):
    """4 slots: 32 sequences may wait. Nobody need try again."""
    reply = http.post(path, json={"model": "tgi"} | body)
    assert reply.status_code == 400 and "retry-after" not in reply.headers
    error = reply.json()["error"]
    assert error["param"] == param
    assert "asks for 33 sequences" in error["message"] and "at most 32" in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {"prompt": "a", "n": 3}, 400),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 3}, 400),
        ("/generate", {"inputs": "a", "parameters": {"best_of": 3, "do_sample": True}}, 422),
    ],
)
def test_an_operators_bound_is_one_for_a_single_call_too(make_server, path, body, status):
    server = make_server(max_concurrent=2)
    server.reset()
    with httpx.Client(base_url=server.url) as http:
        reply = http.post(path, json={"model": "tgi"} | body)
        assert reply.status_code == status
        error = reply.json()["error"]
        assert "asks for 3 sequences" in (error if isinstance(error, str) else error["message"])
        if status == 422:
            assert reply.json()["error_type"] == "validation"
    assert server.engine.requests == []


def test_more_prompt_tokens_than_ever_fit_are_refused(make_server, monkeypatch):
    monkeypatch.setattr(admission, "MOST_TOKENS", 1024)
    server = make_server()
    server.reset()
    with httpx.Client(base_url=server.url) as http:
        body = {"model": "tgi", "prompt": ["x" * 50] * 21, "max_tokens": 1}
        reply = http.post("/v1/completions", json=body)
        assert reply.status_code == 400
        message = reply.json()["error"]["message"]
        assert "has 1071 prompt tokens" in message and "at most 1024 at once" in message
        assert http.post("/v1/completions", json=body | {"prompt": ["x" * 50] * 20}).status_code == 200


def test_all_choices_are_admitted_or_none(ask, engine):
    engine.capacity = 2
    assert ask(n=3).status_code == 503
    assert engine.requests == []
    assert ask(n=2).status_code == 200


def test_metrics(http, ask, engine):
    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    names = [
        'distaff_responses_total{status="200"}',
        'distaff_choices_total{finish_reason="stop"}',
        'distaff_choices_total{finish_reason="length"}',
        "distaff_prompt_tokens_total",
        "distaff_completion_tokens_total",
        "distaff_time_to_first_token_seconds_count",
        "distaff_time_per_output_token_seconds_count",
        "distaff_request_duration_seconds_count",
    ]
    before = [value(name) for name in names]
    ask(stream=True)
    ask(n=2, max_tokens=3)
    after = [value(name) for name in names]
    gained = [b - a for a, b in zip(before, after, strict=True)]
    assert gained[0] >= 2
    assert gained[1:] == [1, 2, 18, 20, 2, 2, 2]
    assert value("distaff_requests_in_flight") == 0
    assert value('distaff_engine_ready{replica="0"}') == 1
    assert value('distaff_engine_total_pages{replica="0"}') == 100


def test_metrics_carry_no_text_of_clients(http, ask):
    ask(model="planted-model", user="planted-user", planted_key=1)
    ask(planted_key=1, messages=[{"role": "user", "content": "planted text"}])
    assert "planted" not in http.get("/metrics").text


def test_one_line_per_request_without_its_text(ask, http, engine, caplog):
    engine.reply = "planted answer"
    with caplog.at_level("INFO", "distaff"):
        reply = http.post(
            "/v1/chat/completions",
            json={"model": "tgi", "messages": [{"role": "user", "content": "planted prompt"}]},
            headers={"authorization": "Bearer planted-key", "x-client-request-id": "mine-1"},
        )
    [line] = [r.getMessage() for r in caplog.records if r.name == "distaff.server.call_record"]
    assert line.startswith(f"{reply.headers['x-request-id']} client=mine-1 model=org/fake-model prompt=21 ")
    assert re.search(r"completion=15 first=[\d.]+s total=[\d.]+s finish=stop$", line)
    assert "planted" not in caplog.text


def test_a_defect_is_told_to_nobody_but_the_log(ask, engine, caplog):
    """Neither body nor log carries a traceback; the type of the error is in the log."""

    def broken(request):
        raise ZeroDivisionError("planted secret")

    engine.reply = broken
    reply = ask()
    assert reply.status_code == 500
    assert reply.json()["error"]["type"] == "server_error"
    assert "planted" not in reply.text + caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert engine.running == {}


def test_the_web_side_never_imports_jax():
    import subprocess
    import sys

    code = "import distaff.server.app, distaff.server.testing, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_what_was_found_in_the_cache_is_told(ask, stream, engine):
    """In the usage of a reply, of a stream, and of each of several choices' one prompt."""
    engine.cached = 7
    assert ask(n=2).json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 7
    *_, last = stream(stream_options={"include_usage": True})
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == 7


def test_a_salt_reaches_the_engine(ask, engine):
    """Every choice shares what the salt shares; none is sent where none was said."""
    ask(n=2, cache_salt="tenant 7")
    ask()
    assert [request.cache_salt for request in engine.requests] == ["tenant 7", "tenant 7", ""]
    assert ask(cache_salt=7).json()["error"]["param"] == "cache_salt"


def test_profiles_are_made_where_they_are_wanted(http, server, engine, monkeypatch):
    """Without `--profile` the routes say how to get them; with it the engine hears of both."""
    assert "--profile" in http.post("/start_profile").json()["error"]["message"]
    flags = ServeFlags(profile=Path("unused"))
    monkeypatch.setattr(server.app.ctx, "settings", replace(server.app.ctx.settings, flags=flags))
    assert http.post("/start_profile").json() == {"profiling": True}
    assert http.post("/stop_profile").json() == {"profiling": False}
    assert engine.profiled == [True, False]
    engine.state = "loading"
    assert http.post("/start_profile").status_code == 503


def test_codex_finds_the_context_beside_openais_list(http):
    """In its own shape, only where its query asks for it."""
    plain, asked = (http.get(f"/v1/models{query}").json() for query in ("", "?client_version=0.171.0"))
    models = asked.pop("models")
    assert asked == plain
    assert [model["slug"] for model in models] == [model["id"] for model in plain["data"]]
    assert {model["context_window"] for model in models} == {plain["data"][0]["max_model_len"]}
    assert {model["apply_patch_tool_type"] for model in models} == {"freeform"}
