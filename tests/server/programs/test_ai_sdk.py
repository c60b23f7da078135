"""Vercel's AI SDK: reasoning is apart from the text, objects are parsed, and a tool is run."""

import pytest

from ...programs import call, run_ai_sdk
from ..routes.thinking_text import ThinkingText
from .conftest import Play

pytestmark = pytest.mark.clients


def spoken(prompt: bytes) -> str:
    if b"woollen" in prompt:
        return '{"fibre": "wool", "dyed": true}'
    if b"staple" in prompt:
        return "It is 70 cm." if b"70 cm" in prompt else call("staple", fibre="flax")
    return "<think>\nIt holds fibre, I think.\n</think>\n\nFibre."


def test_reasoning_objects_and_a_tool(play: Play, tmp_path) -> None:
    server = play(spoken)
    server.served.text = ThinkingText()
    heard = run_ai_sdk(tmp_path, server.url)
    assert (heard["whole"], "".join(heard["pieces"])) == ("Fibre.", "Fibre.")
    assert heard["reasoning"] == "It holds fibre, I think."
    tokens = heard["usage"]["outputTokenDetails"]
    assert tokens["textTokens"] > 0 and tokens["reasoningTokens"] > 0
    assert heard["object"] == heard["output"] == {"fibre": "wool", "dyed": True}
    assert heard["called"] == [["staple", {"fibre": "flax"}]]
    assert (heard["returned"], heard["answer"]) == (["70 cm"], "It is 70 cm.")
