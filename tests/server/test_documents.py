"""/openapi.json and /docs tell of every route and parameter there is, and of no other."""

import re

from distaff.server.protocol.meanings import ROUTES


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
        if method in ("GET", "POST")
    }
    assert described == served


def test_every_parameter_is_described(http):
    """All but those that are refused, with a type and a meaning."""
    paths = http.get("/openapi.json").json()["paths"]
    for route, parameters in ROUTES.items():
        schema = paths[route]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["properties"].keys() == parameters.honoured | parameters.checked
        assert all(each["type"] and each["description"] for each in schema["properties"].values())
        assert set(schema["required"]) <= schema["properties"].keys()


def test_the_page_needs_nothing_from_elsewhere(http):
    """No script, no foreign address, every route named; a policy that forbids the rest."""
    reply = http.get("/docs")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "<script" not in reply.text and "http" not in reply.text.replace("<!doctype html>", "")
    for path in http.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in reply.text


def test_keys_are_mentioned_where_there_are_some(http):
    assert "security" not in http.get("/openapi.json").json()
