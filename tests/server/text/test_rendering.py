"""Chat templates that take all the time or memory there is, rendered where neither is the server's."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.tokenization.chat_template import ChatTemplate, TemplateError
from distaff.checkpoints.tokenization.tokenizer_parts import TokenizerParts
from distaff.checkpoints.tokenizer import ChatTokenizer
from distaff.model.errors import DistaffError
from distaff.runtime.request import Overloaded
from distaff.server.text import rendering
from distaff.server.text.renderer_process import RendererProcess
from distaff.server.text.rendering import PROCESSES, RemoteTemplate

from ...checkpoints.making import CHATML, byte_level
from ..conftest import MODEL, Server

SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
SECONDS = 3.0
"""Enough for whatever ends at all, on a busy machine."""

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
REPEATED = "{{ 'a' * 10**9 }}"
DOUBLED = (
    "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}"
    "{{ n.s }}"
)
LONG = "{{ 'a' * (4 * 10**7) }}"
TOO_SLOW = f"takes longer than {SECONDS:g} s"
TOO_LARGE = "needs more than 512 MiB of memory"
HOSTILE = (
    f"{{% for m in messages %}}{{% if m.content == 'loops' %}}{LOOPS}{{% elif m.content == 'repeated' %}}"
    f"{REPEATED}{{% elif m.content == 'doubled' %}}{DOUBLED}{{% elif m.content == 'long' %}}{LONG}"
    "{% elif m.content == 'refuse' %}{{ raise_exception('not this') }}{% endif %}{{ m.content }}{% endfor %}"
)
"""Hostile for some messages only, so that it loads."""


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def hostile() -> Iterator[RemoteTemplate]:
    template = RemoteTemplate(HOSTILE, SPECIAL, SECONDS)
    yield template
    template.close()


def render(template: RemoteTemplate, text: str) -> str:
    return template.render(said(text), add_generation_prompt=True, continue_final_message=False)


@pytest.fixture
def make_remote() -> Iterator[Callable[..., RemoteTemplate]]:
    made: list[RemoteTemplate] = []

    def make(source: str) -> RemoteTemplate:
        made.append(RemoteTemplate(source, SPECIAL, SECONDS))
        return made[-1]

    yield make
    for template in made:
        template.close()


@pytest.mark.parametrize(
    "source", [CHATML, "{{ unfinished", "{{ raise_exception('never') }}", "{{ style }}{{ tools }}"]
)
def test_a_template_is_the_same_elsewhere(make_remote: Callable[..., RemoteTemplate], source: str) -> None:
    here, there = ChatTemplate(source, SPECIAL), make_remote(source)
    assert (there.source, there.options, there.knows_tools) == (here.source, here.options, here.knows_tools)
    schema = {"type": "integer", "maximum": 10**30, "x": [0.1, None, True, "é🙂\x00"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"a": schema}}}]
    keywords = {
        "add_generation_prompt": True,
        "continue_final_message": False,
        "tools": tools,
        "options": {"style": 7},
    }
    answers = []
    for template in (here, there):
        try:
            answers.append(template.render(said("é🙂\x00"), **keywords))
        except TemplateError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("loops", TOO_SLOW),
        ("repeated", TOO_LARGE),
        ("doubled", TOO_LARGE),
        ("long", "produced a text of 40000"),
        ("refuse", "not this"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_is_refused_and_the_next_one_is_answered(
    hostile: RemoteTemplate, text: str, reason: str
) -> None:
    with pytest.raises(TemplateError, match=reason):
        render(hostile, text)
    assert render(hostile, "x") == "x"


@pytest.mark.parametrize(
    ("source", "reason"), [(LOOPS, TOO_SLOW), (REPEATED, TOO_LARGE), (DOUBLED, TOO_LARGE)]
)
def test_a_template_that_cannot_be_loaded_is_a_bad_checkpoint(
    hostile: RemoteTemplate, source: str, reason: str
) -> None:
    before = psutil.Process().children(recursive=True)
    with pytest.raises(CheckpointError, match=reason):
        RemoteTemplate(source, SPECIAL, SECONDS)
    assert psutil.Process().children(recursive=True) == before


def test_all_renderers_are_started(make_remote: Callable[..., RemoteTemplate]) -> None:
    template = make_remote(HOSTILE)
    assert len({*template.pids}) == PROCESSES == len(template._living)
    assert render(template, "x") == "x" and len(template.pids) == PROCESSES


def test_a_renderer_that_could_not_be_started_is_started_for_a_conversation(
    make_remote: Callable[..., RemoteTemplate],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    forks, real = iter(range(100)), rendering._parent.fork

    def fork(connection: socket.socket) -> RendererProcess:
        if next(forks):
            raise BlockingIOError("no more processes")
        return real(connection)

    with monkeypatch.context() as context:
        context.setattr(rendering._parent, "fork", fork)
        template = make_remote(HOSTILE)
    assert len(template.pids) == 1
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["no more processes"]
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(render, template, "loops")
        while template.pids:
            pass
        assert render(template, "x") == "x"
        with pytest.raises(TemplateError, match=TOO_SLOW):
            slow.result()


def test_renderers_that_are_killed_are_replaced(make_remote: Callable[..., RemoteTemplate]) -> None:
    template = make_remote(HOSTILE)
    for pid in (killed := template.pids):
        os.kill(pid, signal.SIGKILL)
    # Each try meets one that was killed: who comes second finds new ones.
    with pytest.raises(TemplateError, match="ended 2 times"):
        render(template, "x")
    assert render(template, "x") == "x"
    assert len(template.pids) == PROCESSES and not {*template.pids} & {*killed}
    os.kill(template.pids[-1], signal.SIGKILL)
    assert render(template, "x") == "x"


def test_a_stopped_renderer_is_replaced(
    make_remote: Callable[..., RemoteTemplate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "_GRACE_SECONDS", 0.5)
    template = make_remote(HOSTILE)
    os.kill(template.pids[-1], signal.SIGSTOP)
    with pytest.raises(TemplateError, match=TOO_SLOW):
        render(template, "x")
    assert render(template, "x") == "x"


def test_a_slow_conversation_leaves_a_renderer_to_the_others(
    make_remote: Callable[..., RemoteTemplate],
) -> None:
    template = make_remote(HOSTILE)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(render, template, "loops")
        assert [render(template, "x") for _ in range(20)] == ["x"] * 20
        assert not slow.done()
        with pytest.raises(TemplateError, match=TOO_SLOW):
            slow.result()


def test_a_conversation_waits_for_a_renderer_within_bounds(
    make_remote: Callable[..., RemoteTemplate], monkeypatch: pytest.MonkeyPatch
) -> None:
    template = make_remote(HOSTILE)
    monkeypatch.setattr(rendering, "QUEUE_SECONDS", 0.05)
    with ThreadPoolExecutor(PROCESSES) as pool:
        slow = [pool.submit(render, template, "loops") for _ in range(PROCESSES)]
        while template.pids:
            pass
        with pytest.raises(Overloaded):
            render(template, "x")
        template.close()  # what renders gives up at once
        for each in slow:
            assert isinstance(each.exception(), DistaffError)


def test_no_renderer_outlives_its_template(make_remote: Callable[..., RemoteTemplate]) -> None:
    template = make_remote(CHATML)
    processes = [psutil.Process(pid) for pid in template.pids]
    template.close()
    assert not psutil.wait_procs(processes, 10)[1]


@pytest.fixture(scope="module")
def hostile_server(hostile: RemoteTemplate) -> Iterator[Server]:
    """A server whose template is hostile for some messages."""
    server = Server()
    parts = TokenizerParts(byte_level(), SPECIAL, HOSTILE, (2,))
    server.served.text = ChatTokenizer(parts, lambda source, special: hostile)
    server.served.close = hostile.close
    yield server
    server.close()
    assert not hostile.pids  # they end with the server


@pytest.mark.parametrize(
    ("path", "text", "body"),
    [
        ("/v1/chat/completions", "loops", lambda text: {"model": MODEL, "messages": said(text)}),
        ("/v1/responses", "repeated", lambda text: {"model": MODEL, "input": text}),
        ("/tokenize", "doubled", lambda text: {"messages": said(text)}),
        ("/chat_tokenize", "long", lambda text: {"messages": said(text)}),
        ("/invocations", "repeated", lambda text: {"model": MODEL, "messages": said(text)}),
    ],
)
def test_every_route_refuses_it_and_goes_on(
    hostile_server: Server, path: str, text: str, body: Callable[[str], dict[str, Any]]
) -> None:
    with httpx.Client(base_url=hostile_server.url, timeout=60) as http, ThreadPoolExecutor(1) as pool:
        reply = pool.submit(http.post, path, json=body(text))
        while not reply.done():
            assert httpx.get(hostile_server.url + "/health").status_code == 200
        assert reply.result().status_code == (422 if path == "/invocations" else 400)
        assert "the chat template" in reply.result().text
        assert http.post(path, json=body("Hi")).status_code == 200
