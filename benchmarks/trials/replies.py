"""The content of an answer in any of the five protocols, in a form that can be compared between runs.

Ids and times are left out; texts, calls, finish reasons, token names and usage must be equal. The one idea:
the same function reads a streamed answer and one in one piece.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .sse import Answer

Events = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Content:
    """The content of an answer.

    Attributes:
      choices: text, calls, finish reason and token names of each.
      logprobs: of all tokens, if requested. usage: prompt and completion tokens.
      error: the error with which it ended, if any. refused: it never began.
    """

    choices: tuple[Any, ...] = ()
    logprobs: tuple[float, ...] = ()
    usage: tuple[int, int] | None = None
    error: str | None = None
    refused: bool = False


def content_of(path: str, answer: Answer) -> Content:
    """Reads the answer to a call of `path`."""
    if answer.status != 200:
        refused = answer.status == 503
        return Content(error=f"status {answer.status}: {answer.body[:200]!r}", refused=refused)
    streamed = answer.headers.get("content-type", "").startswith("text/event-stream")
    if streamed:
        events = [event for _, event in answer.events()]
    else:
        events = [json.loads(answer.body)] if answer.whole else []
    for event in events:
        if event.get("error"):
            return Content(error=json.dumps(event["error"])[:200])
    if not answer.whole or (streamed and not _closed(path, answer, events)):
        return Content(error="cut off")
    return _FOLDS[path](events)


def first_token(answer: Answer) -> float | None:
    """Seconds from the request to the first event with generated content; None: there was none."""
    return next((moment - answer.asked for moment, event in answer.events() if _has_content(event)), None)


def longest_pause(answer: Answer) -> float:
    """The maximum number of seconds between events with generated content, or before the first.

    Comments do not count, and neither does the time before a tool call starts: its mark and its name, a dozen
    tokens, are one event.
    """
    longest, last = 0.0, answer.answered
    for moment, event in answer.events():
        if _starts_call(event):
            last = moment
        elif _has_content(event):
            longest, last = max(longest, moment - last), moment
    return longest


def _closed(path: str, answer: Answer, events: Events) -> bool:
    """Whether a stream has reached its protocol's end."""
    if path == "/v1/responses":
        return bool(events) and events[-1]["type"] in ("response.completed", "response.incomplete")
    if path == "/v1/messages":
        return bool(events) and events[-1]["type"] == "message_stop"
    if path == "/generate_stream":
        return bool(events) and events[-1]["generated_text"] is not None
    return answer.body.endswith(b"data: [DONE]\n\n")


def _has_content(event: dict[str, Any]) -> bool:
    if "token" in event:
        return True
    if "choices" in event:
        return any(_text_of(choice) for choice in event["choices"])
    return str(event.get("type", "")).endswith(".delta")


def _starts_call(event: dict[str, Any]) -> bool:
    """Whether it has a call's id and name, before the arguments."""
    if event.get("type") == "response.output_item.added":
        return event["item"]["type"] == "function_call"
    made = [(choice.get("delta") or {}).get("tool_calls") or () for choice in event.get("choices", ())]
    return any("id" in call for calls in made for call in calls)


def _text_of(choice: dict[str, Any]) -> Any:
    delta = choice.get("delta") or {}
    return choice.get("text") or delta.get("content") or delta.get("tool_calls")


def _chat(events: Events) -> Content:
    folded: dict[int, dict[str, Any]] = {}
    for choice in (choice for event in events for choice in event["choices"]):
        one = folded.setdefault(choice["index"], {"text": "", "calls": [], "finish": None, "entries": []})
        message = choice.get("delta") or choice.get("message") or {}
        one["text"] += message.get("content") or ""
        one["finish"] = choice["finish_reason"] or one["finish"]
        one["entries"] += (choice.get("logprobs") or {}).get("content") or []
        for call in message.get("tool_calls") or ():
            if "id" in call:
                one["calls"].append(call["function"]["name"])
            one["calls"].append(call["function"]["arguments"])
    ordered = [one for _, one in sorted(folded.items())]
    choices = tuple(
        (one["text"], _calls(one["calls"]), one["finish"], _names(one["entries"])) for one in ordered
    )
    return Content(choices, _values(entry for one in ordered for entry in one["entries"]), _usage(events))


def _calls(pieces: Iterable[str]) -> str:
    return "".join(pieces)


def _completion(events: Events) -> Content:
    folded: dict[int, dict[str, Any]] = {}
    for choice in (choice for event in events for choice in event["choices"]):
        one = folded.setdefault(choice["index"], {"text": "", "finish": None, "names": [], "values": []})
        one["text"] += choice["text"]
        one["finish"] = choice["finish_reason"] or one["finish"]
        one["names"] += (choice.get("logprobs") or {}).get("tokens") or []
        one["values"] += (choice.get("logprobs") or {}).get("token_logprobs") or []
    ordered = [one for _, one in sorted(folded.items())]
    choices = tuple((one["text"], one["finish"], tuple(one["names"])) for one in ordered)
    return Content(choices, tuple(value for one in ordered for value in one["values"]), _usage(events))


def _response(events: Events) -> Content:
    """The object in the last event; the deltas before it must add up to the same text."""
    final = events[-1].get("response") or events[-1]
    texts = ["".join(part["text"] for part in item.get("content", ())) for item in final["output"]]
    whole = [text + item.get("arguments", "") for text, item in zip(texts, final["output"], strict=True)]
    deltas = "".join(event["delta"] for event in events if str(event.get("type")).endswith(".delta"))
    if len(events) > 1 and deltas != "".join(whole):
        return Content(error="the deltas do not add up to the answer")
    names = [item.get("name") for item in final["output"]]
    parts = [part for item in final["output"] for part in item.get("content", ())]
    entries = [entry for part in parts for entry in part.get("logprobs") or ()]
    usage = final["usage"]
    choice = (tuple(whole), tuple(names), final["status"], _names(entries))
    return Content((choice,), _values(entries), (usage["input_tokens"], usage["output_tokens"]))


def _generated(events: Events) -> Content:
    final = events[-1]
    details = final.get("details") or {}
    tokens = [event["token"] for event in events if "token" in event] or details.get("tokens") or []
    choice = (final["generated_text"], details.get("finish_reason"), tuple(token["id"] for token in tokens))
    values = tuple(token["logprob"] for token in tokens if token["logprob"] is not None)
    return Content(
        (choice,), values, (details.get("input_length") or 0, details.get("generated_tokens") or 0)
    )


def _message(events: Events) -> Content:
    """Blocks of text and of tool calls; a streamed one is the sum of its deltas."""
    if events[0].get("type") == "message":
        (final,) = events
        blocks = [block.get("text") or json.dumps(block.get("input")) for block in final["content"]]
        return _told(blocks, final["stop_reason"], final["usage"])
    folded: dict[int, str] = {}
    for event in (event for event in events if event["type"] == "content_block_delta"):
        piece = event["delta"].get("text") or event["delta"].get("partial_json") or ""
        folded[event["index"]] = folded.get(event["index"], "") + piece
    (last,) = (event for event in events if event["type"] == "message_delta")
    return _told([text for _, text in sorted(folded.items())], last["delta"]["stop_reason"], last["usage"])


def _told(blocks: Sequence[str], stopped: str, usage: dict[str, Any]) -> Content:
    return Content(((tuple(blocks), stopped),), (), (usage["input_tokens"], usage["output_tokens"]))


def _names(entries: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(entry["token"] for entry in entries)


def _values(entries: Iterable[dict[str, Any]]) -> tuple[float, ...]:
    return tuple(entry["logprob"] for entry in entries)


def _usage(events: Events) -> tuple[int, int] | None:
    usage = next((event["usage"] for event in reversed(events) if event.get("usage")), None)
    return usage and (usage["prompt_tokens"], usage["completion_tokens"])


_FOLDS = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
    "/v1/messages": _message,
    "/generate": _generated,
    "/generate_stream": _generated,
}
