"""Inspect: a task whose answer only its tool gives is scored right, and its log has the call."""

import json

import pytest

from ...programs import PYTHON_PROGRAMS, call, example, run
from .conftest import Play

pytestmark = pytest.mark.clients


def spoken(prompt: bytes) -> str:
    return "It is 70 cm." if b"70 cm" in prompt else call("staple", fibre="flax")


def test_a_task_with_a_tool_is_scored(play: Play, tmp_path) -> None:
    server = play(spoken)
    script = example("inspect_tasks.py", tmp_path, server.url)
    inspect = PYTHON_PROGRAMS / "tools" / "bin" / "inspect"
    command = [inspect, "eval", f"{script}@staples", "--model", "openai-api/distaff/tgi"]
    command += ["--display", "none", "--log-format", "json", "--log-dir", tmp_path / "logs"]
    run(command, tmp_path, DISTAFF_BASE_URL=f"{server.url}/v1", DISTAFF_API_KEY="-")
    (log,) = (json.loads(path.read_text()) for path in (tmp_path / "logs").glob("*.json"))
    (sample,) = log["samples"]
    assert (log["status"], sample["scores"]["includes"]["value"]) == ("success", "C")
    (asked,) = sample["messages"][1]["tool_calls"]
    assert (asked["function"], asked["arguments"]) == ("staple", {"fibre": "flax"})
    assert sample["messages"][2]["content"] == "70 cm"
    assert sample["output"]["usage"]["input_tokens"] == len(server.engine.requests[-1].prompt)
