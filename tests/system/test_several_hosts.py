"""One model over two processes, as two hosts would run it: the same answers, and all end together.

The model is a tiny random one, so that both compile in seconds; the processes are what an operator starts, on
one machine, with one CPU device each.
"""

import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from safetensors.numpy import load_file, save_file

from ..checkpoints.making import make_model, save_folder
from .conftest import DISTAFF, Server, free_port, running

pytestmark = pytest.mark.hosts
FLAGS = "--slots 2 --context 128 --kv-pages 16 --prefill-tokens 32 --mesh model=2".split()
"""Two steps for prompts instead of five: every pair compiles them again."""
FEWEST = "--slots 1 --context 128 --kv-pages 16 --prefill-tokens 16 --mesh model=2".split()
"""One step of each kind, for a pair that only has to have one stream when it is lost."""
MESSAGES = [{"role": "user", "content": "the quick brown fox"}]
WITHIN = 10.0
"""Seconds in which all processes are gone when one is lost."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("several") / "tiny", make_model())


@dataclass(frozen=True, slots=True)
class Pair:
    """A leader that serves and its follower."""

    leader: Server
    follower: subprocess.Popen

    def gone(self) -> tuple[int, int]:
        """The exit codes of both, which must come in time."""
        limit = time.monotonic() + WITHIN
        codes = [p.wait(max(0.1, limit - time.monotonic())) for p in (self.leader.process, self.follower)]
        return codes[0], codes[1]


@contextlib.contextmanager
def two_hosts(
    model: Path, *follower_flags: str, copy: Path | None = None, flags: Sequence[str] = FLAGS
) -> Iterator[Pair]:
    """Starts both, the follower on a copy of the model; the follower is ended in any case."""
    shared = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", *flags]
    follower = subprocess.Popen(
        [str(DISTAFF), "serve", str(copy or model), *shared, "--process-id", "1", *follower_flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        with running(str(model), *shared) as leader:
            yield Pair(leader, follower)
    finally:
        if follower.poll() is None:
            follower.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                follower.wait(WITHIN)
        follower.kill()
        follower.communicate(timeout=10)


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)


def answer(server: Server, **options) -> tuple[str | None, list[float]]:
    """A greedy answer and its tokens' log-probabilities."""
    with client_of(server) as client:
        choice = client.chat.completions.create(
            model="tgi", messages=MESSAGES, max_tokens=40, logprobs=True, **{"temperature": 0, **options}
        ).choices[0]
    assert choice.logprobs is not None
    return choice.message.content, [entry.logprob for entry in choice.logprobs.content or ()]


def test_two_processes_answer_as_one_and_part_in_peace(model: Path) -> None:
    """Text and log-probabilities of one process, penalties, seeds, streams; Ctrl-C ends both with 0."""
    wishes = [{}, {"temperature": 0.9, "seed": 3}, {"frequency_penalty": 1.5}]
    with running(str(model), *FLAGS[:-2]) as alone:
        alone.wait_ready()
        expected = [answer(alone, **wish) for wish in wishes]
    with two_hosts(model) as pair:
        pair.leader.wait_ready()
        for wish, (text, scores) in zip(wishes, expected, strict=True):
            found_text, found_scores = answer(pair.leader, **wish)
            assert found_text == text
            assert max(abs(a - b) for a, b in zip(found_scores, scores, strict=True)) < 1e-4
        with client_of(pair.leader) as client:
            stream = client.chat.completions.create(
                model="tgi", messages=MESSAGES, max_tokens=40, temperature=0, stream=True
            )
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(pieces) == expected[0][0] and len(pieces) > 3
        pair.leader.process.send_signal(signal.SIGINT)
        assert pair.gone() == (0, 0)


def endless(server: Server, heard: list[str]) -> None:
    """Asks for answers until the server fails it; notes how that was said."""
    try:
        with client_of(server) as client:
            while True:
                stream = client.chat.completions.create(
                    model="tgi",
                    messages=MESSAGES,
                    max_tokens=60,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
                for _ in stream:
                    heard.append("token")
    except openai.APIStatusError as error:
        heard.append(f"status {error.status_code}")
    except openai.APIError as error:
        heard.append(f"event {error.message}")


@pytest.mark.parametrize("victim", ["follower", "engine", "standstill"])
def test_the_loss_of_one_ends_all(model: Path, victim: str) -> None:
    """A killed follower, a killed leading engine, a follower that stands still, in the midst of a stream: the
    client is told, both end non-zero in time, and nothing is started again."""
    with two_hosts(model, flags=FEWEST) as pair:
        pair.leader.wait_ready()
        heard: list[str] = []
        asking = threading.Thread(target=endless, args=(pair.leader, heard))
        asking.start()
        while heard.count("token") < 5:
            time.sleep(0.01)
        if victim == "engine":
            pair.leader.engine().kill()
        else:
            pair.follower.send_signal(signal.SIGKILL if victim == "follower" else signal.SIGSTOP)
        if victim == "standstill":
            assert pair.leader.process.wait(WITHIN + 2) != 0
            pair.follower.send_signal(signal.SIGCONT)
        leader, follower = pair.gone()
        asking.join(10)
        assert leader == 70 and follower in (70, -signal.SIGKILL, -signal.SIGABRT)
        assert heard[-1].startswith(("event", "status 503")), heard[-1]


def test_the_loss_of_an_idle_follower_is_noticed(model: Path) -> None:
    """Nothing runs; the follower is killed; the server answers 503 for a moment, then ends with 70."""
    with two_hosts(model, flags=FEWEST) as pair:
        pair.leader.wait_ready()
        pair.follower.kill()
        seen = set()
        with contextlib.suppress(httpx.TransportError):
            while pair.leader.process.poll() is None:
                seen.add(httpx.get(f"{pair.leader.url}/ready", timeout=2).status_code)
                time.sleep(0.02)
        assert 503 in seen
        assert pair.gone() == (70, -signal.SIGKILL)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (["--slots", "3"], "--slots is 3 in process 1; expected 2 as in process 0"),
        (["--mesh", "model=4"], "process 1 has 2 devices; expected 1 as process 0 has: --mesh must be"),
    ],
    ids=["slots", "mesh"],
)
def test_settings_that_differ_are_refused_by_name(model: Path, flag: list[str], said: str) -> None:
    """Both processes come to the same conclusion, and say so."""
    with two_hosts(model, *flag) as pair:
        refused(pair, 78, said)


def test_other_weights_are_refused(model: Path, tmp_path: Path) -> None:
    """A model of the same configuration is not the same model."""
    copy = shutil.copytree(model, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with two_hosts(model, copy=copy) as pair:
        refused(pair, 78, "the digest of the weights is '")


def test_a_follower_that_cannot_load_says_so_everywhere(model: Path, tmp_path: Path) -> None:
    """The leader's last line is the follower's reason."""
    copy = shutil.copytree(model, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] = np.nan
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with two_hosts(model, copy=copy) as pair:
        refused(pair, 65, f"{copy}: tensor norm holds NaN")


def refused(pair: Pair, code: int, said: str) -> None:
    """Sees both end before they serve, with this code and reason, whoever came to it first."""
    theirs, _ = pair.follower.communicate(timeout=60)
    assert pair.follower.returncode == code, theirs
    assert pair.leader.process.wait(30) == code
    assert pair.leader.process.stdout is not None
    ours = pair.leader.process.stdout.read()
    assert said in ours
    assert said in theirs
