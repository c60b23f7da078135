"""Renderer processes: forked by one parent, ended with it and by it, and separate from each other."""

import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from distaff.server.text import renderer_parent, renderer_process, rendering
from distaff.server.text.renderer import MEMORY
from distaff.server.text.renderer_process import RendererParent, RendererProcess
from distaff.server.text.rendering import PROCESSES, RemoteTemplate

from ...patience import wait_until
from ...processes import wait_ended

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SOURCE = f"{{% if messages[0].content == 'loops' %}}{LOOPS}{{% endif %}}{{{{ messages[0].content }}}}"
SECONDS = 300.0
"""Longer than any test takes, so that no alarm ends what the test says has ended otherwise."""

CREATOR = """
    import threading, time
    from distaff.server.text import rendering
    template = rendering.RemoteTemplate({source!r}, {{}}, {seconds})
    words = dict(add_generation_prompt=True, continue_final_message=False)
    loops = [{{"role": "user", "content": "loops"}}]
    threading.Thread(target=template.render, args=(loops,), kwargs=words, daemon=True).start()
    while len(template.pids) == rendering.PROCESSES:
        pass
    print("renders", flush=True)
    time.sleep(600)
"""
"""A process with one renderer that renders and one that waits. It sleeps until the test ends it."""


def render(template: RemoteTemplate) -> str:
    said = [{"role": "user", "content": "x"}]
    return template.render(said, add_generation_prompt=True, continue_final_message=False)


def wait_loaded(template: RemoteTemplate) -> None:
    for renderer in [*template._living]:
        renderer.loaded()


def descriptors(pid: int) -> dict[int, str]:
    """A process's open files by number."""
    folder = f"/proc/{pid}/fd"
    return {int(number): os.readlink(f"{folder}/{number}") for number in os.listdir(folder)}


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[RendererParent]:
    """A parent of this test's own, for its templates, too."""
    parent = RendererParent()
    monkeypatch.setattr(rendering, "_parent", parent)
    yield parent
    parent.end()


@pytest.fixture
def template(parent: RendererParent) -> Iterator[RemoteTemplate]:
    template = RemoteTemplate(SOURCE, {}, SECONDS)
    wait_loaded(template)
    yield template
    template.close()


@pytest.fixture
def fork(parent: RendererParent) -> Iterator[Callable[[], RendererProcess]]:
    """Forks processes that wait for their first frame."""
    connections: list[socket.socket] = []

    def fork() -> RendererProcess:
        ours, theirs = socket.socketpair()
        connections.append(ours)
        with theirs:
            return parent.fork(theirs)

    yield fork
    for connection in connections:
        connection.close()


def process_of(parent: RendererParent) -> psutil.Process:
    assert parent._process is not None
    return psutil.Process(parent._process.pid)


def test_each_has_its_connection_and_no_other_file(parent: RendererParent, template: RemoteTemplate) -> None:
    """Neither the parent's sockets nor another renderer's: whoever has them could have processes ended."""
    assert len(template.pids) == PROCESSES and render(template) == "x"
    found = [descriptors(pid) for pid in template.pids]
    assert [len(files) for files in found] == [4] * PROCESSES
    connections = {file for files in found for number, file in files.items() if number > 2}
    assert len(connections) == PROCESSES and all(file.startswith("socket:") for file in connections)
    assert not connections & {*descriptors(process_of(parent).pid).values()}


def test_each_limits_its_own_memory_only(parent: RendererParent, template: RemoteTemplate) -> None:
    for _ in range(2):
        limits = [resource.prlimit(pid, resource.RLIMIT_DATA)[0] for pid in template.pids]
        assert all(MEMORY < most < MEMORY + (200 << 20) for most in limits)
        os.kill(template.pids[-1], signal.SIGKILL)
        assert render(template) == "x"
        wait_loaded(template)
    own = resource.getrlimit(resource.RLIMIT_DATA)
    assert resource.prlimit(process_of(parent).pid, resource.RLIMIT_DATA) == own


def test_api_keys_stay_in_the_web_process(
    parent: RendererParent, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTAFF_API_KEYS", "secret-key-of-a-test")
    pids = request.getfixturevalue("template").pids
    for pid in (*pids, process_of(parent).pid):
        assert b"secret-key" not in Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGTERM])
def test_its_exit_code_tells_how_it_ended(fork: Callable[[], RendererProcess], number: int) -> None:
    ended, running = fork(), fork()
    os.kill(ended.pid, number)
    assert not wait_ended([psutil.Process(ended.pid)], 10)
    assert (ended.end(), ended.end()) == (-number, -number)
    assert (running.end(), running.end()) == (-signal.SIGKILL, -signal.SIGKILL)


def test_an_interrupt_from_the_keyboard_ends_none(parent: RendererParent, template: RemoteTemplate) -> None:
    before = template.pids
    for pid in (*before, process_of(parent).pid):
        os.kill(pid, signal.SIGINT)
    assert render(template) == "x" and {*template.pids} == {*before}


def test_several_threads_fork_at_once(parent: RendererParent, fork: Callable[[], RendererProcess]) -> None:
    """From one parent, which the first of them starts."""
    others = psutil.Process().children()
    with ThreadPoolExecutor(8) as pool:
        processes = [*pool.map(lambda _: fork(), range(40))]
        assert [each for each in psutil.Process().children() if each not in others] == [process_of(parent)]
        assert {each.pid for each in processes} == {each.pid for each in process_of(parent).children()}
        assert {*pool.map(RendererProcess.end, processes)} == {-signal.SIGKILL}
    assert process_of(parent).children() == []


def test_nothing_is_left_of_those_that_were_replaced(
    parent: RendererParent, template: RemoteTemplate
) -> None:
    """No zombie process and no open file, in this process or in the parent."""
    here = psutil.Process()
    before = here.num_fds(), process_of(parent).num_fds()
    for _ in range(3):
        os.kill(template.pids[-1], signal.SIGKILL)
        assert render(template) == "x"
    assert {child.pid for child in process_of(parent).children()} == {*template.pids}
    wait_until(lambda: (here.num_fds(), process_of(parent).num_fds()) == before)


def test_a_killed_parent_is_replaced(parent: RendererParent, template: RemoteTemplate) -> None:
    """Its renderers go on; when one of them ends, a new parent forks the next."""
    killed, orphans = process_of(parent), template.pids
    killed.kill()
    killed.wait(10)
    assert render(template) == "x" and {*template.pids} == {*orphans}
    os.kill(template.pids[-1], signal.SIGKILL)
    assert render(template) == "x"
    assert process_of(parent) != killed
    (new,) = {*template.pids} - {*orphans}
    assert [child.pid for child in process_of(parent).children()] == [new]
    left = [psutil.Process(pid) for pid in template.pids]
    template.close()
    assert not wait_ended(left, 10)


def test_a_hung_parent_is_replaced(
    parent: RendererParent, fork: Callable[[], RendererProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderer_process, "_END_SECONDS", 0.5)
    orphan, stopped = fork(), process_of(parent)
    stopped.suspend()
    with monkeypatch.context() as context, pytest.raises(TimeoutError):
        context.setattr(renderer_process, "_START_SECONDS", 0.5)
        fork()
    assert not stopped.is_running()
    assert orphan.end() is None
    assert fork().end() == -signal.SIGKILL and process_of(parent) != stopped


def test_a_system_that_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError("no more processes")

    ours, theirs = socket.socketpair()
    monkeypatch.setattr(os, "fork", refuse)
    with ours:
        assert renderer_parent.fork(theirs) == -1
        with pytest.raises(OSError, match="no more processes"):
            RendererProcess(ours)
        renderer_parent.end(theirs, -1)
        assert ours.recv(1) == b""


def test_the_first_socket_that_closes_ends_all(
    parent: RendererParent, fork: Callable[[], RendererProcess]
) -> None:
    """The parent's own; when their creator ends, the kernel closes the sockets one after the other."""
    forked = [fork() for _ in range(3)]
    processes = [process_of(parent), *process_of(parent).children()]
    assert parent._control is not None
    parent._control.close()
    assert len(processes) == 4 and not wait_ended(processes, 20)
    assert [each.end() for each in forked] == [-signal.SIGKILL] * 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_all_end_with_their_creator(number: int) -> None:
    """However it ends, and also while one of them renders."""
    script = textwrap.dedent(CREATOR.format(source=SOURCE, seconds=SECONDS))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as creator:
        assert creator.stdout is not None and creator.stdout.readline() == b"renders\n"
        processes = psutil.Process(creator.pid).children(recursive=True)
        creator.send_signal(number)
    assert len(processes) == 1 + PROCESSES
    assert not wait_ended(processes, 20)
