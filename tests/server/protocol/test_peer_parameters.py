"""What other servers know and this one does not honour is refused by name, on every route that generates."""

import pytest

from ..conftest import MODEL

BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
}
CHANGING = {
    "repeat_penalty": 1.1,
    "n_predict": 5,
    "typical_p": 0.5,
    "mirostat": 2,
    "xtc_probability": 0.5,
    "dry_multiplier": 0.8,
    "samplers": ["top_k"],
    "lora_path": "x",
    "stop_regex": "a+",
    "no_stop_trim": True,
    "return_tokens_as_token_ids": True,
    "return_hidden_states": True,
    "structural_tag": "x",
    "guided_whitespace_pattern": " ",
    "tool_prompt": "x",
    "guideline": "x",
}


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize("name", CHANGING)
def test_what_would_change_the_answer_is_refused(http, engine, route, name):
    body = BODIES[route] | {"model": MODEL, name: CHANGING[name]}
    error = http.post(route, json=body).json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter") and not engine.requests


@pytest.mark.parametrize("route", BODIES)
def test_integers_may_be_written_as_decimals(http, engine, route):
    """As JSON Schema, and clients in languages without integers, have them."""
    body = BODIES[route] | {"model": MODEL, "seed": 7.0, "top_k": 3.0, "stop_token_ids": [65.0]}
    assert http.post(route, json=body).status_code == 200
    params = engine.requests[-1].params
    assert (params.seed, params.top_k) == (7, 3) and 65 in params.stop_ids
    assert all(type(each) is int for each in params.stop_ids)
    error = http.post(route, json=body | {"top_k": 3.5}).json()["error"]
    assert (error["param"], error["code"]) == ("top_k", "invalid_type")


def test_tgi_counts_unknown_keys(http):
    def unknown() -> float:
        lines = http.get("/metrics").text.splitlines()
        name = "distaff_unknown_parameters_total "
        return next(float(line.split()[1]) for line in lines if line.startswith(name))

    before = unknown()
    body = {"inputs": "hi", "another": 1, "parameters": {"a_key_of_tomorrow": 1}}
    assert http.post("/generate", json=body).status_code == 200
    assert unknown() == before + 2
