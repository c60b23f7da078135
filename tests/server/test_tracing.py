"""Traces, as a collector receives them: a real exporter, and an OTLP receiver in a thread."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from distaff.model.errors import ConfigError
from distaff.server.command.traces import configured_traces
from distaff.server.keys import Keys
from distaff.server.tracing import Traces

from .conftest import MODEL

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
SECRET = "the prompt that nobody may see"
USER = [{"role": "user", "content": SECRET}]


class Collector:
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        received = self

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                for spans in ExportTraceServiceRequest.FromString(body).resource_spans:
                    received.resources.append(attributes(spans.resource))
                    received.spans += [span for scope in spans.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def children(self, parent: Any) -> dict[str, Any]:
        return {span.name: span for span in self.spans if span.parent_span_id == parent.span_id}


def attributes(found: Any) -> dict[str, Any]:
    """A resource's or a span's attributes."""
    values = {each.key: each.value for each in found.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def traced(make_server, collector):
    """A server that traces; `close` it before the collector is read."""
    server = make_server(traces=Traces(OTLPSpanExporter(endpoint=collector.endpoint)))
    server.engine.waited = 1e-5
    server.engine.cached = 5
    return server


def post(server, path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(server.url + path, json=body, headers=headers, timeout=30)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_one_span_of_the_clients_trace_with_its_phases(traced, collector, stream):
    body = {
        "model": MODEL,
        "messages": USER,
        "stream": stream,
        "max_tokens": 5,
        "temperature": 0.5,
        "n": 2,
        "seed": 7,
    }
    answered = post(traced, "/v1/chat/completions", body, SENT)
    traced.close()
    [span] = [span for span in collector.spans if span.parent_span_id.hex() == PARENT]
    assert span.name == f"chat {MODEL}" and span.kind == span.SPAN_KIND_SERVER
    assert span.trace_id.hex() == TRACE
    assert answered.headers["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    found = attributes(span)
    assert found.pop("gen_ai.response.finish_reasons").values[1].string_value == "length"
    assert 0 < found.pop("gen_ai.response.time_to_first_chunk") < 30
    assert re.fullmatch(r"chatcmpl-\w{29}", found.pop("gen_ai.response.id"))
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "distaff",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.input_tokens": len(SECRET) + 7,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 5,
        "gen_ai.usage.cache_creation.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "distaff.usage.device_seconds": 0.0,
        "distaff.usage.page_seconds": 0.0,
        "distaff.request.id": answered.headers["x-request-id"],
        "distaff.resumed": False,
    }
    phases = collector.children(span)
    assert list(phases) == ["queue", "prefill", "decode"]
    queue, prefill, decode = phases.values()
    assert span.start_time_unix_nano <= queue.start_time_unix_nano
    assert queue.end_time_unix_nano - queue.start_time_unix_nano == pytest.approx(1e4, abs=1e3)
    assert queue.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano < decode.end_time_unix_nano
    assert decode.end_time_unix_nano <= span.end_time_unix_nano
    assert collector.resources[0]["service.name"] == "distaff"


def test_every_kind_of_call_has_its_name_and_what_fails_says_why(traced, collector):
    post(traced, "/v1/completions", {"model": MODEL, "prompt": SECRET, "seed": -(2**63)})
    post(traced, "/v1/messages", {"model": MODEL, "messages": USER, "max_tokens": 3})
    post(traced, "/tokenize", {"prompt": SECRET})
    post(traced, "/nowhere", {"prompt": SECRET})
    assert post(traced, "/v1/chat/completions", {"model": MODEL}).status_code == 400
    traced.engine.fail_after = 1
    body = {"model": MODEL, "messages": USER}
    assert post(traced, "/v1/chat/completions", body).status_code == 500
    assert post(traced, "/v1/chat/completions", body | {"stream": True}).status_code == 200
    traced.engine.capacity = 0
    assert post(traced, "/v1/chat/completions", body).status_code == 503
    assert httpx.get(traced.url + "/v1/models").status_code == 200
    traced.close()
    spans = [span for span in collector.spans if not span.parent_span_id]
    told = [(span.name, attributes(span)) for span in spans]
    outcomes = [(name, a["http.response.status_code"], a.get("error.type")) for name, a in told]
    assert outcomes == [
        (f"text_completion {MODEL}", 200, None),
        (f"chat {MODEL}", 200, None),
        ("POST /tokenize", 200, None),
        ("POST", 404, None),
        ("POST /v1/chat/completions", 400, None),
        (f"chat {MODEL}", 500, "engine_lost"),
        (f"chat {MODEL}", 200, "engine_lost"),
        ("POST /v1/chat/completions", 503, "503"),
    ]
    failed = [span.status.code == span.status.STATUS_CODE_ERROR for span in spans]
    assert failed == [False] * 5 + [True] * 3
    assert SECRET not in str(collector.spans)


def test_a_client_that_leaves_ends_its_span(traced, collector):
    traced.engine.delay = 0.05
    body = {"model": MODEL, "messages": USER, "stream": True}
    with httpx.stream("POST", traced.url + "/v1/chat/completions", json=body, timeout=30) as answered:
        next(answered.iter_bytes())
    traced.close()
    [span] = [span for span in collector.spans if not span.parent_span_id]
    assert attributes(span)["error.type"] == "client_gone"


def test_what_a_key_refuses_has_no_span(make_server, collector):
    server = make_server(
        traces=Traces(OTLPSpanExporter(endpoint=collector.endpoint)), keys=Keys(["a-key-of-ours"])
    )
    refused = post(server, "/v1/chat/completions", {"model": MODEL, "messages": USER}, SENT)
    server.close()
    assert refused.status_code == 401 and "traceparent" not in refused.headers
    assert collector.spans == []


@pytest.mark.parametrize("parent", ["", "x", f"00-{'0' * 32}-{PARENT}-01", "é" * 40])
def test_an_invalid_parent_begins_a_new_trace(traced, collector, parent):
    answered = post(traced, "/tokenize", {"prompt": "x"}, {"traceparent": parent.encode("latin-1")})
    traced.close()
    [span] = collector.spans
    assert not span.parent_span_id
    assert answered.headers["traceparent"].split("-")[1] == span.trace_id.hex()


def test_a_collector_that_is_down_harms_nothing(make_server, caplog):
    server = make_server(traces=Traces(OTLPSpanExporter(endpoint="http://127.0.0.1:9/v1/traces", timeout=1)))
    assert post(server, "/v1/chat/completions", {"model": MODEL, "messages": USER}).status_code == 200
    server.close()
    assert SECRET not in caplog.text


def test_traces_are_off_without_an_endpoint():
    assert configured_traces({}) is None
    assert configured_traces({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}) is None
    there = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    assert configured_traces(there | {"OTEL_SDK_DISABLED": "True"}) is None
    assert configured_traces(there | {"OTEL_TRACES_EXPORTER": "none"}) is None
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; expected 'http/protobuf'"):
        configured_traces(there | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    own = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    for more in ({}, own, {"OTEL_EXPORTER_OTLP_PROTOCOL": ""}):
        traces = configured_traces(there | more)
        assert traces is not None
        traces.close()


def test_traces_without_the_sdk_say_what_to_install(monkeypatch):
    monkeypatch.setitem(
        __import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None
    )
    with pytest.raises(
        ConfigError, match=r"OTLP_ENDPOINT is set; traces need `pip install 'distaff\[otel\]'`"
    ):
        configured_traces({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
