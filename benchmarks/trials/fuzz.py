"""A long fuzz of a running server: `python -m benchmarks.trials.fuzz URL --seconds 3600`.

Two sources of requests alternate until the time is over: schemathesis, which draws within and outside what
`/openapi.json` allows, and random bodies for every route that accepts one: parameters of the route with
values of any type and size, and bytes that are not JSON. Counts the statuses, and prints each answer that
shows a defect with the request that caused it. Overload is not a defect: 503 with Retry-After, TGI's 429. An
engine's restart is detected in `/metrics`: its count of steps starts again. Exit code 1 for any defect or
restart.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok

_BATCH = 50
"""Requests of one operation before the next one."""
_MOST_SHOWN = 2000
_MOST_TOKENS = 16
"""The length of most answers, so that an hour has many."""
_JSON = (dict, list, str, int, float, bool, type(None))
_TEXT = {
    "messages": [{"role": "user", "content": "Hello!"}],
    "prompt": "Once",
    "input": "Hello!",
    "inputs": "a",
}

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**66), 2**66),
    st.integers(-2, 70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=20,
)


class Findings:
    """The results of all requests."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.defects = 0

    def note(self, operation: str, status: int, retry: bool, request: str, answer: str) -> None:
        """Counts an answer, and prints one that shows a defect."""
        self.statuses[f"{operation} {status}"] += 1
        overloaded = status == 503 and retry
        if status == 424 or (status >= 500 and not overloaded):
            self.failed(operation, f"{status} {answer[:_MOST_SHOWN]}", request)

    def failed(self, operation: str, answer: str, request: str) -> None:
        """Prints what went wrong."""
        self.defects += 1
        print(f"DEFECT {operation}\n  request: {request[:_MOST_SHOWN]}\n  answer: {answer}", flush=True)


class Restarts:
    """The number of engine restarts, according to the counts of steps."""

    def __init__(self) -> None:
        self.seen = 0
        self._steps: dict[str, float] = {}

    def look(self, client: httpx.Client) -> None:
        """Compares each replica's steps with the previous scrape."""
        for line in client.get("/metrics").text.splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith("distaff_engine_steps_total"):
                self.seen += float(value) < self._steps.get(name, 0)
                self._steps[name] = float(value)


def main() -> int:
    """Fuzzes until the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="of the server, without /v1")
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="for all random choices")
    parser.add_argument("--key", help="an API key, if the server needs one")
    arguments = parser.parse_args()
    headers = {"authorization": f"Bearer {arguments.key}"} if arguments.key else {}
    findings, deadline = Findings(), time.monotonic() + arguments.seconds
    with httpx.Client(base_url=arguments.url, headers=headers, timeout=120) as client:
        document, restarts = client.get("/openapi.json").json(), Restarts()
        rounds = random.Random(arguments.seed)
        while time.monotonic() < deadline:
            number = rounds.randrange(2**32)
            _explore(document, client, findings, number, deadline)
            restarts.look(client)
            _send_random_bodies(document, client, findings, number, deadline)
            restarts.look(client)
    for name, count in sorted(findings.statuses.items()):
        print(f"{count:8} {name}")
    total = findings.statuses.total()
    print(f"{total} requests, {findings.defects} defects, {restarts.seen} restarts of engines")
    return 1 if findings.defects or restarts.seen else 0


def _explore(
    document: dict[str, Any],
    client: httpx.Client,
    findings: Findings,
    number: int,
    deadline: float,
) -> None:
    """One round of schemathesis: requests within each operation's schema and outside it."""
    schema = schemathesis.openapi.from_dict(document)
    for result in schema.get_all_operations():
        if not isinstance(result, Ok):
            raise SystemExit(f"/openapi.json has an invalid operation: {result.err()}")
        operation = result.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            def ask(case: schemathesis.Case) -> None:
                body = _bound(case.body)
                content = json.dumps(body).encode() if isinstance(body, _JSON) else None
                if time.monotonic() < deadline:
                    _send(client, findings, case.method, case.formatted_path, content)

            try:
                _draw(operation.as_strategy(generation_mode=mode), ask, number)
            except Unsatisfiable:  # such as a body outside the schema if there is none
                findings.statuses[f"{operation.label} has nothing to draw, {mode.value}"] += 1


def _send_random_bodies(
    document: dict[str, Any], client: httpx.Client, findings: Findings, number: int, deadline: float
) -> None:
    """One round of bodies that follow no schema."""
    for path, methods in document["paths"].items():
        media = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
        if media is not None:
            names = sorted(media["schema"].get("properties", _TEXT))
            bodies = _bodies(names, media["example"])
            _draw(bodies, partial(_unless_late, client, findings, path, deadline), number)


def _unless_late(client: httpx.Client, findings: Findings, path: str, deadline: float, body: bytes) -> None:
    if time.monotonic() < deadline:
        _send(client, findings, "POST", path, body)


def _send(client: httpx.Client, findings: Findings, method: str, path: str, content: bytes | None) -> None:
    """Sends one request and records its result."""
    operation = f"{method} {path.partition('?')[0] if not path.startswith('/v1/models/') else '/v1/models/…'}"
    try:
        answer = client.request(method, path, content=content, headers={"content-type": "application/json"})
    except httpx.HTTPError as error:
        findings.failed(operation, repr(error), repr(content))
        return
    retry = "retry-after" in answer.headers
    findings.note(operation, answer.status_code, retry, repr(content), answer.text)


def _bodies(names: list[str], example: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """An example with some parameters replaced, or anything."""
    changes = st.dictionaries(st.sampled_from(names), _VALUES, max_size=5)
    changed = changes.map(lambda found: json.dumps(_bound(example | found)).encode())
    return st.one_of(
        changed, changed, _VALUES.map(lambda value: json.dumps(value).encode()), st.binary(max_size=64)
    )


def _bound(body: Any) -> Any:
    """Keeps most answers short; a drawn limit is not changed."""
    if isinstance(body, dict) and "inputs" not in body:
        for text, name in (
            ("messages", "max_tokens"),
            ("prompt", "max_tokens"),
            ("input", "max_output_tokens"),
        ):
            if text in body:
                body.setdefault(name, _MOST_TOKENS)
    return body


def _draw(strategy: st.SearchStrategy[Any], ask: Callable[[Any], None], number: int) -> None:
    """Draws a batch from a strategy, reproducible by its number; nothing is shrunk or stored."""

    def one(drawn: Any) -> None:
        ask(drawn)

    given_one = given(strategy)(one)
    options = settings(
        max_examples=_BATCH,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    seed(number)(options(given_one))()


if __name__ == "__main__":
    sys.exit(main())
