"""mini-swe-agent: it runs the command of the model's call, and submits when the model says so."""

import json

import pytest

from ...programs import PYTHON_PROGRAMS, call, run
from .conftest import Play

pytestmark = pytest.mark.clients
MINI = PYTHON_PROGRAMS / "tools" / "bin" / "mini"
# What the commands print is not as they spell it, so that only their output has it.
MAKE = call("bash", command="echo yarn > made.txt; echo WO''VEN")
SUBMIT = call("bash", command="echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; cat made.txt")


def test_it_works_and_submits(play: Play, tmp_path) -> None:
    server = play(lambda prompt: SUBMIT if b"WOVEN" in prompt else MAKE)
    run(
        [MINI, "--yolo", "--exit-immediately", "-m", "openai/tgi", "-t", "Weave, please.", "-o", "log.json"],
        tmp_path,
        OPENAI_API_BASE=f"{server.url}/v1",
        OPENAI_API_KEY="-",
        MSWEA_CONFIGURED="true",
        MSWEA_COST_TRACKING="ignore_errors",
        LITELLM_LOCAL_MODEL_COST_MAP="True",
    )
    info = json.loads((tmp_path / "work" / "log.json").read_text())["info"]
    assert (info["exit_status"], info["submission"]) == ("Submitted", "yarn\n")
    assert (tmp_path / "work" / "made.txt").read_text() == "yarn\n"
    first, second = (request.prompt for request in server.engine.requests)
    assert second[: len(first)] == first
