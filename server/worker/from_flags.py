"""What the flags become on a machine: a mesh, a data type, the engine's settings.

Used by the leader (`main.py`) and by followers alike, which must compile the same steps. jax is imported
inside functions, after the environment that XLA reads once is set.
"""

import logging
import os
from dataclasses import fields
from importlib.metadata import version
from typing import TYPE_CHECKING

from ...checkpoints.sources import cache_folder
from ...runtime.options import parse_kernels
from ..flags import Compiled, ServeFlags, flag, marked
from ..process import system
from .refusals import settings_refused

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh
    from jaxlib._jax import Device

    from ...checkpoints.checkpoint import Checkpoint
    from ...runtime.device.settings import EngineSettings

log = logging.getLogger(__name__)


def set_up_mesh(flags: ServeFlags) -> "Mesh":
    """Creates the mesh of the engine's devices, and sets up JAX's compilation cache for them.

    Raises:
      SettingRefused: an invalid mesh, too few devices, or processes that do not connect.
    """
    from ...runtime.compilation_cache import keep_compiled
    from ...runtime.devices import claim_mesh

    with settings_refused():
        mesh = claim_mesh(flags.mesh, flags.membership)
    kind = mesh.local_devices[0].device_kind
    keep_compiled(cache_folder(), kind)
    cores = system.usable_cores(sharing=flags.replicas)
    log.info("running on %d x %s with %d cores", mesh.size, kind, cores)
    return mesh


def dtype_of(flags: ServeFlags, device: "Device") -> "np.dtype":
    """The data type of the computation."""
    from ...runtime.device.settings import compute_dtype

    with settings_refused():
        return compute_dtype(flags.dtype, device)


def engine_settings_of(flags: ServeFlags, device: "Device") -> "EngineSettings":
    """The engine's settings for such a device: those of a flag's name have its value.

    Raises:
      ConfigError: the pool would have no page.
    """
    from ...runtime.device.settings import EngineSettings, pages_of, platform_of

    names = {field.name for field in fields(EngineSettings)} & set(ServeFlags.__struct_fields__)
    settings = {name: getattr(flags, name) for name in names}
    if flags.kv_tokens is not None:
        settings["kv_pages"] = pages_of(flags.kv_tokens, device)
    if flags.host_kv_tokens is not None:
        settings["host_kv_pages"] = -(-flags.host_kv_tokens // platform_of(device).page_size)
    if flags.profile is not None:
        settings["profile"] = str(flags.profile)
    return EngineSettings(
        **settings,
        kernels=parse_kernels(flags.kernel or ()),
        prefix_cache=not flags.no_prefix_cache,
        speculation=not flags.no_speculation,
        grammars=True,
        scores=True,
    )


def facts_of(flags: ServeFlags, checkpoint: "Checkpoint") -> dict[str, object]:
    """Facts that must be equal in all processes of a mesh, under names that an operator knows."""
    return {
        "the model's configuration": repr(checkpoint.config),
        "the quantisation of weights": checkpoint.quantization and str(checkpoint.quantization),
        **{f"the {package} version": version(package) for package in ("distaff", "jax", "jaxlib")},
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **{flag(name): getattr(flags, name) for name, _ in marked(Compiled)},
    }
