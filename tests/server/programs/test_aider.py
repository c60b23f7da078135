"""aider: it edits the file as the model says, and commits with the model's message."""

import subprocess

import pytest

from ...programs import PYTHON_PROGRAMS, run
from .conftest import Play

pytestmark = pytest.mark.clients
AIDER = PYTHON_PROGRAMS / "aider" / "bin" / "aider"
EDIT = "I write flax.\n\nnotes.txt\n```\nflax\n```\n"


def test_it_edits_and_commits(play: Play, tmp_path) -> None:
    """The edit is streamed; the commit message is asked for in a request of its own."""
    server = play(lambda prompt: "Replace wool by flax" if b"commit message" in prompt else EDIT)
    work = tmp_path / "work"
    work.mkdir()
    (work / "notes.txt").write_text("wool\n")
    run(
        [AIDER, "--model", "openai/tgi", "--openai-api-base", f"{server.url}/v1", "--openai-api-key", "-"]
        + ["--yes-always", "--no-check-update", "--analytics-disable", "--no-show-model-warnings"]
        + ["--no-show-release-notes", "--message", "Replace wool by flax.", "notes.txt"],
        tmp_path,
        LITELLM_LOCAL_MODEL_COST_MAP="True",
    )
    assert (work / "notes.txt").read_text() == "flax\n"
    git = ["git", "-C", str(work), "log", "-1", "--format=%s"]
    assert subprocess.run(git, capture_output=True, text=True, check=True).stdout == "Replace wool by flax\n"
    assert {request.params.temperature for request in server.engine.requests} == {0}
