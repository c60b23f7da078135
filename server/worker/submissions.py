"""Submits requests to the engine: at once, or after a thread has compiled their grammar.

Compiling a grammar may take long, up to a bound, and the thread that reads the web process's frames must not
wait for it, because aborts and other requests follow. The id of a request is kept while its grammar compiles,
and an abort removes the id; the compiling thread submits the request only if the id is still there. A request
keeps its position in the order of arrival, so that those that follow do not get ahead meanwhile.
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
"""Grammars that are compiled at the same time, so that a slow one does not block all others."""

Refuse = Callable[[TokenEvent], None]
"""Called with the final event of a request that is refused."""


class TakesRequests(Protocol):
    """The interface of an engine that this module needs."""

    def submit(self, request: Request, arrival: int | None = None) -> None: ...

    def next_arrival(self) -> int: ...

    def abort(self, request_id: str) -> None: ...


class Submissions:
    """Submits to one engine. `submit` and `abort` are called by one thread, in order, and do not block."""

    def __init__(self, engine: TakesRequests, refuse: Refuse) -> None:
        """Accepts requests for `engine`; `refuse` may be called on any thread."""
        self._engine = engine
        self._refuse = refuse
        self._pool = ThreadPoolExecutor(_COMPILERS, thread_name_prefix="grammars")
        self._compiling: set[str] = set()
        self._lock = threading.Lock()

    def submit(self, request: Request) -> None:
        """Submits a request, now or after its grammar is compiled. Refuses one that the engine rejects."""
        if request.params.grammar is None:
            self._enter(request)
            return
        with self._lock:
            self._compiling.add(request.id)
        self._pool.submit(self._compile, request, self._engine.next_arrival())

    def abort(self, request_id: str) -> None:
        """Aborts a request in any state."""
        with self._lock:
            compiling = request_id in self._compiling
            self._compiling.discard(request_id)
        if not compiling:
            self._engine.abort(request_id)

    def _compile(self, request: Request, arrival: int) -> None:
        with self._lock:
            if request.id not in self._compiling:
                return
        self._enter(request, arrival)
        with self._lock:
            aborted = request.id not in self._compiling
            self._compiling.discard(request.id)
        if aborted:
            self._engine.abort(request.id)

    def _enter(self, request: Request, arrival: int | None = None) -> None:
        """Submits a request. An error affects only this request."""
        try:
            self._engine.submit(request, arrival)
        except DistaffError as error:
            self._refuse(refusal(request, error))
        except BaseException as error:  # a panic in a grammar library is not an Exception
            log.exception("request %s could not be submitted", request.id)
            self._refuse(refusal(request, EngineError(f"unexpected {type(error).__name__}")))


def refusal(request: Request, error: DistaffError) -> TokenEvent:
    """The only event of a refused request. Without a running engine it counts as lost, not as failed."""
    param = error.param if isinstance(error, InvalidRequest) else None
    lost = isinstance(error, NotReady)
    return TokenEvent(request_id=request.id, finish="error", error=str(error), param=param, lost=lost)
