"""Installed versions, for `distaff version` and bug reports. Reads package metadata; imports no package."""

import platform
from importlib.metadata import version

_PACKAGES = ("distaff", "jax", "jaxlib", "flax")


def own_version() -> str:
    """Distaff's."""
    return version("distaff")


def versions() -> dict[str, str]:
    """Names and versions: Distaff's own first, then the machine's."""
    found = {name: version(name) for name in _PACKAGES}
    return found | {"python": platform.python_version(), "platform": platform.platform()}
