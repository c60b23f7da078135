"""POST /v1/embeddings: vectors for texts of every kind, where the server gives them."""

import base64
import re
import struct

import httpx
import openai
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from distaff.server.tracing import Traces

from ..conftest import Server
from ..test_tracing import Collector, attributes

MODEL = "org/fake-model"


@pytest.fixture(scope="module")
def embedder():
    server = Server(embeddings=True)
    server.reset()
    yield server
    server.close()


@pytest.fixture
def client(embedder):
    embedder.reset()
    with openai.OpenAI(base_url=f"{embedder.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def unit(length, last):
    norm = (length**2 + last**2) ** 0.5
    return [length / norm, last / norm]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ab", [unit(3, 98)]),
        (["ab", "c"], [unit(3, 98), unit(2, 99)]),
        ([97, 98], [unit(2, 98)]),
        ([[97], [98, 99]], [unit(1, 97), unit(2, 99)]),
    ],
)
@pytest.mark.parametrize("encoding", ["float", "base64", openai.NOT_GIVEN])
def test_a_unit_vector_for_each_input(client, embedder, given, expected, encoding):
    """In their order; silent, the client asks for base64 and turns it into numbers by itself."""
    reply = client.embeddings.create(model=MODEL, input=given, encoding_format=encoding)
    told = [each.embedding for each in reply.data]
    if encoding == "base64":
        raw = [base64.b64decode(each) for each in told]
        told = [list(struct.unpack(f"<{len(each) // 4}f", each)) for each in raw]
    for vector, wanted in zip(told, expected, strict=True):
        assert vector == pytest.approx(wanted, rel=1e-6)
    assert [each.index for each in reply.data] == list(range(len(expected)))
    assert reply.usage.prompt_tokens == sum(len(r.prompt) for r in embedder.engine.requests)
    assert all(r.params.pool_prompt and r.params.max_tokens == 1 for r in embedder.engine.requests)


def test_many_inputs_come_in_turns(client, embedder):
    """More than the engine is given at a time."""
    embedder.engine.capacity = 16
    reply = client.embeddings.create(model=MODEL, input=["x" * n for n in range(1, 41)])
    assert [round(each.embedding[0] / each.embedding[1] * 120) for each in reply.data] == list(range(2, 42))


def test_no_more_come_at_a_time_than_an_operator_allows(make_server):
    server = make_server(embeddings=True, max_concurrent=3)
    server.reset()
    server.engine.capacity = 3
    with httpx.Client(base_url=server.url, timeout=20) as http:
        reply = http.post("/v1/embeddings", json={"model": MODEL, "input": ["x"] * 8})
    assert (reply.status_code, len(reply.json()["data"])) == (200, 8)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [300]}, "input"),
        ({"input": 5}, "input"),
        ({"input": "x" * 5000}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 5}, "dimensions"),
    ],
)
def test_faults(client, changes, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(**{"model": MODEL, "input": "a", "encoding_format": "float"} | changes)
    assert refused.value.param == param


def test_a_lost_engine_is_an_error(client, embedder):
    embedder.engine.fail_after = 0
    with pytest.raises(openai.InternalServerError):
        client.embeddings.create(model=MODEL, input="a")


def test_without_the_flag_there_is_no_such_path(http):
    reply = http.post("/v1/embeddings", json={"model": MODEL, "input": "a"})
    assert reply.status_code == 404
    assert reply.json()["error"]["message"] == "Invalid URL (POST /v1/embeddings)"


def test_a_call_is_accounted_for(client, embedder, caplog):
    """One line in the log and one choice that ended, whatever the number of texts."""
    with caplog.at_level("INFO", "distaff.server.call_record"):
        client.embeddings.create(model=MODEL, input=["ab", "c"])
    [line] = [each.getMessage() for each in caplog.records]
    assert re.search(r"prompt=5 completion=0 first=\d\.\d+s .*finish=stop$", line)


def test_a_call_is_a_span_with_its_phases_and_what_it_has_used(make_server):
    collector = Collector()
    traces = Traces(OTLPSpanExporter(endpoint=collector.endpoint))
    server = make_server(embeddings=True, traces=traces)
    server.engine.waited, server.engine.device_seconds = 1e-5, 0.5
    httpx.post(f"{server.url}/v1/embeddings", json={"model": MODEL, "input": ["ab", "c"]}, timeout=20)
    server.close()
    collector.close()
    [span] = [span for span in collector.spans if not span.parent_span_id]
    assert span.name == f"embeddings {MODEL}"
    assert list(collector.children(span)) == ["queue", "prefill", "decode"]
    found = attributes(span)
    assert found["distaff.usage.device_seconds"] == 1.0 and found["distaff.usage.page_seconds"] == 2.0
    assert found["gen_ai.usage.input_tokens"] == 5 and found["gen_ai.usage.output_tokens"] == 0
