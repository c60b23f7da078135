"""opencode: it shows the reasoning, runs a command that is called, and goes on later."""

import json
from pathlib import Path

import pytest

from ...programs import NODE_PROGRAMS, call, example, run, said
from ..routes.thinking_text import ThinkingText
from .conftest import Play

pytestmark = pytest.mark.clients
# What the command prints is not as it is spelled, so that only its output has it.
MAKE = call("bash", command="echo yarn > made.txt; echo WO''VEN", description="Make a file")
DONE = "The file is made."
THOUGHT = "<think>\nYarn, I think.\n</think>\n\n"


def spoken(prompt: bytes) -> str:
    if b"title generator" in prompt:
        return "Weaving"
    return THOUGHT + (DONE if b"WOVEN" in prompt else MAKE)


def parts(folder: Path, *arguments: str) -> list[dict]:
    """The parts of its conversation, as it prints them."""
    command = [NODE_PROGRAMS / "opencode", "run", "--thinking", "--format", "json", *arguments]
    switches = ("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD")
    output = run(command, folder, **{f"OPENCODE_DISABLE_{switch}": "1" for switch in switches})
    return [json.loads(line)["part"] for line in output.splitlines()]


def test_a_command_is_run_and_the_conversation_goes_on(play: Play, tmp_path) -> None:
    """Each request's prompt begins with the one before, also after a new start of the program."""
    server = play(spoken)
    server.served.text = ThinkingText()
    example("opencode.json", tmp_path, server.url)
    found = parts(tmp_path, "Weave, please.")
    (tool,) = (part for part in found if part["type"] == "tool")
    assert (tool["tool"], tool["state"]["status"], tool["state"]["output"]) == (
        "bash",
        "completed",
        "WOVEN\n",
    )
    assert [part["text"] for part in found if part["type"] == "text"] == ["I do it.", DONE]
    assert [part["text"] for part in found if part["type"] == "reasoning"] == ["Yarn, I think."] * 2
    finished = [part for part in found if part["type"] == "step-finish"]
    assert [part["reason"] for part in finished] == ["tool-calls", "stop"]
    assert (tmp_path / "work" / "made.txt").read_text() == "yarn\n"
    again = parts(tmp_path, "--continue", "And again?")
    assert [part["text"] for part in again if part["type"] == "text"] == [DONE]
    talk = [request for request in server.engine.requests if b"title generator" not in said(request)]
    assert {request.params.max_tokens for request in talk} == {32_000}
    called, answered, continued = (request.prompt for request in talk)
    assert answered[: len(called)] == called and continued[: len(answered)] == answered
    assert finished[0]["tokens"]["input"] == len(called)
