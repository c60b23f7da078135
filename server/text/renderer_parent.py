"""The process that forks renderers: `python -m distaff.server.text.renderer_parent --fd N`.

It imports the libraries once. A renderer that it forks (`renderer.py`) starts in milliseconds and shares its
memory. `renderer_process.py` starts this process and sends it the sockets of each renderer, as described in
`renderer_wire.py`. When the web process ends, in whatever way, this process kills the renderers and ends. It
runs no template, and has one thread, because a fork copies only one.
"""

import argparse
import contextlib
import gc
import os
import select
import signal
import socket

from . import renderer
from . import renderer_wire as wire


def main() -> None:
    """Forks renderers until the web process closes the control socket."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    control = socket.socket(fileno=parser.parse_args().fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGALRM, signal.SIGCHLD):  # which whoever started the server may have ignored
        signal.signal(number, signal.SIG_DFL)
    renderer.import_libraries()
    gc.freeze()  # a collection in a renderer would write to what it shares, and so copy it
    connection = fork_renderers(control)
    if connection is not None:
        renderer.run(connection)


def fork_renderers(control: socket.socket) -> socket.socket | None:
    """Forks and ends renderers until the web process ends; returns None.

    Returns in each forked process too: its connection, when all other sockets are closed.
    """
    renderers: dict[socket.socket, int] = {}
    try:
        while request := next_request(control, renderers):
            connection, status = request
            renderers[status] = fork(status)
            if renderers[status] == 0:
                return connection
            connection.close()
        for status, pid in renderers.items():
            end(status, pid)
    finally:
        for each in (control, *renderers):
            each.close()


def next_request(control: socket.socket, renderers: dict[socket.socket, int]) -> list[socket.socket]:
    """The connection and the status socket of the next renderer; none when the web process has ended.

    Args:
      renderers: their ids by status socket; those that the web process gives up are ended and removed.
    """
    while True:
        ready = select.select([control, *renderers], [], [])[0]
        for status in renderers.keys() & {*ready}:
            end(status, renderers.pop(status))
        if control in ready:
            return [socket.socket(fileno=number) for number in socket.recv_fds(control, 1, 2)[1]]


def fork(status: socket.socket) -> int:
    """Forks this process, and reports it: the new one's id, or -1 if there is none; 0 in the new one."""
    try:
        pid = os.fork()
    except OSError as error:
        send(status, wire.NotForked(str(error)))
        return -1
    if pid:
        send(status, wire.Forked(pid))
    return pid


def end(status: socket.socket, pid: int) -> None:
    """Kills a renderer, unless it has ended, and reports its exit code.

    Nobody else waits for it, so its id is not given to another process before. If it was never forked, only
    the socket is closed.
    """
    with status:
        if pid > 0:
            os.kill(pid, signal.SIGKILL)
            send(status, wire.Ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))


def send(status: socket.socket, frame: wire.FromParent) -> None:
    """Sends a frame to the web process, unless that does not listen any more."""
    with contextlib.suppress(OSError):
        status.sendall(wire.encode(frame))


if __name__ == "__main__":
    main()
