"""The folder that keeps compiled steps between starts: a private one for each jaxlib, device and processor.

JAX writes and reads the files. Compiled code is executed when it is read, so only this user can access the
folder. Code for another processor can contain instructions that this one lacks, so each kind of processor has
its own folder. The folder is optional: without it, every start compiles.
"""

import errno
import hashlib
import logging
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

log = logging.getLogger(__name__)

_CPUINFO = Path("/proc/cpuinfo")


def keep_compiled(cache: Path, device_kind: str) -> Path | None:
    """Makes JAX keep everything that it compiles from now on; returns the folder, or None if there is none.

    Args:
      cache: the folder for all files that Distaff keeps.
      device_kind: the kind of device, e.g. `cpu` or `NVIDIA H100`.
    """
    import jax

    try:
        folder = compilation_folder(cache, device_kind)
    except OSError as error:
        log.warning("compiled programs are not kept, so every start compiles: %s", error)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def compilation_folder(cache: Path, device: str) -> Path:
    """A folder for compiled programs under `cache`, created if necessary, that only this user can access.

    It is private because compiled code is executed when it is read. It differs for every jaxlib, kind of
    device and kind of processor, because a missing instruction would end the process.

    Args:
      device: the kind of device, e.g. `cpu` or `NVIDIA H100`.

    Raises:
      OSError: it cannot be created or written to, or belongs to another user.
    """
    kind = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    name = f"{version('jaxlib')}-{kind}-{processor_digest()}"
    folder = cache / "compiled" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "not writable", str(folder))
    return folder


def processor_name() -> str:
    """The processor's model as it calls itself; empty if unknown."""
    text = _CPUINFO.read_text() if _CPUINFO.exists() else ""
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def processor_digest() -> str:
    """Eight hexadecimal digits that identify the processor's model and features."""
    lines = [platform.machine(), platform.processor()]
    if _CPUINFO.exists():
        first = _CPUINFO.read_text().split("\n\n", 1)[0]
        lines += [
            line for line in first.splitlines() if re.match(r"(model name|flags|Features|CPU part)\b", line)
        ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]
