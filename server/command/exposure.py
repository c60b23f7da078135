"""Whether a server may stand open: who can reach the address, and whether they need a key.

Binds nothing and reads no key. The one idea: that anybody may ask is something an operator says in words,
never what happens because nothing was said.
"""

import ipaddress
import logging
import socket
from collections.abc import Sequence
from typing import Literal

from .. import exit_codes
from ..answering import cors
from ..exit_codes import Failed
from ..keys import VARIABLE, Keys

logger = logging.getLogger(__name__)

Auth = Literal["keys", "none"]
"""Who may ask: whoever has a key, where keys are in use or others can reach the address; or anybody."""


def check_exposure(host: str, keys: Keys | None, auth: Auth) -> None:
    """Refuses to serve everybody by oversight. On this machine's own addresses no key is needed.

    Raises:
      Failed: an address that others can reach, without keys; keys that nobody would be asked for; a host
        without an address.
    """
    if auth == "none" and keys is not None:
        raise Failed("--auth none and API keys exclude each other", exit_codes.USAGE)
    if auth == "keys" and keys is None and not is_loopback(host):
        raise Failed(
            f"others can reach {host}, and no API keys are set: give --api-keys FILE or set {VARIABLE}; "
            "or say --auth none if anybody may ask",
            exit_codes.REFUSED_SETTING,
        )


def check_origins(origins: Sequence[str], keys: Keys | None, beside_keys: bool) -> None:
    """Refuses that any web page at all may ask with a key, unless that is said.

    Raises:
      Failed: every origin is allowed, and keys are in use.
    """
    if cors.ANY in origins and keys is not None and not beside_keys:
        raise Failed(
            "--allow-origin '*' lets every web page use an API key that it gets hold of: name the origins, "
            "or say --any-origin-with-keys",
            exit_codes.REFUSED_SETTING,
        )


def warn_of_exposure(address: str, auth: Auth) -> None:
    """Repeats in the log what `--auth none` means for a server at `address`."""
    if auth == "none":
        logger.warning("--auth none: whoever can reach %s may ask, no key is needed", address)


def is_loopback(host: str) -> bool:
    """Whether every address of a host is reached from this machine alone.

    Raises:
      Failed: it has none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Failed(f"cannot listen on {host}: {reason}", exit_codes.PORT_TAKEN) from error
    return all(_is_loopback(str(address[0])) for *_, address in found)


def _is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
