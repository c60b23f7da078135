"""32 calls as different as the protocols allow, and their results without disturbance.

Chats, completions, responses and TGI's routes; greedy and seeded; schemas, tools, several choices,
log-probabilities, penalties; streamed and in one piece. The length of each is chosen so that it takes 5 to 15
s on the measured server.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .replies import Content, content_of
from .sse import Answer, Call, ask

SHORTEST_SECONDS, LONGEST_SECONDS = 5.0, 15.0
_FIRST_TOKENS = 128
_ROUNDS = 3
"""How often lengths are corrected, because calls that end early leave more capacity to the others."""
_NUMBERS = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "values": {"type": "array", "items": {"type": "integer"}, "minItems": 4000},
    },
    "required": ["name", "values"],
    "additionalProperties": False,
}
_TOOL = {"name": "record", "description": "Records values.", "parameters": _NUMBERS, "strict": True}
_SEEDED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95}
_GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
_PENALTIES: dict[str, Any] = {
    "frequency_penalty": 0.3,
    "presence_penalty": 0.2,
    "repetition_penalty": 1.1,
}
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": _NUMBERS, "strict": True}}
_LIMITS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/v1/messages": "max_tokens",
}


@dataclass(frozen=True, slots=True)
class Expected:
    """A call, its result without disturbance, and how many seconds it took."""

    call: Call
    content: Content
    seconds: float


def with_limit(call: Call, tokens: int) -> Call:
    """The same call with another limit of tokens."""
    body = body_of(call)
    if call.path in _LIMITS:
        body[_LIMITS[call.path]] = tokens
    else:
        body["parameters"] = {**body["parameters"], "max_new_tokens": tokens}
    return replace(call, body=body)


def body_of(call: Call) -> dict[str, Any]:
    """The parameters of a call that has a body in JSON."""
    assert not isinstance(call.body, bytes)
    return dict(call.body or {})


def limit_of(call: Call) -> int:
    """The limit of tokens that a call has."""
    body = body_of(call)
    return body[_LIMITS[call.path]] if call.path in _LIMITS else body["parameters"]["max_new_tokens"]


def calls() -> list[Call]:
    """All 32, with a small limit of tokens."""
    made = [*_chats(), *_completions(), *_responses(), *_generations()]
    return [with_limit(call, _FIRST_TOKENS) for call in made]


def _chats() -> list[Call]:
    tools = {"tools": [{"type": "function", "function": _TOOL}], "tool_choice": "required"}
    kinds: list[dict[str, Any]] = [
        _GREEDY,
        _seeded(1),
        _GREEDY | {"response_format": _SCHEMA},
        _seeded(2) | {"response_format": _SCHEMA},
        {"temperature": 0} | tools,
        _seeded(3) | tools,
        _seeded(4) | {"n": 4},
        _GREEDY | {"logprobs": True},
        _seeded(5) | {"n": 2, "logprobs": True, "top_logprobs": 3},
        _GREEDY | _PENALTIES,
        _seeded(6) | _PENALTIES | {"logit_bias": {"40": 2}, "min_tokens": 8},
        _GREEDY | {"stream": False},
        _seeded(7) | {"stream": False, "response_format": _SCHEMA},
        _seeded(8) | {"stream": False, "logprobs": True} | _PENALTIES,
    ]
    messages = [[{"role": "user", "content": _topic(number)}] for number in range(len(kinds))]
    return [
        _call("/v1/chat/completions", {"messages": m} | kind) for m, kind in zip(messages, kinds, strict=True)
    ]


def _completions() -> list[Call]:
    kinds: list[dict[str, Any]] = [
        _GREEDY,
        _seeded(11),
        _seeded(12) | {"n": 4},
        _GREEDY | {"logprobs": 2},
        _seeded(13) | _PENALTIES,
        _seeded(14) | {"guided_regex": "([a-z]{1,8} ){4000}"},
        _seeded(15) | {"prompt": ["One prompt", "and another one"]},
        _seeded(16) | {"stream": False, "n": 2},
    ]
    return [_call("/v1/completions", {"prompt": _topic(20 + n)} | kind) for n, kind in enumerate(kinds)]


def _responses() -> list[Call]:
    form = {"type": "json_schema", "name": "numbers", "schema": _NUMBERS, "strict": True}
    kinds: list[dict[str, Any]] = [
        _GREEDY,
        _seeded(21) | _PENALTIES,
        _seeded(22) | {"text": {"format": form}},
        {"temperature": 0, "tools": [{"type": "function", **_TOOL}], "tool_choice": "required"},
        _seeded(23) | {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
        _seeded(24) | {"stream": False},
    ]
    return [_call("/v1/responses", {"input": _topic(30 + n)} | kind) for n, kind in enumerate(kinds)]


def _generations() -> list[Call]:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("/generate_stream", {}),
        ("/generate_stream", {"do_sample": True, "seed": 31, "temperature": 0.8}),
        ("/generate_stream", {"seed": 32, "temperature": 0.8, "repetition_penalty": 1.1}),
        ("/generate", {"do_sample": True, "seed": 33, "details": True}),
    ]
    return [
        Call(path, {"inputs": _topic(40 + n), "parameters": kind}) for n, (path, kind) in enumerate(kinds)
    ]


def _seeded(seed: int) -> dict[str, Any]:
    return _SEEDED | {"seed": seed, "ignore_eos": True}


def _topic(number: int) -> str:
    return f"Story {number}: write down everything that comes to mind about the number {number}."


def _call(path: str, body: Mapping[str, Any]) -> Call:
    """A call that is streamed, unless `body` sets `stream`, and ends with its usage."""
    full = {"model": "tgi", "stream": True, **body}
    if full["stream"] and path != "/v1/responses":
        full["stream_options"] = {"include_usage": True}
    return Call(path, full)


async def undisturbed(url: str, asked: Sequence[Call], key: str | None = None) -> list[Expected]:
    """The results of all calls, sent at once.

    Raises:
      RuntimeError: one of them fails without disturbance.
    """

    async def one(call: Call) -> Expected:
        answer = await ask(url, call, key)
        received = content_of(call.path, answer)
        if received.error:
            raise RuntimeError(f"{call.path} {body_of(call)} fails undisturbed: {received.error}")
        return Expected(call, received, _seconds(answer))

    return await asyncio.gather(*map(one, asked))


def _seconds(answer: Answer) -> float:
    return answer.pieces[-1][0] - answer.asked


async def sized(url: str, asked: Sequence[Call], context: int) -> list[Call]:
    """The calls with token limits that give the intended durations; each has its own duration."""
    for _ in range(_ROUNDS):
        measured = await undisturbed(url, asked)
        asked = [
            with_limit(each.call, _length(each, number, context)) for number, each in enumerate(measured)
        ]
    return list(asked)


def _length(measured: Expected, number: int, context: int) -> int:
    """The limit that gives the duration for a call's number, at the measured speed."""
    wanted = SHORTEST_SECONDS + (LONGEST_SECONDS - SHORTEST_SECONDS) * (1 + number % 4) / 5
    pace = limit_of(measured.call) / measured.seconds
    return max(16, min(round(pace * wanted), context))
