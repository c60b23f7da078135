"""What the server says it honours is what it has, in JSON and in the docs."""

from dataclasses import replace

import httpx
import pytest

from distaff.server.protocol.openapi.meanings import MEANINGS, OWN_MEANINGS, ROUTES, describe
from distaff.server.protocol.sampling import KINDS
from distaff.server.text.text_model import NoDefaults

from ...tools.api_tables import PAGE, filled


def test_every_parameter_is_explained_and_no_other():
    """Those that are honoured or checked; of refused ones there is nothing to explain."""
    named = {name: {*route.honoured, *route.checked} for name, route in ROUTES.items()}
    assert set().union(*named.values()) == MEANINGS.keys() | set().union(*OWN_MEANINGS.values())
    assert all(own.keys() <= named[route] for route, own in OWN_MEANINGS.items())


@pytest.mark.parametrize("route", ROUTES)
def test_no_parameter_has_two_fates(route):
    """Honoured, checked or refused."""
    parameters = ROUTES[route]
    names = [*parameters.honoured, *parameters.checked, *parameters.refused]
    assert len(names) == len(set(names)) == len(parameters.kinds)


def test_the_tables_in_the_docs_are_the_codes():
    """`python -m tests.tools.api_tables` writes them."""
    assert filled(PAGE.read_text()) == PAGE.read_text()
    assert PAGE.read_text().count("| parameter | here | |") == len(ROUTES)


def test_the_server_tells_the_same(http):
    """With the model, its context and its way of calling tools."""
    told = http.get("/v1/capabilities").json()
    assert told["routes"] == {f"POST {route}": describe(route) for route in ROUTES}
    assert told["model"] == "org/fake-model" and told["max_model_len"] == 4096
    assert told["tool_format"] == "hermes" and told["prompt_scores"] is True and told["slots"] == 4


def test_defaults_are_what_a_silent_request_has(make_server):
    """Every sampling parameter, with the checkpoint's recommendation; sending a default changes nothing."""
    server = make_server(default_max_tokens=7)
    server.served.defaults = NoDefaults(temperature=0.6, top_k=5)
    body = {"model": "tgi", "messages": [{"role": "user", "content": "hi"}]}
    with httpx.Client(base_url=server.url) as http:
        told = http.get("/v1/capabilities").json()["defaults"]
        said = {name: value for name, value in told.items() if value is not None}
        for more in ({}, said):
            assert http.post("/v1/chat/completions", json=body | more).status_code == 200
    assert told.keys() == KINDS.keys() - {"max_new_tokens"}
    assert (told["max_tokens"], told["temperature"], told["top_k"], told["top_p"]) == (7, 0.6, 5, 1.0)
    silent, spelled = (replace(request.params, seed=0) for request in server.engine.requests)
    assert silent == spelled


BODIES = {
    "/v1/chat/completions": {"model": "tgi", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"model": "tgi", "input": "hi"},
    "/v1/completions": {"model": "tgi", "prompt": "hi"},
    "/v1/messages": {"model": "tgi", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/v1/messages/count_tokens": {"model": "tgi", "messages": [{"role": "user", "content": "hi"}]},
}
OBJECTS = (
    *("prompt_cache_options", "metadata", "reasoning", "stream_options", "thinking", "cache_control"),
    *("context_management", "diagnostics", "output_config"),
)


@pytest.mark.parametrize("route", BODIES)
def test_what_is_refused_is_refused(http, route):
    """By name; it passes with each value that the table accepts, and 1.0 is 1."""
    told = {entry["name"]: entry for entry in describe(route) if entry["status"] == "refused"}
    told.pop("previous_response_id", None)
    assert told
    for name, entry in told.items():
        error = http.post(route, json=BODIES[route] | {name: ["no such value"]}).json()["error"]
        assert error["message"].startswith(f"Unsupported parameter: '{name}'")
        if "messages" not in route:  # an error of Anthropic's has no other keys
            assert (error["code"], error["param"]) == ("unsupported_parameter", name)
        for value in entry["accepted"]:
            for same in (value, float(value)) if type(value) is int else (value,):
                assert http.post(route, json=BODIES[route] | {name: same}).status_code == 200


@pytest.mark.parametrize("route", BODIES)
def test_what_has_no_effect_is_checked(http, route):
    """A value of the wrong type is refused."""
    told = [entry["name"] for entry in describe(route) if entry["status"] == "no effect"]
    assert told
    for name in told:
        wrong = "text" if name in (*OBJECTS, "max_tool_calls", "id_slot") else 5
        assert http.post(route, json=BODIES[route] | {name: wrong}).status_code == 400, name
