"""The command line in real processes: one clear line, the right code, soon."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distaff.checkpoints.sources import bundled, cache_folder
from distaff.server.command.inventory import inventory

from ...patience import patient

SECONDS = 2.0


def distaff(*words: str, stdin: str = "", seconds: float = SECONDS) -> tuple[int, str, list[str]]:
    """Runs the command; returns its code, its output and the lines on stderr."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "distaff.server.command.cli", *words],
        input=stdin,
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - began < patient(seconds)
    return done.returncode, done.stdout, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        ([], 2, "Missing command"),
        (["weave"], 2, "No such command 'weave'"),
        (["serve", "--prot", "80"], 2, "No such option: --prot"),
        (["serve", "--port", "65536"], 2, "'--port'"),
        (["serve", "--slots", "0"], 2, "'--slots'"),
        (["serve", "--kv-pages", "9", "--kv-tokens", "9"], 2, "--kv-pages and --kv-tokens exclude"),
        (["serve", "--host-kv-tokens", "9", "--no-prefix-cache"], 2, "--host-kv-tokens needs a prefix cache"),
        (["serve", "--context", "many"], 2, "'--context'"),
        (["serve", "--dtype", "float8"], 2, "'float8' is not one of 'float32', 'bfloat16'"),
        (["serve", "--log-level", "loud"], 2, "'loud' is not one of"),
        (["serve", "--chat-template", "/no/such/file"], 2, "/no/such/file"),
        (["serve", "one", "two"], 2, "two"),
        (["serve", "./no-such-model"], 66, "./no-such-model"),
        (["serve", "no-such-name"], 66, "no-such-name"),
        (["convert", "./no-such-model", "out"], 66, "./no-such-model"),
        (["convert", "one"], 2, "DST"),
        (["pack", "./no-such-model", "out"], 66, "./no-such-model"),
        (["pack", "smollm2"], 2, "DST"),
        (["pack", "smollm2", "out", "--port", "1"], 2, "No such option: --port"),
        (["serve", "--compiled", "/no/such/folder"], 2, "/no/such/folder"),
        (["serve", "--host", "192.0.2.1", "--auth", "none"], 69, "192.0.2.1"),
        (["serve", "--host", "192.0.2.1"], 78, "give --api-keys FILE or set DISTAFF_API_KEYS"),
        (["serve", "--host", "0.0.0.0"], 78, "or give --auth none"),
        (["serve", "--host", "nowhere.invalid"], 69, "nowhere.invalid"),
        (["serve", "--auth", "maybe"], 2, "'maybe' is not one of 'keys', 'none'"),
        (["serve", "--api-keys", "/no/such/file"], 78, "cannot read /no/such/file: No such file"),
        (["serve", "--api-keys", "/dev/null"], 78, "/dev/null is not a regular file"),
        (["serve", "--api-keys", "/"], 78, "cannot read /: Is a directory"),
        (["chat", "--url", "ftp://here"], 2, "ftp://here"),
        (["chat", "--url", "http://127.0.0.1:9", "model"], 2, "exclude"),
        (["chat", "./no-such-model"], 66, "./no-such-model"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(words: list[str], code: int, hint: str):
    status, out, (line,) = distaff(*words)
    assert (status, out) == (code, "")
    assert line.startswith("distaff: ")
    assert hint in line


def test_a_taken_port_is_said_before_anything_heavy_begins():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, (line,) = distaff("serve", "--port", str(port))
    assert status == 69
    assert line == f"distaff: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_help_and_version_come_at_once_and_without_jax():
    status, out, _ = distaff("--help")
    assert status == 0 and "Exit codes" in out
    status, out, _ = distaff("version")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "distaff",
        "jax",
        "jaxlib",
        "flax",
        "python",
        "platform",
    ]


def test_models_lists_the_bundled_one():
    status, out, _ = distaff("models", seconds=5)
    assert status == 0
    assert out.startswith("smollm2")


def test_a_bundled_model_is_ready_when_its_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not when a download has begun, or has failed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (model,) = bundled()
    file = model.path(cache_folder())
    file.parent.mkdir(parents=True)
    assert "downloaded when first used" in next(inventory())
    file.touch()
    assert "ready" in next(inventory())


def test_every_flag_of_serve_is_documented():
    _, out, _ = distaff("serve", "--help")
    flags = {word for word in out.split() if word.startswith("--")} - {"--help"}
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    assert flags and all(f"`{flag}`" in page for flag in flags)


def test_importing_the_command_line_imports_nothing_heavy():
    heavy = "{'jax', 'sanic', 'transformers', 'numpy'}"
    code = f"import sys, distaff.server.command.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("ours", [True, False])
def test_no_banner_of_transformers_is_printed(ours: bool):
    """As it greets those who have no PyTorch. Imported by itself it does, or this would show nothing."""
    options = "add_generation_prompt=False, continue_final_message=False"
    render = f"ChatTemplate('', {{}}).render([{{'role': 'user', 'content': 'x'}}], {options})"
    action = f"from distaff.checkpoints.tokenization.chat_template import ChatTemplate; {render}"
    code = f"import sys; sys.modules['torch'] = None; {action if ours else 'import transformers'}"
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("PyTorch was not found" in done.stderr) == (not ours)
    assert done.stderr == "" or not ours
