"""Whatever a route lets pass, the engine takes and can pack: drawn bodies on every route that generates."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distaff.server.testing import VOCABULARY

from ...runtime.packable import assert_packs
from ..conftest import MODEL, Server

CONTEXT = 64
LARGE = [2**31 - 2, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**300, 10**400]


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    """Of a range, its ends more often, and what is far outside."""
    near = st.sampled_from([low - 1, low, low + 1, high - 1, high, high + 1, 0, -1])
    return near | st.integers(low, high) | st.sampled_from(LARGE)


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    near = st.sampled_from([low, high, 0, 1e-6, 1e-320, 1e300, -1e300])
    return near | st.floats(low, high) | st.sampled_from(LARGE)


FEW = integers(1, CONTEXT)
IDS = st.lists(integers(0, VOCABULARY - 1), max_size=3) | st.just(list(range(VOCABULARY)))
BIASES = st.dictionaries(
    integers(0, VOCABULARY - 1).map(str) | st.sampled_from(["05", "x"]), numbers(-100, 100), max_size=3
)
TEXT = st.text(max_size=12).filter(lambda text: text.isascii()) | st.just("hello")
SAMPLING = {
    "temperature": numbers(0, 2),
    "top_p": numbers(0, 1),
    "top_k": integers(-1, 2**31 - 1),
    "min_p": numbers(0, 1),
    "frequency_penalty": numbers(-2, 2),
    "presence_penalty": numbers(-2, 2),
    "repetition_penalty": numbers(0.01, 100),
    "seed": integers(-(2**63), 2**63 - 1),
    "min_tokens": integers(0, 20) | integers(0, 2**31 - 1),
    "stop_token_ids": IDS,
    "allowed_token_ids": IDS,
    "logit_bias": BIASES,
    "ignore_eos": st.booleans(),
    "stop": st.lists(TEXT, max_size=4),
    "cache_salt": TEXT,
}


def body(required: dict, optional: dict) -> st.SearchStrategy[dict]:
    """Few keys at a time, so that many bodies are admitted; nulls among the values."""
    keys = st.sets(st.sampled_from(sorted(optional)), max_size=4)
    drawn = keys.flatmap(lambda kept: st.fixed_dictionaries({key: st.none() | optional[key] for key in kept}))
    return st.builds(lambda first, rest: first | rest, st.fixed_dictionaries(required), drawn)


TGI = {
    "max_new_tokens": FEW,
    "temperature": numbers(0, 2),
    "top_p": numbers(0, 1),
    "top_k": integers(1, 2**31 - 1),
    "repetition_penalty": numbers(0.01, 100),
    "frequency_penalty": numbers(-2, 2),
    "seed": integers(0, 2**64 - 1),
    "truncate": integers(1, 100),
    "best_of": integers(1, 3),
    "top_n_tokens": integers(0, 5),
    "do_sample": st.booleans(),
    "decoder_input_details": st.booleans(),
}
GENERATE = st.fixed_dictionaries({"inputs": TEXT, "parameters": body({}, TGI)})
ROUTES = {
    "/v1/chat/completions": body(
        {"model": st.just(MODEL), "messages": TEXT.map(lambda text: [{"role": "user", "content": text}])},
        SAMPLING
        | {"max_tokens": FEW, "max_completion_tokens": FEW, "n": integers(1, 3), "logprobs": st.booleans()},
    ),
    "/v1/completions": body(
        {"model": st.just(MODEL), "prompt": TEXT | IDS | st.lists(TEXT, max_size=3)},
        SAMPLING
        | {
            "max_tokens": integers(0, CONTEXT),
            "n": integers(1, 3),
            "best_of": integers(0, 3),
            "logprobs": integers(0, 20),
            "echo": st.booleans(),
        },
    ),
    "/v1/responses": body(
        {"model": st.just(MODEL), "input": TEXT},
        {name: value for name, value in SAMPLING.items() if name != "stop"}
        | {"max_output_tokens": FEW, "top_logprobs": integers(0, 20)},
    ),
    "/generate": GENERATE,
    "/generate_stream": GENERATE,
    "/": GENERATE,
}
ROUTES["/invocations"] = ROUTES["/v1/chat/completions"] | ROUTES["/v1/completions"] | GENERATE


@pytest.fixture
def narrow(server: Server) -> Server:
    """A server of short sequences and endless room."""
    server.engine.capacity = 10**6
    assert server.engine.info is not None
    server.engine.info = type(server.engine.info)(
        context=CONTEXT, vocabulary=VOCABULARY, slots=4, fingerprint="0123456789"
    )
    return server


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_let_pass_can_be_served(narrow, http, route):
    """What is refused is a 400 (TGI: 422); all else is admitted by the engine and has its place in a step."""
    statuses: list[int] = []

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(ROUTES[route])
    def law(body: dict) -> None:
        narrow.engine.requests.clear()
        answer = http.post(route, json=body)
        statuses.append(answer.status_code)
        assert answer.status_code in (200, 400, 422), (answer.status_code, answer.text)
        assert (answer.status_code == 200) == bool(narrow.engine.requests)
        for request in narrow.engine.requests:
            assert_packs(request, VOCABULARY, CONTEXT)

    law()
    assert 200 in statuses and len(set(statuses)) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_tokens": 5, "min_tokens": 2147483647},
            "Invalid 'min_tokens': integer above maximum value. Expected a value <= 5, but got 2147483647 "
            "instead.",
        ),
        (
            {"min_tokens": 2147483647},
            "This model's maximum context length is 64 tokens. However, you request",
        ),
        ({"min_tokens": 60}, "This model's maximum context length is 64 tokens. However, you request"),
        (
            {"min_tokens": 1, "allowed_token_ids": [257]},
            "min_tokens is 1, though every token that may be generated ends the sequence; expected 0",
        ),
        (
            {"min_tokens": 1, "allowed_token_ids": [65], "stop_token_ids": [65]},
            "min_tokens is 1, though every token that may be generated ends the sequence; expected 0",
        ),
    ],
)
def test_what_cannot_be_generated_is_refused(narrow, ask, changes, message):
    """At once, with 400, and nothing reaches the engine."""
    answer = ask(**changes)
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith(message)
    assert answer.json()["error"]["param"] in ("min_tokens", "messages")
    assert not narrow.engine.requests


def test_the_default_of_a_silent_completion_gives_way(narrow, http):
    """A completion that names no limit has 16 tokens, or as many as it demands."""
    for least, most in [(3, 16), (16, 16), (17, 17), (CONTEXT - 1, CONTEXT - 1)]:
        narrow.engine.requests.clear()
        body = {"model": MODEL, "prompt": [65], "min_tokens": least}
        assert http.post("/v1/completions", json=body).status_code == 200
        [request] = narrow.engine.requests
        assert request.params.max_tokens == most
        assert_packs(request, VOCABULARY, CONTEXT)
    answer = http.post("/v1/completions", json=body | {"min_tokens": CONTEXT})
    assert answer.status_code == 400
