"""Whether a server may accept requests without a key, given who can reach its address.

Binds no socket and reads no key. An operator must ask for an open server explicitly; it is never the result
of a setting that is missing.
"""

import ipaddress
import logging
import socket
from collections.abc import Sequence

import typer

from ...model.errors import ConfigError
from .. import exit_codes
from ..answering import cors
from ..exit_codes import Failed
from ..flags import Auth
from ..keys import VARIABLE, Keys

log = logging.getLogger(__name__)


def check_exposure(host: str, keys: Keys | None, auth: Auth) -> None:
    """Refuses to serve everybody by mistake. Loopback addresses need no key.

    Raises:
      Failed: an address that others can reach, without keys; keys that would not be checked; a host without
        an address.
    """
    if auth == "none" and keys is not None:
        raise Failed("--auth none and API keys exclude each other", exit_codes.USAGE)
    if auth == "keys" and keys is None and not is_loopback(host):
        raise Failed(
            f"others can reach {host}, and no API keys are set: give --api-keys FILE or set {VARIABLE}; "
            "or give --auth none to accept requests without a key",
            exit_codes.REFUSED_SETTING,
        )


def parse_origins(texts: Sequence[str]) -> tuple[str, ...]:
    """The values of `--allow-origin`.

    Raises:
      typer.BadParameter: one of them is not an origin.
    """
    try:
        return tuple(map(cors.parse_origin, texts))
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="'--allow-origin'") from None


def check_origins(origins: Sequence[str], keys: Keys | None, beside_keys: bool) -> None:
    """Refuses to let every web page use a key, unless the operator allows it explicitly.

    Raises:
      Failed: every origin is allowed, and keys are in use.
    """
    if cors.ANY in origins and keys is not None and not beside_keys:
        raise Failed(
            "--allow-origin '*' lets every web page use an API key that it obtains: name the origins, "
            "or give --any-origin-with-keys",
            exit_codes.REFUSED_SETTING,
        )


def warn_of_exposure(address: str, auth: Auth) -> None:
    """Logs a warning about what `--auth none` means for a server at `address`."""
    if auth == "none":
        log.warning("--auth none: anybody who can reach %s may send requests without a key", address)


def is_loopback(host: str) -> bool:
    """Whether every address of a host can be reached from this machine only.

    Raises:
      Failed: it has no address.
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
