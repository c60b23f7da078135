"""A server for one terminal chat or one batch: started on a free port, and ended with it."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException

from .. import exit_codes
from ..exit_codes import Failed
from ..keys import VARIABLE
from ..process import system
from .listener import listen

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.2
_STOP_SECONDS = 15.0


@contextmanager
def own_server(model: str | None, flags: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Runs `distaff serve` in its own session, so that Ctrl-C reaches only us; yields its URL and key.

    The key is generated for this server; keys in this process's environment are not used.

    Args:
      flags: further ones of `distaff serve`.

    Raises:
      Failed: it did not start; its own message is on stderr.
    """
    with listen(_HOST, 0) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "distaff.server.command.cli", "serve", *([model] if model else [])]
    command += ["--host", _HOST, "--port", str(port), "--log-level", "warning", *flags]
    key = secrets.token_urlsafe(32)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {VARIABLE: key},
        preexec_fn=system.die_with_parent,
    )
    try:
        _wait_until_ready(process, port)
        yield f"http://{_HOST}:{port}", key
    finally:
        _end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    while not _is_ready(port):
        if process.poll() is not None:
            raise Failed("the server did not start", process.returncode or exit_codes.ENGINE_LOST)
        time.sleep(_POLL_SECONDS)


def _is_ready(port: int) -> bool:
    connection = HTTPConnection(_HOST, port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
