"""A conversation as Claude Code holds it, through the real engine: a turn finds the pages of the one before.

The shape is recorded from version 2.1; what its texts say is invented. Everything that differs between its
requests is here: the billing header and the count of tokens left, marks of the cache that move with the
newest block, and a reminder of the system that comes as a block first and as a string later.
"""

from pathlib import Path
from typing import Any

import httpx

from ..checkpoints.making import byte_level, make_model, save_folder
from .conftest import running

TURNS = 20
PAGE = 16
CONTEXT = 16_384
LEAST = 0.95
MARK = {"cache_control": {"type": "ephemeral"}}
TOOLS = [
    {
        "name": name,
        "description": f"{name} of a file in the current folder. " * 5,
        "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    }
    for name in ("Read", "Write", "Search")
]
Body = dict[str, Any]


def text(said: str) -> Body:
    return {"type": "text", "text": said}


def system(turn: int) -> list[Body]:
    """The system prompt, with what changes at every turn."""
    rules = "Work in small steps, and say what you did. " * 30
    return [
        text(
            f"x-anthropic-billing-header: cc_version=2.1.197.{turn:03x}; cc_entrypoint=cli; cch={turn:05x};"
        ),
        text("You are an agent that spins yarn.") | MARK,
        text(f"{rules}\n\n<total_tokens>{200_000 - 977 * turn} tokens left</total_tokens>") | MARK,
    ]


def exchange(turn: int) -> list[Body]:
    """One turn of the conversation: a question, a call and its result, an answer."""
    use = {
        "type": "tool_use",
        "id": f"toolu_{turn:024}",
        "name": "Read",
        "input": {"path": f"yarn{turn}.txt"},
    }
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": f"Wool, {turn} ply, dyed. " * 4}
    asked = [text("<system-reminder>\nBe brief.\n</system-reminder>"), text(f"What is in yarn{turn}.txt?")]
    return [
        {"role": "user", "content": asked},
        *([{"role": "system", "content": "The folder has twenty files. " * 20}] if turn == 0 else []),
        {"role": "assistant", "content": [text("I read it."), use]},
        {"role": "user", "content": [result]},
        {"role": "assistant", "content": [text(f"It is wool, {turn} ply.")]},
    ]


def request(turn: int) -> Body:
    """The request of a turn: the turns before it, and its question. The newest block has a mark."""
    asked = exchange(turn)[: 2 if turn == 0 else 1]
    messages = [message for earlier in range(turn) for message in exchange(earlier)] + asked
    newest = messages[-1]
    blocks = [text(newest["content"])] if isinstance(newest["content"], str) else newest["content"]
    messages[-1] = newest | {"content": [*blocks[:-1], blocks[-1] | MARK]}
    return {
        "model": "tgi",
        "max_tokens": 1,
        "system": system(turn),
        "tools": [*TOOLS[:-1], TOOLS[-1] | MARK],
        "messages": messages,
        "metadata": {"user_id": f"session-{turn}"},
    }


def test_each_turn_finds_the_pages_of_the_one_before(tmp_path: Path) -> None:
    """At least 95 % of them, at each of 20 turns."""
    model = make_model(vocab_size=byte_level().get_vocab_size(), max_position_embeddings=CONTEXT)
    folder, flags = save_folder(tmp_path / "tiny", model), ("--slots", "2", "--log-level", "warning")
    rates, before = [], 0
    with running(str(folder), *flags) as server, httpx.Client(base_url=server.url, timeout=120) as http:
        server.wait_ready()
        for turn in range(TURNS):
            reply = http.post("/v1/messages?beta=true", json=request(turn))
            assert reply.status_code == 200, reply.text
            usage = reply.json()["usage"]
            rates.append(usage["cache_read_input_tokens"] // PAGE / max(before // PAGE, 1))
            before = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert rates[0] == 0 and before > 5000
    assert min(rates[1:]) >= LEAST
