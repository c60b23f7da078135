"""What a soak sends, and whether the answer is the right one.

The calls of `trials/mixed.py`, messages of Anthropic's protocol and constraints that are short enough to be
complete, each with its own length; and requests that must be refused, each with its status. The one idea:
a call whose answer may not end by itself has as many tokens as its limit allows, so their number is known.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..trials import mixed
from ..trials.replies import Content, content_of
from ..trials.sse import Answer, Call

SHORTEST, LONGEST = 16, 128
"""Tokens of an answer."""
_ENOUGH = 400
"""Tokens that no complete answer under a short constraint needs."""
_OVERLOADED = {"/v1/messages": 529, "/generate": 429, "/generate_stream": 429}
"""The status of a refusal under load, where it is not 503."""
_PATTERN = "[a-c]{3,5}-[0-9]{2}"
_RECORD = {
    "type": "object",
    "properties": {
        "word": {"type": "string", "maxLength": 8},
        "numbers": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
    },
    "required": ["word", "numbers"],
    "additionalProperties": False,
}
_TOOL = "record"
_FORM = {"type": "json_schema", "json_schema": {"name": "record", "schema": _RECORD, "strict": True}}
_SAMPLED: dict[str, Any] = {"model": "tgi", "temperature": 0.8}

Judge = Callable[[Call, Content], str | None]
"""Says what is wrong with the content of an answer; None: nothing."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A call and how its answer is judged.

    Attributes:
      status: the only right one besides a refusal under load. key: instead of the client's, if any.
    """

    call: Call
    judge: Judge | None = None
    status: int = 200
    key: str | None = None


def fault_of(asked: Asked, answer: Answer) -> str | None:
    """What is wrong with an answer; None if it is right, or a refusal under load that says when to return."""
    if is_refusal(asked, answer):
        return None
    if answer.status != asked.status:
        return f"status {answer.status}, not {asked.status}: {answer.body[:200]!r}"
    if asked.judge is None:
        return None if b'"error"' in answer.body else f"an error without its object: {answer.body[:200]!r}"
    try:
        content = content_of(asked.call.path, answer)
        return content.error or asked.judge(asked.call, content)
    except (LookupError, TypeError, ValueError) as error:
        return f"unreadable: {error!r}"


def is_refusal(asked: Asked, answer: Answer) -> bool:
    """Whether a server under load has said when to return, with the status of the protocol."""
    status = _OVERLOADED.get(asked.call.path, 503)
    return answer.status == status and answer.whole and answer.retry_after is not None


class Mix:
    """Draws calls; two with the same seed draw the same."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._long = [*mixed.calls(), *_messages()]

    def draw(self) -> Asked:
        """A valid call: one in six has a constraint that ends it, the others a limit of tokens."""
        text = f"Call {self._random.getrandbits(40)}: tell me about it."
        if self._random.random() < 1 / 6:
            return self._random.choice(_short(text, self._random.random() < 0.5))
        call = self._random.choice(self._long)
        limit = self._random.randint(SHORTEST, LONGEST)
        return Asked(mixed.with_limit(_about(call, text), limit), is_as_long_as_allowed)

    def draw_malformed(self) -> Asked:
        """A request that must be refused."""
        return self._random.choice(MALFORMED)


def _messages() -> list[Call]:
    asked = {"model": "tgi", "messages": [{"role": "user", "content": ""}], "max_tokens": 1}
    tool = {"name": _TOOL, "description": "Records values.", "input_schema": _RECORD}
    return [
        Call("/v1/messages", asked | more)
        for more in (
            {"stream": True},
            {"stream": False},
            {"stream": True, "system": "Be brief.", "tools": [tool]},
        )
    ]


def _about(call: Call, text: str) -> Call:
    """The same call with another text, so that it is not answered from the prefix cache alone."""
    body = mixed.body_of(call)
    for name in ("input", "inputs", "messages", "prompt"):
        if name in body:
            old = body[name]
            body[name] = [{"role": "user", "content": text}] if name == "messages" else text
            if isinstance(old, list) and name == "prompt":
                body[name] = [text, f"{text} Again."]
    return Call(call.path, body)


def _short(text: str, stream: bool) -> list[Asked]:
    """Constraints in each protocol that has them, which end before the limit of tokens."""
    messages = [{"role": "user", "content": text}]
    chat = _SAMPLED | {"messages": messages, "stream": stream, "max_tokens": _ENOUGH}
    completion = _SAMPLED | {"prompt": text, "stream": stream, "max_tokens": _ENOUGH}
    function = {"name": _TOOL, "parameters": _RECORD, "strict": True}
    tools: dict[str, Any] = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    tools["parallel_tool_calls"] = False  # the limit of tokens could cut off a second call
    return [
        Asked(Call("/v1/chat/completions", chat | {"response_format": _FORM}), is_record),
        Asked(Call("/v1/chat/completions", chat | tools), is_record),
        Asked(Call("/v1/completions", completion | {"guided_regex": _PATTERN}), matches),
    ]


def is_as_long_as_allowed(call: Call, content: Content) -> str | None:
    """Every choice has all tokens of the limit, or fewer if the model may end it."""
    body = mixed.body_of(call)
    prompts = body.get("prompt")
    wanted = body.get("n", 1) * (len(prompts) if isinstance(prompts, list) else 1)
    if len(content.choices) != wanted:
        return f"{len(content.choices)} choices, not {wanted}"
    most = wanted * mixed.limit_of(call)
    least = most if body.get("ignore_eos") else 1
    if content.usage is None or not least <= content.usage[1] <= most:
        return f"usage is {content.usage}; expected {least} to {most} tokens"
    return None


def is_record(call: Call, content: Content) -> str | None:
    """The text is an object of the schema, or the arguments of each tool call are."""
    ((text, calls, *_),) = content.choices
    found = calls.split(_TOOL)[1:] if calls else [text]
    wrong = [each for each in found if not _is_of_the_schema(json.loads(each))]
    return f"not of the schema: {wrong[0]!r}" if wrong else None


def _is_of_the_schema(found: Any) -> bool:
    return (
        set(found) == {"word", "numbers"}
        and isinstance(found["word"], str)
        and len(found["word"]) <= 8
        and 2 <= len(found["numbers"]) <= 3
        and all(type(number) is int for number in found["numbers"])
    )


def matches(call: Call, content: Content) -> str | None:
    """The text matches the pattern."""
    ((text, *_),) = content.choices
    return None if re.fullmatch(_PATTERN, text) else f"does not match: {text!r}"


def _chat(**more: Any) -> Call:
    body = {"model": "tgi", "messages": [{"role": "user", "content": "Hello!"}]}
    return Call("/v1/chat/completions", body | more)


MALFORMED = (
    Asked(Call("/v1/chat/completions", b'{"model": "tgi", "messages": [{"role"'), status=400),
    Asked(Call("/v1/chat/completions", b"\xff\x00 no JSON"), status=400),
    Asked(_chat(messages=[]), status=400),
    Asked(_chat(max_tokens=-1), status=400),
    Asked(_chat(temperature="warm"), status=400),
    Asked(_chat(n=1000), status=400),
    Asked(_chat(model="another-model"), status=404),
    Asked(_chat(tool_choice="required"), status=400),
    Asked(
        _chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}),
        status=400,
    ),
    Asked(Call("/v1/completions", {"model": "tgi", "prompt": [-1]}), status=400),
    Asked(Call("/v1/responses", {"model": "tgi", "input": 7}), status=400),
    Asked(
        Call("/v1/messages", {"model": "tgi", "messages": [{"role": "user", "content": "Hello!"}]}),
        status=400,
    ),
    Asked(Call("/generate", {"inputs": "Hello!", "parameters": {"temperature": -1}}), status=422),
    Asked(Call("/v1/nothing", {}), status=404),
    Asked(_chat(), status=401, key="a-key-that-never-was"),
)
