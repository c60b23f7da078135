"""The Dockerfile, as far as it can be held to its word without a container runtime.

Its instructions are read by a small parser. What it copies is copied, its `pip install` runs in a fresh
virtual environment, its entry point with its variables; only the folders are others. Image, user and ports
below 1024 stay untried.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from distaff.checkpoints.sources import cache_folder
from distaff.server.page import page_files

from ..processes import wait_ended
from .conftest import Server, free_port

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
TOOLS = Path(sys.executable).parent
MADE_OF = "made-of"
"""The file in the kept environment that lists what its packages were installed from."""
LIMITS = {
    "MAX_INPUT_LENGTH": "24",
    "MAX_TOTAL_TOKENS": "128",
    "MAX_BATCH_SIZE": "4",
    "MAX_BATCH_PREFILL_TOKENS": "16",
    "MAX_BATCH_TOTAL_TOKENS": "1000",
    "MAX_CONCURRENT_REQUESTS": "7",
}


def instructions() -> list[tuple[str, str]]:
    """Each instruction's name and words, in order."""
    lines = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, words) for name, words in (line.split(" ", 1) for line in lines.splitlines() if line)]


def words_of(wanted: str) -> list[str]:
    return [words for name, words in instructions() if name == wanted]


def the_variables() -> dict[str, str]:
    pairs = [pair.split("=", 1) for words in words_of("ENV") for pair in words.split()]
    return {name: value for name, value in pairs}


def test_the_dockerfile_is_clean():
    """By hadolint's rules, none of them ignored."""
    done = subprocess.run([TOOLS / "hadolint", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout
    assert "hadolint ignore" not in DOCKERFILE.read_text()


def test_the_context_has_what_is_copied_and_no_more():
    """All else is kept from the builder, and so from the image: keys, caches, a virtual environment."""
    copies = [words for words in words_of("COPY") if not words.startswith("--from=build")]
    copied = {word for words in copies for word in words.split()[:-1]}
    allowed = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert set(allowed) == copied
    assert all((ROOT / name).exists() for name in copied)


@pytest.fixture(scope="module")
def installing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A virtual environment, and the process that installs the command there from what the image would have.

    The installation takes up to a minute; tests that do not need it run at the same time.
    """
    image = tmp_path_factory.mktemp("image")
    context, environment = image / "context", kept_environment()
    for words in words_of("COPY"):
        *sources, target = words.split()
        for source in sources if not words.startswith("--from") else ():
            _copy(ROOT / source, context / target if len(sources) == 1 else context / target / source)
    install = " && ".join(words for words in words_of("RUN") if words.startswith("pip install"))
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (environment / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", install],
            cwd=context,
            env=plain | {"PATH": path, "EXTRA": ""},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    yield environment / "bin", process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kept_environment() -> Path:
    """A virtual environment that was fresh when the image's dependencies were installed there.

    It is kept between runs, because more than a gigabyte of packages takes half a minute: Distaff itself is
    installed again in every run. It is made again if a dependency, the Dockerfile or the Python differs.
    """
    folder = cache_folder() / "test-image"
    mark = folder / MADE_OF
    if mark.exists() and mark.read_text() == ingredients():
        subprocess.run([folder / "bin" / "pip", "uninstall", "--quiet", "--yes", "distaff"], check=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
    return folder


def ingredients() -> str:
    """Everything that decides which packages a fresh environment has."""
    inputs = [ROOT / name for name in ("pyproject.toml", "constraints.txt", "Dockerfile")]
    return "\n".join([sys.version, *(path.read_text() for path in inputs)])


@pytest.fixture
def installed(installing: tuple[Path, subprocess.Popen[bytes]]) -> Path:
    """The folder of the commands that the image has."""
    commands, process = installing
    code = process.wait()
    assert code == 0, (commands.parent / "log").read_text()[-4000:]
    (commands.parent / MADE_OF).write_text(ingredients())
    return commands


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


@contextlib.contextmanager
def endpoint(commands: Path, folder: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The entry point in an environment of its own; the model is this user's, so that none is downloaded."""
    port = str(free_port())
    data = {name: value.replace("/data", str(folder / "data")) for name, value in the_variables().items()}
    (folder / "data").mkdir()
    (folder / "data" / "distaff").symlink_to(cache_folder())
    (entry,) = words_of("ENTRYPOINT")
    command, *words = json.loads(entry)
    process = subprocess.Popen(
        [commands / command, *words],
        cwd=folder,
        env={"PATH": f"{commands}:/usr/bin:/bin", "HOME": str(folder), "PORT": port} | data | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait(30)
        assert not wait_ended(children, 30), "a child outlived the server"


@pytest.mark.image
@pytest.mark.usefixtures("installing")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MAX_TOTAL_TOKENS": "8193"}, "context is 8193; the model was made for 8192 at most"),
        (
            {"MAX_INPUT_LENGTH": "4000", "MAX_BATCH_TOTAL_TOKENS": "4000"},
            "max_input is 4000; expected less than the context of 4000 tokens",
        ),
        (
            {"MAX_BATCH_PREFILL_TOKENS": "31"},
            "prefill_tokens is 31; expected at least one for each of 32 slots",
        ),
        ({"MAX_BATCH_TOTAL_TOKENS": "15"}, "kv_tokens is 15; expected at least a page of 16 tokens"),
    ],
)
def test_what_the_model_cannot_honour_ends_it(variables: dict[str, str], message: str):
    """The engine says so, with the value; exit code 78."""
    done = subprocess.run(
        [sys.executable, "-m", "distaff.server.command.cli", "endpoint"],
        env=os.environ | {"PORT": str(free_port()), **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (78, f"distaff: {message}")


@pytest.mark.image
@pytest.mark.timeout(900)
def test_the_entry_point_keeps_the_contract(installed: Path, tmp_path: Path):
    """Healthy once it can answer; within the limits that were asked for; SIGTERM ends it well."""
    with endpoint(installed, tmp_path, HF_TOKEN="hf_secret", JSON_OUTPUT="true", **LIMITS) as (process, url):
        Server(process, url).wait_ready(240, "/health")
        info = httpx.get(f"{url}/info").json()
        assert info["model_id"] == "smollm2"
        assert (info["max_input_tokens"], info["max_total_tokens"]) == (24, 128)
        assert info["max_concurrent_requests"] == 7
        for path in page_files():
            assert httpx.get(f"{url}{path}").status_code == 200, path
        said = httpx.post(f"{url}/generate", json=_asked("The capital of France is", 4), timeout=60)
        assert said.status_code == 200 and "Paris" in said.json()["generated_text"]
        refused = httpx.post(f"{url}/generate", json=_asked("one" + " one" * 29, 4))
        assert refused.status_code == 422
        assert "`inputs` must have less than 24 tokens. Given: 30" in refused.json()["error"]
        refused = httpx.post(f"{url}/generate", json=_asked("one", 128))
        assert refused.status_code == 422 and "must be <= 128" in refused.json()["error"]
        assert 'distaff_engine_total_pages{replica="0"} 62.0' in httpx.get(f"{url}/metrics").text
        process.terminate()
        log, _ = process.communicate(timeout=90)
    assert process.returncode == 0, log
    limits = "--slots 4 --max-concurrent 7 --prefill-tokens 16 --kv-tokens 1000"
    assert f"--context 128 --max-input 24 {limits}" in log
    assert "--auth none: anybody who can reach" in log and "ignored environment variables: JSON_OUTPUT" in log
    assert "hf_secret" not in log


def _asked(inputs: str, tokens: int) -> dict[str, object]:
    return {"inputs": inputs, "parameters": {"max_new_tokens": tokens}}
