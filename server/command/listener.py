"""The socket that the server listens on, bound before any heavy work starts."""

import socket

from .. import exit_codes
from ..exit_codes import Failed


def listen(host: str, port: int) -> socket.socket:
    """Binds a TCP socket; port 0 takes a free one.

    Raises:
      Failed: the address is in use, or not an address of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise Failed(f"cannot listen on {host}:{port}: {reason}", exit_codes.PORT_TAKEN) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL of a server that listens on this socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"
