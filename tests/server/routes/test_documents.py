"""/openapi.json and /docs tell of every route and parameter there is, and of no other."""

import re

import httpx

from distaff.server.metrics import CONTENT_TYPE
from distaff.server.protocol.openapi.meanings import ROUTES


def test_every_route_is_described(http, server):
    """The app's own table of routes, with its methods."""
    described = {
        (method, re.sub(r"{.*?}", "*", path))
        for path, methods in http.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    served = {
        (method.lower(), "/" + re.sub(r"<.*?>", "*", route.path))
        for route in server.app.router.routes
        for method in route.methods
        if method in ("GET", "POST", "DELETE")
    }
    assert described == served


def test_every_parameter_is_described(http):
    """With what it may be and a meaning; what its schema says is what the parser reads by."""
    paths = http.get("/openapi.json").json()["paths"]
    for route, parameters in ROUTES.items():
        schema = paths[route]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["properties"].keys() == parameters.kinds.keys()
        for each in schema["properties"].values():
            assert each["description"] and each.keys() & {"type", "anyOf", "enum"}
        assert set(schema["required"]) <= schema["properties"].keys()


def test_the_page_needs_nothing_from_elsewhere(http):
    """No script, no foreign address, every route named; a policy that forbids the rest."""
    reply = http.get("/docs")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "<script" not in reply.text and "http" not in reply.text.replace("<!doctype html>", "")
    for path in http.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in reply.text


def test_the_page_tells_what_is_refused_after_all_else(http):
    """Each operation's table begins with what does something; values are written as in JSON."""
    page = http.get("/docs").text
    chat = page[page.index("/v1/chat/completions</code>") :].split("</details>")[0]
    table, below = chat.split("</table>")
    assert "<code>messages</code>" in table and "<code>use_beam_search</code>" not in table
    assert "<code>use_beam_search</code> (except <code>false</code>)" in below
    assert "<code>length_penalty</code> (except <code>1</code>)" in below


def test_limits_are_those_of_the_server(make_server):
    """Names, choices and stop strings are the operator's, context and vocabulary the model's."""
    server = make_server(strict=True, most_choices=3, alias=["other"])
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    schema = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    told = schema["properties"]
    assert told["model"]["enum"] == ["org/fake-model", "other", "tgi"]
    assert (told["n"]["minimum"], told["n"]["maximum"], told["n"]["type"]) == (1, 3, ["integer", "null"])
    assert told["stop"]["anyOf"][1]["maxItems"] == 4 and told["tools"]["minItems"] == 1
    assert told["max_tokens"]["maximum"] == 4096 and schema["additionalProperties"] is False
    assert told["stop_token_ids"]["items"]["maximum"] == 258
    assert set(told["chat_template_kwargs"]["properties"]) == {"style"}
    assert schema["required"] == ["model", "messages"]


def test_errors_are_described_in_the_shape_of_their_route(http):
    paths = http.get("/openapi.json").json()["paths"]

    def shape(path: str, status: str) -> str:
        content = paths[path]["post"]["responses"][status]["content"]
        return content["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]

    assert [shape("/generate", status) for status in ("422", "424", "429")] == ["TgiError"] * 3
    assert shape("/generate", "413") == shape("/v1/completions", "400") == "Error"
    assert list(paths["/docs"]["get"]["responses"]["200"]["content"]) == ["text/html"]
    assert list(paths["/metrics"]["get"]["responses"]["200"]["content"]) == [CONTENT_TYPE]


def test_keys_are_mentioned_where_there_are_some(http):
    assert "security" not in http.get("/openapi.json").json()
