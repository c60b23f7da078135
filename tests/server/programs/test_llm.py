"""`llm`: a function in Python called and answered, and an object by a schema."""

import json

import pytest

from ...programs import PYTHON_PROGRAMS, call, example, run
from .conftest import Play

pytestmark = pytest.mark.clients
LLM = PYTHON_PROGRAMS / "tools" / "bin" / "llm"
STAPLE = """
def staple(fibre: str) -> str:
    "The length of a fibre's staple."
    return "70 cm" if fibre == "flax" else "unknown"
"""


def spoken(prompt: bytes) -> str:
    if b"70 cm" in prompt:
        return "It is 70 cm."
    return call("staple", fibre="flax") if b"staple" in prompt else '{"fibre": "wool", "dyed": true}'


def test_it_runs_a_tool_and_takes_an_object(play: Play, tmp_path) -> None:
    server = play(spoken)
    models = example("extra-openai-models.yaml", tmp_path, server.url)
    home = {"LLM_USER_PATH": str(models.parent)}
    asked = run([LLM, "-m", "distaff", "--functions", STAPLE, "How long is flax?"], tmp_path, **home)
    assert asked.split() == "I do it. It is 70 cm.".split()
    (call_sent, result_sent) = server.engine.requests
    assert result_sent.prompt[: len(call_sent.prompt)] == call_sent.prompt
    described = run([LLM, "-m", "distaff", "--schema", "fibre, dyed bool", "A red yarn."], tmp_path, **home)
    assert json.loads(described) == {"fibre": "wool", "dyed": True}
    assert server.engine.requests[-1].params.grammar is not None
