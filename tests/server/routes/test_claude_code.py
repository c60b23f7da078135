"""Claude Code, unmodified: it runs a command that the model calls, reads its output, and goes on later.

Its prompts have 20,000 tokens and more, so the engine is a fake one with a long context and a script.
"""

import json
import subprocess
from pathlib import Path

import pytest

from distaff.runtime.request import Request
from distaff.server.testing import FakeEngine

CLAUDE = Path(__file__).parents[2] / "clients" / "node_modules" / ".bin" / "claude"
COMMAND = {"command": "echo yarn > made.txt; echo WOVEN", "description": "Make a file"}
CALL = f'Let me see.\n<tool_call>\n{{"name": "Bash", "arguments": {json.dumps(COMMAND)}}}\n</tool_call>'
DONE = "The file is made."

pytestmark = pytest.mark.clients


def scripted(request: Request) -> bytes:
    """A call, and a sentence once its output is in the conversation."""
    return (DONE if b"WOVEN" in said(request)[-20_000:] else CALL).encode()


def said(request: Request) -> bytes:
    return bytes(token for token in request.prompt if token < 256)


def run(url: str, folder: Path, *arguments: str) -> dict:
    """What it prints at its end. Nothing but the server can be reached."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder / "home"),
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "-",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
        "NO_PROXY": "127.0.0.1",
    }
    work = folder / "work"
    work.mkdir(exist_ok=True)
    done = subprocess.run(
        [CLAUDE, *arguments, "--model", "tgi", "--output-format", "json", "--allowedTools", "Bash"],
        env=environment,
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_command_is_run_and_the_conversation_goes_on(make_server, tmp_path) -> None:
    """Each request's prompt begins with the one before, also after a new start of the program."""
    server = make_server()
    fresh = FakeEngine(scripted, context=1_000_000)
    server.engine.info, server.engine.reply = fresh.info, fresh.reply
    first = run(server.url, tmp_path, "-p", "Weave, please.")
    assert (first["result"], first["num_turns"], first["stop_reason"]) == (DONE, 2, "end_turn")
    assert (tmp_path / "work" / "made.txt").read_text() == "yarn\n"
    second = run(server.url, tmp_path, "--continue", "-p", "And again?")
    assert (second["result"], second["num_turns"]) == (DONE, 1)
    called, answered, again = (request for request in server.engine.requests if b"Bash" in said(request))
    assert called.params.max_tokens == 32_000
    for before, after in ((called, answered), (answered, again)):
        assert after.prompt[: len(before.prompt)] == before.prompt


def test_another_conversation_begins_with_the_same_prompt(make_server, tmp_path) -> None:
    """Up to the question: the billing header, which depends on it, is not in the prompt."""
    server = make_server()
    server.engine.info = FakeEngine(context=1_000_000).info
    begins = []
    for question in ("Spin, please.", "Weave, please."):
        run(server.url, tmp_path, "-p", question)
        prompt = next(prompt for prompt in map(said, server.engine.requests) if question.encode() in prompt)
        begins.append(prompt.split(question.encode())[0])
    assert begins[0] == begins[1] and len(begins[0]) > 20_000
