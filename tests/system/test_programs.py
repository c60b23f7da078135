"""Client programs against the real model, unmodified: plain chat, and objects by a schema.

Its context is too small for agents; they are in tests/server/programs, with an engine that plays a script.
"""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ..programs import PROMPTFOO, PYTHON_PROGRAMS, environment, example, run, run_ai_sdk
from .conftest import Server, free_port

pytestmark = [pytest.mark.clients, pytest.mark.serial]
TOOLS = PYTHON_PROGRAMS / "tools" / "bin"
QUESTION = "What is the capital of France?"


def test_llm_prints_the_same_whole_and_streamed(f32_server: Server, tmp_path: Path) -> None:
    models = example("extra-openai-models.yaml", tmp_path, f32_server.url)
    asked = [TOOLS / "llm", "-m", "distaff", "-o", "temperature", "0", "-o", "max_tokens", "40", QUESTION]
    streamed, whole = (
        run([*asked, *more], tmp_path, LLM_USER_PATH=str(models.parent)) for more in ([], ["--no-stream"])
    )
    assert "Paris" in streamed and streamed == whole
    schema = ["--schema", "capital, country"]
    described = run([*asked, *schema], tmp_path, LLM_USER_PATH=str(models.parent))
    assert set(json.loads(described)) == {"capital", "country"}


def test_the_ai_sdk_streams_text_and_takes_objects(f32_server: Server, tmp_path: Path) -> None:
    heard = run_ai_sdk(tmp_path, f32_server.url)
    assert heard["whole"] and "".join(heard["pieces"]) == heard["whole"] and len(heard["pieces"]) > 1
    for name in ("object", "output"):
        assert heard[name]["fibre"] in ("wool", "flax", "cotton") and isinstance(heard[name]["dyed"], bool)
    (name, arguments), result = heard["called"][0], heard["returned"][0]
    lengths = {"wool": "10 cm", "flax": "70 cm", "cotton": "3 cm"}
    assert (name, result) == ("staple", lengths[arguments["fibre"]])


def test_promptfoos_assertions_pass(f32_server: Server, tmp_path: Path) -> None:
    config = example("promptfooconfig.yaml", tmp_path, f32_server.url)
    switches = ("TELEMETRY", "UPDATE", "REMOTE_GENERATION")
    run(
        [PROMPTFOO, "eval", "-c", config, "-o", "results.json", "--no-cache"],
        tmp_path,
        PROMPTFOO_CONFIG_DIR=str(tmp_path / "promptfoo"),
        **{f"PROMPTFOO_DISABLE_{switch}": "1" for switch in switches},
    )
    results = json.loads((tmp_path / "work" / "results.json").read_text())["results"]
    assert (results["stats"]["successes"], results["stats"]["failures"]) == (2, 0)
    assert min(result["response"]["tokenUsage"]["total"] for result in results["results"]) > 0


def test_inspect_scores_a_known_answer(f32_server: Server, tmp_path: Path) -> None:
    script = example("inspect_tasks.py", tmp_path, f32_server.url)
    command = [TOOLS / "inspect", "eval", f"{script}@capital", "--model", "openai-api/distaff/tgi"]
    command += ["--display", "none", "--log-format", "json", "--log-dir", tmp_path / "logs"]
    run(command, tmp_path, DISTAFF_BASE_URL=f"{f32_server.url}/v1", DISTAFF_API_KEY="-")
    (log,) = (json.loads(path.read_text()) for path in (tmp_path / "logs").glob("*.json"))
    (score,) = log["results"]["scores"]
    assert (log["status"], score["metrics"]["accuracy"]["value"]) == ("success", 1.0)


def wait_up(process: subprocess.Popen, client: httpx.Client) -> None:
    """Waits until it answers; at its first start it makes a database."""
    limit = time.monotonic() + 120
    while True:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/health").status_code == 200:
                return
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.2)


@contextlib.contextmanager
def open_webui(url: str, folder: Path) -> Iterator[httpx.Client]:
    """Open WebUI in its slim form, which computes no embeddings itself, and a client that is signed in."""
    port = free_port()
    settings = {
        "OPENAI_API_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "-",
        "DATA_DIR": str(folder),
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "-",
        "ENABLE_OLLAMA_API": "False",
        "OFFLINE_MODE": "True",
        "USE_SLIM_DOCKER": "True",
    }
    command = [PYTHON_PROGRAMS / "open-webui" / "bin" / "open-webui", "serve", "--host", "127.0.0.1"]
    with subprocess.Popen(
        [*command, "--port", str(port)],
        env=environment(folder, **settings),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                wait_up(process, client)
                signed = client.post("/api/v1/auths/signin", json={"email": "", "password": ""}).json()
                client.headers["Authorization"] = f"Bearer {signed['token']}"
                yield client
        finally:
            process.terminate()


def test_open_webui_lists_models_and_chats(f32_server: Server, tmp_path: Path) -> None:
    """The answer comes whole and streamed, and it gets the title that it asks for itself."""
    with open_webui(f32_server.url, tmp_path) as webui:
        listed = webui.get("/api/models").json()["data"]
        assert "tgi" in {model["id"] for model in listed}
        body = {"model": "tgi", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        whole = webui.post("/api/chat/completions", json=body).json()
        answer = whole["choices"][0]["message"]["content"]
        assert "Paris" in answer
        streamed = webui.post("/api/chat/completions", json=body | {"stream": True}).text
        *lines, end = (line.removeprefix("data: ") for line in streamed.splitlines() if line)
        deltas = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines]
        assert end == "[DONE]" and "".join(deltas) == answer and len(deltas) > 2
        titled = webui.post("/api/v1/tasks/title/completions", json=body).json()
        assert titled["choices"][0]["message"]["content"]
