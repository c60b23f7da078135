"""Renderer processes as the web process sees them: forked on request, and ended.

All of them are children of one other process (`renderer_parent.py`), which is started with the first one, and
again after it has ended. If the parent ends, its renderers continue: each ends when its connection closes or,
while it renders, by its alarm. Only its exit code is then unknown.
"""

import socket
import subprocess
import sys
import threading

from ...runtime.framing import received
from ..process.system import environment_without_keys
from . import renderer_wire as wire

_START_SECONDS = 120.0
"""The longest time for importing the libraries, on a very busy machine, and forking."""
_END_SECONDS = 5.0
"""The longest time for killing a process."""
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""numpy, which transformers imports, starts none: a process with several threads cannot be forked safely."""


class RendererProcess:
    """A forked process.

    Attributes:
      pid: its id.
    """

    def __init__(self, status: socket.socket) -> None:
        """Waits until it is forked.

        Args:
          status: where the parent reports about it; owned by this object.

        Raises:
          OSError: it cannot be forked, or the parent has ended. TimeoutError: the parent hangs.
        """
        self._lock = threading.Lock()
        self._status = status
        self._reports = received(status, wire.status_reader())
        self._code: int | None = None
        status.settimeout(_START_SECONDS)
        report = next(self._reports, None)
        if not isinstance(report, wire.Forked):
            raise OSError(report.reason if isinstance(report, wire.NotForked) else "its parent has ended")
        self.pid = report.pid

    def end(self) -> int | None:
        """Kills it, unless it has ended. Idempotent, thread-safe.

        Returns:
          its exit code, negative for a signal; None if it is unknown, because the parent has ended or hangs.
        """
        with self._lock, self._status:
            if self._status.fileno() >= 0:
                self._code = self._killed()
            return self._code

    def _killed(self) -> int | None:
        try:
            self._status.settimeout(_END_SECONDS)
            self._status.shutdown(socket.SHUT_WR)
            report = next(self._reports, None)
        except OSError:
            return None
        return report.code if isinstance(report, wire.Ended) else None


class RendererParent:
    """The process that forks renderers, which is started when it is needed. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def fork(self, connection: socket.socket) -> RendererProcess:
        """A new process that serves the other end of `connection`, which is still to be closed here.

        Raises:
          OSError: no process or socket can be created.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._request([connection.fileno(), theirs.fileno()])
            return RendererProcess(ours)
        except OSError as error:
            ours.close()
            if isinstance(error, TimeoutError):
                self.end()
            raise

    def end(self) -> None:
        """Kills it. Idempotent."""
        with self._lock:
            self._end()

    def _request(self, sockets: list[int]) -> None:
        """Sends it the connection and the status socket of a renderer."""
        with self._lock:
            try:
                socket.send_fds(self._control or self._start(), [b"\0"], sockets)
            except ConnectionError:  # it has ended
                socket.send_fds(self._start(), [b"\0"], sockets)

    def _start(self) -> socket.socket:
        """Starts it, in place of one that has ended; returns the control socket."""
        self._end()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_START_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "distaff.server.text.renderer_parent", "--fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=environment_without_keys() | _ONE_THREAD,
            )
        return self._control

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
