"""The events of a streamed response; their names, numbers and framing are checked."""

import json
from typing import Any

import httpx

from ..conftest import MODEL


def post_response(http: httpx.Client, **changes: Any) -> httpx.Response:
    """Posts a usual body with some keys changed."""
    return http.post("/v1/responses", json={"model": MODEL, "input": "hi"} | changes)


def events_of(answered: httpx.Response) -> list[dict[str, Any]]:
    *parts, nothing = answered.content.decode().split("\n\n")
    assert nothing == ""
    heads, bodies = zip(*(part.split("\n") for part in parts), strict=True)
    told = [json.loads(body.removeprefix("data: ")) for body in bodies]
    assert [f"event: {each['type']}" for each in told] == list(heads)
    assert [each["sequence_number"] for each in told] == list(range(len(told)))
    return told


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Their types, with repetitions of deltas left out."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
