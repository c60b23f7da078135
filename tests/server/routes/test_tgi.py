"""TGI's routes: its parameters, its events, its errors."""

import json
from dataclasses import replace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.protocol.tgi.headers import late_headers


def post(http, path="/generate", inputs="Say", stream=None, **parameters):
    body = {"inputs": inputs, "parameters": parameters}
    return http.post(path, json=body if stream is None else body | {"stream": stream})


def events(reply):
    *said, nothing = reply.text.split("\n\n")
    assert nothing == "" and all(event.startswith("data:") for event in said)
    return [json.loads(event.removeprefix("data:")) for event in said]


def test_an_answer(http, engine):
    """Text alone, unless details are asked for; silence is greedy and means a hundred tokens."""
    assert post(http).json() == {"generated_text": "Hello, world!"}
    [request] = engine.requests
    assert (request.params.temperature, request.params.max_tokens) == (0.0, 100)


def test_details(http):
    """Each token with its id and log-probability; the prompt's where they are wanted."""
    details = post(http, details=True, decoder_input_details=True, top_n_tokens=2).json()["details"]
    assert details["finish_reason"] == "eos_token" and details["generated_tokens"] == 14
    *tokens, end = details["tokens"]
    assert "".join(token["text"] for token in tokens) == "Hello, world!"
    assert end == {"id": 257, "text": "<|257|>", "logprob": -0.25, "special": True}
    assert details["tokens"][0] == {"id": 72, "text": "H", "logprob": -0.25, "special": False}
    assert [len(top) for top in details["top_tokens"]] == [2] * 14
    assert [token["logprob"] for token in details["prefill"]] == [None, -0.25, -0.25, -0.25]
    assert details["seed"] is None


def test_a_prompt_that_is_not_scored_has_no_log_probabilities(http, engine):
    """As on a deterministic server."""
    engine.info = replace(engine.info, scores=False)
    details = post(http, decoder_input_details=True).json()["details"]
    assert [(token["text"], token["logprob"]) for token in details["prefill"]] == [
        (text, None) for text in ("<|256|>", "S", "a", "y")
    ]


def test_a_stream(http):
    """An event a token, the last with the text and the details; no [DONE]."""
    *said, last = events(post(http, "/generate_stream"))
    assert all(event["generated_text"] is None and event["details"] is None for event in said)
    assert "".join(event["token"]["text"] for event in said) == "Hello, world!"
    assert last["token"] == {"id": 257, "text": "<|257|>", "logprob": -0.25, "special": True}
    assert [event["index"] for event in [*said, last]] == list(range(1, 15))
    assert last["generated_text"] == "Hello, world!"
    assert last["details"] == {
        "finish_reason": "eos_token",
        "generated_tokens": 14,
        "seed": None,
        "input_length": 4,
    }


def test_a_character_of_several_tokens_is_the_last_ones(http, engine):
    engine.reply = "a🙂"
    said = events(post(http, "/generate_stream"))
    assert [event["token"]["text"] for event in said] == ["a", "", "", "", "🙂", "<|257|>"]


def test_the_root_answers_both_ways(http):
    """A list of one, or events."""
    assert post(http, "/").json() == [{"generated_text": "Hello, world!"}]
    assert events(post(http, "/", stream=True))[-1]["generated_text"] == "Hello, world!"


def test_parameters_reach_the_engine(http, engine):
    post(
        http,
        max_new_tokens=7,
        temperature=0.5,
        top_k=4,
        top_p=0.9,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        seed=11,
        truncate=2,
        grammar={"type": "regex", "value": "a+"},
    )
    [request] = engine.requests
    params = request.params
    assert request.prompt == tuple(b"ay")
    assert (params.max_tokens, params.temperature, params.top_k, params.top_p) == (7, 0.5, 4, 0.9)
    assert (params.repetition_penalty, params.frequency_penalty, params.seed) == (1.2, 0.3, 11)
    assert params.grammar is not None


@pytest.mark.parametrize(
    "grammar",
    [
        {"type": "json", "value": {"type": "integer"}},
        {"type": "json_schema", "value": {"name": "n", "schema": {"type": "integer"}}},
    ],
)
def test_grammars(http, engine, grammar):
    assert post(http, grammar=grammar).status_code == 200
    assert "integer" in engine.requests[0].params.grammar


def test_a_stop_string_stays_in_the_text(http):
    """As TGI has it, with a reason of its own."""
    body = post(http, stop=["lo, "], details=True).json()
    assert body["generated_text"] == "Hello, "
    assert body["details"]["finish_reason"] == "stop_sequence"
    assert [token["special"] for token in body["details"]["tokens"]] == [False] * 7
    details = post(http, max_new_tokens=2, details=True).json()["details"]
    assert (details["finish_reason"], details["generated_tokens"], len(details["tokens"])) == ("length", 2, 2)
    assert events(post(http, "/generate_stream", max_new_tokens=2))[-1]["token"]["text"] == "e"


def test_the_full_text_and_the_best_one(http, engine):
    engine.reply = lambda request: [b"ab", b"cd"][request.choice]
    asked = {"best_of": 2, "do_sample": True, "details": True, "decoder_input_details": True}
    body = post(http, return_full_text=True, **asked).json()
    assert body["generated_text"] == "Sayab" and body["details"]["seed"] is not None
    assert [token["text"] for token in body["details"]["prefill"]] == ["<|256|>", "S", "a", "y"]
    assert [request.params.prompt_logprobs for request in engine.requests] == [0, None]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"temperature": 0}, "`temperature` must be strictly positive"),
        ({"temperature": 1e7}, "`temperature` must be > 0.0 and <= 1000000.0"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        ({"repetition_penalty": 0.009}, "`repetition_penalty` must be >= 0.01 and <= 100.0"),
        ({"repetition_penalty": 100.5}, "`repetition_penalty` must be >= 0.01 and <= 100.0"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"stop": ["a"] * 65}, "`stop` supports up to 64 stop sequences. Given: 65"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"typical_p": 0.5}, "`typical_p` is not supported"),
        ({"watermark": True}, "`watermark` is not supported"),
        ({"grammar": {"type": "regex", "value": "("}}, "regex"),
        ({"grammar": {"type": "ebnf", "value": "x"}}, "`grammar` must have a `type`"),
        (
            {"max_new_tokens": 5000},
            "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4 `inputs` tokens and 5000 "
            "`max_new_tokens`",
        ),
    ],
)
def test_faults_are_told_in_tgis_words(http, engine, parameters, said):
    reply = post(http, **parameters)
    body = reply.json()
    assert (reply.status_code, body["error_type"]) == (422, "validation")
    assert body["error"].startswith("Input validation error: ") and said in body["error"]
    assert not engine.requests


def test_inputs(http):
    assert "`inputs` cannot be empty" in post(http, inputs="").json()["error"]
    said = post(http, inputs="x" * 5000).json()["error"]
    assert said == "Input validation error: `inputs` must have less than 4095 tokens. Given: 5001"
    reply = post(http, "/generate_stream", best_of=2)
    assert "`best_of` != 1 is not supported when streaming tokens" in reply.json()["error"]


def test_overload_and_failure(http, engine):
    engine.capacity = 0
    reply = post(http)
    assert (reply.status_code, reply.json()) == (
        429,
        {"error": "Model is overloaded", "error_type": "overloaded"},
    )
    engine.capacity, engine.fail_after = 4, 2
    reply = post(http)
    assert (reply.status_code, reply.json()["error_type"]) == (424, "generation")
    assert events(post(http, "/generate_stream"))[-1]["error_type"] == "generation"


def test_info(http):
    body = http.get("/info").json()
    assert body["model_id"] == "org/fake-model" and body["max_total_tokens"] == 4096
    assert body["max_stop_sequences"] == 64 and body["max_concurrent_requests"] == 32
    assert body["max_input_tokens"] == 4095


def test_the_longest_prompt_is_the_operators(http, engine):
    """A prompt of as many tokens is taken, as by TGI, whatever its words say."""
    engine.info = replace(engine.info, max_input=10)
    assert http.get("/info").json()["max_input_tokens"] == 10
    assert post(http, inputs="x" * 9).status_code == 200
    reply = post(http, inputs="x" * 10)
    assert (reply.status_code, reply.json()) == (
        422,
        {
            "error": "Input validation error: `inputs` must have less than 10 tokens. Given: 11",
            "error_type": "validation",
        },
    )
    assert post(http, inputs="x" * 10, truncate=10).status_code == 200


def test_requests_under_way_are_the_operators(make_server):
    with httpx.Client(base_url=make_server(max_concurrent=7).url) as http:
        assert http.get("/info").json()["max_concurrent_requests"] == 7


class TestHeaders:
    """Figures of an answer; only true ones."""

    def test_a_whole_answer(self, http, engine):
        """Seconds for one of them, whole milliseconds for all others, as in TGI."""
        engine.waited, engine.delay = 0.02, 0.005
        headers = post(http, inputs="é!").headers
        assert (headers["x-compute-type"], headers["x-compute-characters"]) == ("cpu", "2")
        assert (headers["x-prompt-tokens"], headers["x-generated-tokens"]) == ("4", "14")
        assert headers["x-queue-time"] == "20"
        total, inference = int(headers["x-total-time"]), int(headers["x-inference-time"])
        assert int(float(headers["x-compute-time"]) * 1000) == total
        assert 14 * 5 - 20 <= inference <= total - 20 - int(headers["x-validation-time"])
        assert int(headers["x-time-per-token"]) == inference // 14

    def test_what_nobody_measured_is_left_out(self, http, engine):
        headers = post(http).headers
        assert "x-total-time" in headers and "x-validation-time" in headers
        assert not {"x-queue-time", "x-inference-time", "x-time-per-token"} & headers.keys()

    def test_the_best_ones(self, http, engine):
        engine.reply = lambda request: [b"a", b"bcd"][request.choice]
        headers = post(http, best_of=2, do_sample=True).headers
        assert headers["x-generated-tokens"] == "2"

    def test_a_stream_has_those_that_are_known_at_its_head(self, http, engine):
        headers = post(http, "/generate_stream").headers
        assert (headers["x-compute-type"], headers["x-compute-characters"]) == ("cpu", "3")
        assert not {"x-total-time", "x-compute-time", "x-generated-tokens"} & headers.keys()
        assert headers["cache-control"] == "no-cache"

    @given(*[st.floats(0, 1e4)] * 4, st.integers(1, 10**6))
    def test_times_add_up(self, validation, waited, inference, arrived, generated):
        """Validation, queue and inference are the whole, but for the parts of a millisecond."""
        told = late_headers(
            arrived=arrived,
            admitted=arrived + validation,
            ended=arrived + validation + waited + inference,
            waited=waited,
            prompt=1,
            generated=generated,
        )
        parts = [int(told[f"x-{name}-time"]) for name in ("validation", "queue", "inference")]
        assert -1 <= int(told["x-total-time"]) - sum(parts) <= 3
        assert int(told["x-time-per-token"]) * generated <= int(told["x-inference-time"]) + 1


class TestSageMaker:
    """Its two routes are other names for ours."""

    @pytest.mark.parametrize("stream", [False, True])
    def test_inputs_are_the_roots(self, http, stream):
        assert post(http, "/invocations", stream=stream).text == post(http, "/", stream=stream).text

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
            ("/v1/completions", {"prompt": "hi"}),
        ],
    )
    def test_a_conversation_and_a_prompt_are_openais(self, http, path, body):
        """But for the ids and times of an answer."""
        told, expected = (
            http.post(where, json={"model": "tgi", **body}).json() for where in ("/invocations", path)
        )
        assert told["object"] == expected["object"] and told["choices"] == expected["choices"]
        assert told["usage"] == expected["usage"]

    @pytest.mark.parametrize(
        ("body", "status", "said"),
        [
            ({}, 422, "inputs"),
            ({"inputs": ""}, 422, "Input validation error: `inputs` cannot be empty"),
            ({"messages": [], "model": "tgi"}, 422, "messages"),
            ({"prompt": "x", "model": "other"}, 404, "The model `other` does not exist"),
            ([], 422, "Input validation error"),
        ],
    )
    def test_errors_are_tgis(self, http, body, status, said):
        reply = http.post("/invocations", json=body)
        assert reply.status_code == status
        assert reply.json().keys() == {"error", "error_type"} and said in reply.json()["error"]

    def test_ping_is_health(self, http, engine):
        assert http.get("/ping").json() == http.get("/health").json() == {"status": "ok"}
        engine.heartbeat_age = 11.0
        assert http.get("/ping").status_code == 503
