"""The end of the interpreter while a thread is inside XLA: it waits and logs that; Ctrl-C does not wait."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
WAITING = "the process waits for its compilation, which cannot be interrupted"

SIGNALS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
"""
THREAD = """
import os, threading, time
from distaff.runtime import threads
from distaff.runtime.threads import AwaitedThread
threads._QUIET_SECONDS = 0.2
started = threading.Event()
def work():
    started.set()
    os.read(0, 1)  # until the test writes, even after `end`
    print("compiled")
AwaitedThread("compilation", work, lambda: None).start()
started.wait()
print("the script's output")
"""
ENGINE = """
import os, threading
import jax
jax.config.update("jax_platforms", "cpu")
from distaff.runtime.engine import Engine
from distaff.runtime.device.executables import Executables
from distaff.runtime.request import Request, SamplingParams
from distaff.runtime.device.settings import EngineSettings
from tests.runtime.tiny import CONFIG, make_parameters
engine = Engine(CONFIG, make_parameters(), EngineSettings(slots=2, prefill_tokens=16))
engine.warm_up()
started = threading.Event()
def slow(self, buckets, *rest):
    def wait(x):
        started.set()
        os.read(0, 1)
        return x
    jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(wait, x, x))(jax.numpy.ones(1)))
    print("compiled")
Executables.compile = slow
engine.start()
started.wait()
(events,) = engine.generate([Request(id="r", prompt=(1, 2), params=SamplingParams(max_tokens=3))])
print(len(events), "events")
"""


class Script:
    """A Python script in its own process, with a compilation that lasts until `finish`."""

    def __init__(self, text: str) -> None:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SIGNALS + text],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment,
        )  # fmt: skip
        self._timer = threading.Timer(120, self.process.kill)
        self._timer.start()
        self.complaints: list[str] = []

    def wait_for(self, line: str) -> None:
        """Waits until stderr has a line with this text."""
        assert self.process.stderr is not None
        for found in self.process.stderr:
            self.complaints.append(found.decode())
            if line in self.complaints[-1]:
                return
        raise AssertionError(f"ended with {self.process.wait()} without {line!r}: {self.complaints}")

    def finish(self) -> None:
        """Ends the compilation."""
        assert self.process.stdin is not None
        self.process.stdin.write(b".")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """The exit code and the text on stdout."""
        assert self.process.stdout is not None
        printed = self.process.stdout.read().decode()
        return self.process.wait(), printed

    def close(self) -> None:
        self._timer.cancel()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def run() -> Iterator[type[Script]]:
    scripts: list[Script] = []

    class Kept(Script):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            scripts.append(self)

    yield Kept
    for script in scripts:
        script.close()


@pytest.mark.parametrize(
    ("ending", "code"), [("", 0), ("raise ValueError('a bug of the script')", 1), ("raise SystemExit(7)", 7)]
)
def test_the_interpreter_waits_for_a_compilation(run, ending, code):
    """However the script ends: one log line gives the reason, and the exit code is the script's own."""
    script = run(THREAD + ending)
    script.wait_for(WAITING)
    assert script.process.poll() is None
    script.finish()
    assert script.end() == (code, "the script's output\ncompiled\n")


def test_ctrl_c_waits_too_and_a_second_one_does_not(run):
    """The first ends the script, the second the process; the output is not lost, and there is no abort."""
    script = run(THREAD + "import sys; print('ready', file=sys.stderr, flush=True)\nthreading.Event().wait()")
    script.wait_for("ready")
    script.process.send_signal(signal.SIGINT)
    script.wait_for(WAITING)
    assert any("KeyboardInterrupt" in line for line in script.complaints)
    script.process.send_signal(signal.SIGINT)
    assert script.end() == (130, "the script's output\n")


def test_ctrl_c_ends_a_script_in_order_after_the_compilation(run):
    """With one Ctrl-C the process ends like any Python process."""
    script = run(THREAD + "import sys; print('ready', file=sys.stderr, flush=True)\nthreading.Event().wait()")
    script.wait_for("ready")
    script.process.send_signal(signal.SIGINT)
    script.wait_for(WAITING)
    script.finish()
    assert script.end() == (-signal.SIGINT, "the script's output\ncompiled\n")


def test_os_exit_waits_for_nothing(run):
    """The engine's process uses it."""
    script = run(THREAD + "import sys; sys.stdout.flush(); os._exit(3)")
    assert script.end() == (3, "the script's output\n")


@pytest.mark.parametrize("ending", ["", "engine.stop()"], ids=["without close", "with close"])
def test_an_engine_ends_before_the_interpreter(run, ending):
    """With a thread inside XLA, in a callback from C++: with `stop` and without, all ends in order."""
    script = run(ENGINE + ending)
    script.wait_for(WAITING)
    assert script.process.poll() is None
    script.finish()
    assert script.end() == (0, "3 events\ncompiled\n")
