"""Requests on their way into the engine: at once, or by way of a thread that compiles their grammar first.

Compiling a grammar takes as long as its author likes, up to a bound, and whoever reads the web process's
frames must not wait for it: aborts and other requests are behind it. The one idea: a request that is being
compiled is known by its id, and an abort takes that id away; whoever has compiled finds it gone.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from ...model.errors import DistaffError
from ...runtime.request import EngineError, InvalidRequest, NotReady, Request, TokenEvent

log = logging.getLogger(__name__)

_COMPILERS = 2
"""Grammars that are compiled at the same time: one that takes long does not keep all others waiting."""

Refuse = Callable[[TokenEvent], None]
"""Is called with the end of a request that cannot be taken."""


class TakesRequests(Protocol):
    """What is asked of an engine here."""

    def submit(self, request: Request) -> None: ...

    def abort(self, request_id: str) -> None: ...


class Submissions:
    """The way into one engine. `submit` and `abort` come from one thread, in order, and do not block."""

    def __init__(self, engine: TakesRequests, refuse: Refuse) -> None:
        """Takes requests for `engine`; `refuse` is called on any thread."""
        self._engine = engine
        self._refuse = refuse
        self._pool = ThreadPoolExecutor(_COMPILERS, thread_name_prefix="grammars")
        self._compiling: set[str] = set()
        self._lock = threading.Lock()

    def submit(self, request: Request) -> None:
        """Hands a request over, now or once its grammar is compiled. One that cannot be taken is refused."""
        if request.params.grammar is None:
            self._enter(request)
            return
        with self._lock:
            self._compiling.add(request.id)
        self._pool.submit(self._compile, request)

    def abort(self, request_id: str) -> None:
        """Ends a request wherever it is."""
        with self._lock:
            compiling = request_id in self._compiling
            self._compiling.discard(request_id)
        if not compiling:
            self._engine.abort(request_id)

    def _compile(self, request: Request) -> None:
        with self._lock:
            if request.id not in self._compiling:
                return
        self._enter(request)
        with self._lock:
            aborted = request.id not in self._compiling
            self._compiling.discard(request.id)
        if aborted:
            self._engine.abort(request.id)

    def _enter(self, request: Request) -> None:
        """Submits a request. Whatever goes wrong is wrong with this one alone."""
        try:
            self._engine.submit(request)
        except DistaffError as error:
            self._refuse(refusal(request, error))
        except BaseException as error:  # a panic in a grammar library's own code is no Exception
            log.exception("request %s could not be taken", request.id)
            self._refuse(refusal(request, EngineError(f"unexpected {type(error).__name__}")))


def refusal(request: Request, error: DistaffError) -> TokenEvent:
    """The only event of a request that cannot be taken. One that met no running engine is merely lost."""
    param = error.param if isinstance(error, InvalidRequest) else None
    lost = isinstance(error, NotReady)
    return TokenEvent(request_id=request.id, finish="error", error=str(error), param=param, lost=lost)
