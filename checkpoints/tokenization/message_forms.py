"""A conversation in other forms, for chat templates that refuse the original.

OpenAI's API accepts messages in any order, several calls in one message and ids of any kind; many templates
do not. Each form has the same content within narrower rules. The one idea: forms are ordered by how much they
change, so that the first one that a template accepts is the smallest change. Plain JSON in and out.
"""

import hashlib
import re
import string
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

Message = Mapping[str, Any]
Messages = Sequence[Message]

_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_LETTERS = string.ascii_letters + string.digits


def other_forms(messages: Messages) -> Iterator[Messages]:
    """The conversation in other forms, without duplicates; the smallest change comes first.

    What may change is the order of roles (in three steps), the number of calls in a message, and their ids.
    """
    orders = (_same, merge_roles, _merge_late_system, _alternate)
    seen: list[Messages] = [messages]
    for order, calls, ids in sorted(product(range(4), range(2), range(2)), key=sum)[1:]:
        form = orders[order](messages)
        form = split_calls(form) if calls else form
        form = shorten_ids(form) if ids else form
        if form not in seen:
            seen.append(form)
            yield form


def fold_system(messages: Messages) -> Messages:
    """Without the system role: its text is added before the first user message; later system messages become
    user messages."""
    if not messages or messages[0].get("role") != "system":
        return _late_system_as_user(messages)
    system, rest = messages[0].get("content") or "", [*_late_system_as_user(messages[1:], lead=False)]
    for place, message in enumerate(rest):
        if message.get("role") == "user":
            rest[place] = {**message, "content": _join(system, message.get("content"))}
            return rest
    return [{"role": "user", "content": system}, *rest]


def merge_roles(messages: Messages) -> Messages:
    """Merges consecutive messages of one role; results of tools are not merged."""
    merged: list[Message] = []
    for message in messages:
        role = message.get("role")
        if merged and merged[-1].get("role") == role != "tool":
            merged[-1] = _merge(merged[-1], message)
        else:
            merged.append(message)
    return merged


def split_calls(messages: Messages) -> Messages:
    """Puts each call in a separate message, followed by its result; the text stays in the first one."""
    split: list[Message] = []
    rest = deque(messages)
    while rest:
        message = rest.popleft()
        if len(message.get("tool_calls") or ()) < 2:
            split.append(message)
            continue
        results: defaultdict[Any, deque[Message]] = defaultdict(deque)
        while rest and rest[0].get("role") == "tool":
            result = rest.popleft()
            results[result.get("tool_call_id")].append(result)
        for number, call in enumerate(message["tool_calls"]):
            content = "" if number else message.get("content")
            split.append({**message, "content": content, "tool_calls": [call]})
            if results[call.get("id")]:
                split.append(results[call.get("id")].popleft())
        split += [result for unmatched in results.values() for result in unmatched]
    return split


def shorten_ids(messages: Messages) -> Messages:
    """Replaces ids of calls by nine letters or digits; equal ids stay equal, different ids stay different."""
    calls = [call.get("id") for message in messages for call in message.get("tool_calls") or ()]
    ids = dict.fromkeys([*calls, *(m["tool_call_id"] for m in messages if "tool_call_id" in m)])
    short = {id: id for id in ids if isinstance(id, str) and _SHORT_ID.fullmatch(id)}
    taken = set(short)
    for id in ids:
        if id not in short:
            short[id] = next(each for each in _candidates(str(id)) if each not in taken)
            taken.add(short[id])
    return [_with_ids(message, short) for message in messages]


def _with_ids(message: Message, ids: Mapping[Any, str]) -> Message:
    changed = dict(message)
    if calls := message.get("tool_calls"):
        changed["tool_calls"] = [{**call, "id": ids[call.get("id")]} for call in calls]
    if "tool_call_id" in message:
        changed["tool_call_id"] = ids[message["tool_call_id"]]
    return changed


def _candidates(id: str) -> Iterator[str]:
    """Short ids for a long one; the same in every conversation unless the first is in use."""
    digest = id.encode("utf-8", "surrogatepass")
    while True:
        digest = hashlib.sha256(digest).digest()
        yield "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:9])


def _same(messages: Messages) -> Messages:
    return messages


def _merge_late_system(messages: Messages) -> Messages:
    return merge_roles(_late_system_as_user(messages))


def _late_system_as_user(messages: Messages, *, lead: bool = True) -> Messages:
    """System messages become user messages, except leading ones if `lead` is true."""
    changed: list[Message] = []
    for message in messages:
        system = message.get("role") == "system"
        lead = lead and system
        changed.append({**message, "role": "user"} if system and not lead else message)
    return changed


def _alternate(messages: Messages) -> Messages:
    """User and assistant alternate, the user first: empty messages replace missing ones.

    Messages with calls and results of tools are not counted, as in Mistral's templates.
    """
    alternating: list[Message] = []
    turn = "user"
    for message in _merge_late_system(messages):
        role = message.get("role")
        if role in ("user", "assistant") and not message.get("tool_calls"):
            if role != turn:
                alternating.append({"role": turn, "content": ""})
            turn = "assistant" if role == "user" else "user"
        alternating.append(message)
    return alternating


def _merge(first: Message, second: Message) -> Message:
    merged = {**second, **first, "content": _join(first.get("content"), second.get("content"))}
    calls = [*(first.get("tool_calls") or ()), *(second.get("tool_calls") or ())]
    return merged | {"tool_calls": calls} if calls else merged


def _join(first: Any, second: Any) -> Any:
    if not first or not second:
        return first or second or ""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_parts(first), {"type": "text", "text": "\n\n"}, *_parts(second)]


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
