"""Codex, unmodified: it runs a command and applies a patch that the model calls, and goes on later.

Its prompts have thousands of tokens, so the engine is a fake one with a long context and a script.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from distaff.runtime.request import Request
from distaff.server.testing import FakeEngine

CODEX = Path(__file__).parents[2] / "clients" / "node_modules" / ".bin" / "codex"
COMMAND = {"cmd": "echo yarn > made.txt; echo WOVEN"}
PATCH = '*** Begin Patch\n*** Add File: made.txt\n+yarn "x" \\\n*** End Patch\n'
DONE = "The file is made."

pytestmark = pytest.mark.clients


def said(request: Request) -> bytes:
    return bytes(token for token in request.prompt if token < 256)


def calling(name: str, arguments: dict[str, str], until: bytes) -> Callable[[Request], bytes]:
    """A call, and a sentence once its output is in the conversation."""
    call = f"Let me see.\n<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
    return lambda request: (DONE if until in said(request)[-20_000:] else call).encode()


def scripted(make_server, reply: Callable[[Request], bytes]):
    server = make_server()
    fresh = FakeEngine(reply, context=1_000_000)
    server.engine.info, server.engine.reply = fresh.info, fresh.reply
    return server


def run(url: str, folder: Path, *arguments: str, options: tuple[str, ...] = ()) -> list[dict]:
    """The events that it prints. Nothing but the server can be reached."""
    provider = f'{{name="distaff",base_url="{url}/v1",wire_api="responses"}}'
    settings = ("model_provider=distaff", f"model_providers.distaff={provider}", *options)
    work, home = folder / "work", folder / "home"
    work.mkdir(exist_ok=True), home.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            *(CODEX, "exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
            *(part for setting in settings for part in ("-c", setting)),
            *("-m", "tgi", *arguments),
        ],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
            "NO_PROXY": "127.0.0.1",
        },
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def last_text(events: list[dict]) -> str:
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    return [item["text"] for item in items if item["type"] == "agent_message"][-1]


def test_a_command_is_run_and_the_conversation_goes_on(make_server, tmp_path) -> None:
    """Each request's prompt begins with the one before."""
    server = scripted(make_server, calling("exec_command", COMMAND, b"WOVEN"))
    assert last_text(run(server.url, tmp_path, "Weave, please.")) == DONE
    assert (tmp_path / "work" / "made.txt").read_text() == "yarn\n"
    assert last_text(run(server.url, tmp_path, "resume", "--last", "And again?")) == DONE
    called, answered, again = server.engine.requests
    for before, after in ((called, answered), (answered, again)):
        assert after.prompt[: len(before.prompt)] == before.prompt
    assert b"multi_agent_v1__spawn_agent" in said(called) and b"web_search" not in said(called)


def test_a_patch_is_applied(make_server, tmp_path) -> None:
    """With the description of the model that this server gives, Codex offers its free-form tool."""
    server = scripted(make_server, calling("apply_patch", {"input": PATCH}, b"Success."))
    catalog = tmp_path / "models.json"
    catalog.write_bytes(httpx.get(f"{server.url}/v1/models?client_version=0.171.0").content)
    events = run(server.url, tmp_path, "Weave.", options=(f'model_catalog_json="{catalog}"',))
    assert last_text(events) == DONE
    assert (tmp_path / "work" / "made.txt").read_text() == 'yarn "x" \\\n'
    grammar = server.engine.requests[0].params.grammar
    assert grammar is not None and "begin_patch" in grammar
