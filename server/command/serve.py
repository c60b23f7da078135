"""Builds the web process: a listening socket, the app, supervised engines, a tokenizer.

The composition root of the web process. It decides nothing about requests or engines; it passes news from one
part to another, and turns signals and the end of the engines into an exit code. It never imports jax.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...checkpoints import load_tokenizer, open_checkpoint
from ...model.errors import DistaffError
from .. import exit_codes
from ..answering.context import App
from ..app import RUN_OPTIONS, create_app
from ..dispatch.admission import Admission
from ..engines import wire
from ..engines.engine_group import EngineGroup
from ..engines.supervisor import GivenUp, News
from ..exit_codes import Failed
from ..process.progress import ProgressDisplay, progress_display
from ..process.vital import start_task
from ..settings import ServerSettings
from ..text.rendering import RemoteTemplate
from ..text.text_model import ServedModel
from .engine_command import engine_commands
from .listener import address_of
from .welcome import welcome

log = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 1.0
"""How long a server without an engine still answers, so that its clients receive the reason."""

LoadText = Callable[[Path], ServedModel]
"""Loads the tokenizer and template of the checkpoint at a path; called in a thread."""


def text_loader(
    chat_template: Path | None, tool_format: str | None = None, reasoning_format: str = "auto"
) -> LoadText:
    """A function that loads a checkpoint's tokenizer and its recommended sampling parameters.

    Args:
      chat_template: replaces the checkpoint's. tool_format: replaces the one derived from the template.
      reasoning_format: the same for reasoning, unless it is `auto`.
    """

    def load(path: Path) -> ServedModel:
        started: list[RemoteTemplate] = []

        def start(source: str, special: Mapping[str, str]) -> RemoteTemplate:
            started.append(RemoteTemplate(source, special))
            return started[-1]

        def close() -> None:
            for template in started:
                template.close()

        try:
            text = load_tokenizer(path, chat_template, start)
            defaults = open_checkpoint(path).generation
            return ServedModel(text, defaults, tool_format, reasoning_format, close)
        except BaseException:
            close()
            raise

    return load


def run_web_process(settings: ServerSettings, listener: socket.socket) -> None:
    """Serves with one engine process for each replica until a signal.

    Raises:
      Failed: an engine or the tokenizer cannot be started.
    """
    flags = settings.flags
    WebProcess(
        settings,
        engine_commands(flags),
        listener,
        text_loader(flags.chat_template, flags.tool_format, flags.reasoning_format),
        progress_display(),
        restarts=flags.coordinator is None,
    ).run()


class WebProcess:
    """One server over one or more engine processes. Call `run` once."""

    def __init__(
        self,
        settings: ServerSettings,
        engine_commands: Sequence[Sequence[str]],
        listener: socket.socket,
        load_text: LoadText,
        display: ProgressDisplay,
        restarts: bool = True,
    ) -> None:
        """Starts nothing yet.

        Args:
          engine_commands: one for each replica. listener: a bound socket for the server.
          restarts: whether a lost engine is restarted. False if it is one of several processes, which can
            only be restarted together.
        """
        self._address = address_of(listener)
        self._listener = listener
        self._load_text = load_text
        self._display = display
        self._settings = settings
        self._served = ServedModel()
        flags = settings.flags
        admission = Admission(flags.max_concurrent, flags.max_wait)
        self._engine = EngineGroup(engine_commands, self._on_news, restarts, admission, flags.max_pause)
        self._app: App = create_app(settings, self._engine, self._served)
        self._app.register_listener(self._begin, "after_server_start")
        self._app.register_listener(self._prepare_to_end, "before_server_stop")
        self._failed: Failed | None = None
        self._welcomed = False
        self._loading: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Serves until a signal.

        Raises:
          Failed: the engine or the tokenizer cannot be started.
        """
        self._app.run(sock=self._listener, register_sys_signals=False, **RUN_OPTIONS)
        self._display.close()
        if self._failed:
            raise self._failed

    def _on_news(self, news: News) -> None:
        match news:
            case wire.Progress(phase, done, total):
                self._display.show(phase, done, total)
            case wire.Located(path) if self._loading is None:
                self._loading = start_task(
                    "loading of the tokenizer",
                    self._load(Path(path)),
                    lambda reason: self._fail(reason, exit_codes.ENGINE_LOST),
                )
            case wire.Ready():
                self._display.close()
                self._welcome()
            case GivenUp(message, exit_code):
                pause = _LAST_WORDS_SECONDS if self._welcomed else 0.0
                asyncio.get_running_loop().call_later(pause, self._fail, message, exit_code)

    async def _load(self, path: Path) -> None:
        try:
            loaded = await asyncio.to_thread(self._load_text, path)
        except DistaffError as error:
            self._fail(str(error), exit_codes.of(error))
            return
        self._served.text, self._served.defaults = loaded.text, loaded.defaults
        self._served.tool_format, self._served.close = loaded.tool_format, loaded.close
        self._served.reasoning_format = loaded.reasoning_format
        self._welcome()

    def _welcome(self) -> None:
        """Prints once how to use the server, as soon as it is ready."""
        if not self._welcomed and self._served.text and self._engine.state == "ready":
            self._welcomed = True
            gc.freeze()  # loaded objects stay; a collection that visits them pauses all streams for 0.1 s
            settings = self._settings
            needs_key, page = settings.keys is not None, not settings.flags.no_page
            print(welcome(self._address, settings.model, needs_key, page), flush=True)

    def _fail(self, message: str, code: int) -> None:
        if self._failed is None:
            self._failed = Failed(message, code)
            self._app.stop(terminate=False)

    async def _begin(self, app: App) -> None:
        log.info("listening on %s; loading %s", self._address, self._settings.model)
        self._on_signals(self._end)

    def _end(self, number: int) -> None:
        """The first signal: finishes running requests."""
        self._display.close()
        log.info("%s: finishing running requests; a second signal exits at once", signal.Signals(number).name)
        self._app.stop(terminate=False)

    async def _prepare_to_end(self, app: App) -> None:
        """Installs handlers again: Sanic has removed its own, and Python's would leave the engine running."""
        self._on_signals(self._end_at_once)

    def _end_at_once(self, number: int) -> None:
        """The second signal."""
        self._engine.kill()
        sys.stdout.flush()
        os._exit(128 + number)

    def _on_signals(self, handler: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, handler, number)
