"""Continue's command line: it runs a command that the model calls, and prints the model's last sentence."""

import pytest

from ...programs import NODE_PROGRAMS, call, example, run
from .conftest import Play

pytestmark = pytest.mark.clients
# What the command prints is not as it is spelled, so that only its output has it.
MAKE = call("Bash", command="echo yarn > made.txt; echo WO''VEN")
DONE = "The file is made."


def test_a_command_is_run(play: Play, tmp_path) -> None:
    server = play(lambda prompt: DONE if b"WOVEN" in prompt else MAKE)
    config = example("continue.yaml", tmp_path, server.url)
    output = run(
        [NODE_PROGRAMS / "cn", "--config", config, "--auto", "-p", "Weave, please."],
        tmp_path,
        CONTINUE_TELEMETRY_ENABLED="0",
        CONTINUE_METRICS_ENABLED="0",
    )
    assert output.strip() == DONE
    assert (tmp_path / "work" / "made.txt").read_text() == "yarn\n"
    called, answered = (request.prompt for request in server.engine.requests)
    assert answered[: len(called)] == called
