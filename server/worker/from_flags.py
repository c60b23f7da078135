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
    from ...runtime.packs import Pack, PackWriter

log = logging.getLogger(__name__)

_SIZES_OF_POOL = (flag("kv_pages"), flag("kv_tokens"))


def set_up_mesh(flags: ServeFlags) -> "Mesh":
    """Creates the mesh of the engine's devices.

    Raises:
      SettingRefused: an invalid mesh, too few devices, or processes that do not connect.
    """
    from ...runtime.devices import claim_mesh

    with settings_refused():
        mesh = claim_mesh(flags.mesh, flags.membership)
    kind, cores = mesh.local_devices[0].device_kind, system.usable_cores(sharing=flags.replicas)
    log.info("running on %d x %s with %d cores", mesh.size, kind, cores)
    return mesh


def set_up_programs(
    flags: ServeFlags, checkpoint: "Checkpoint", mesh: "Mesh", writer: "PackWriter | None" = None
) -> "Pack | None":
    """Decides where compiled programs come from and are kept, before there is one: in the pack that is being
    written, in the one that `--compiled` names if it fits, which is returned, or in the user's cache.

    Raises:
      SettingRefused: the pool would have no page.
    """
    from ...runtime.compilation_cache import keep_compiled
    from ...runtime.packs import open_pack

    device, facts = mesh.local_devices[0], program_facts_of(flags, checkpoint, mesh)
    if writer:
        writer.begin(facts)
        return None
    with settings_refused():
        pages = engine_settings_of(flags, device).kv_pages
    pack = open_pack(flags.compiled, facts, pages) if flags.compiled else None
    if pack:
        pack.use()
    else:
        keep_compiled(cache_folder(), device.device_kind)
    return pack


def program_facts_of(flags: ServeFlags, checkpoint: "Checkpoint", mesh: "Mesh") -> dict[str, str]:
    """All that decides the compiled programs except the size of the KV pool, which a pack has in pages."""
    from ...model.kernels import native_library
    from ...runtime.compilation_cache import processor_digest, processor_name

    device = mesh.local_devices[0]
    facts = facts_of(flags, checkpoint) | {
        "the device": device.device_kind,
        "the number of devices": mesh.size,
        "the number of processes": flags.num_processes,
        "the version of the device's runtime": " ".join(device.client.platform_version.split()),
        "the processor": f"{processor_name()} ({processor_digest()})",
        "LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", ""),
    }
    if device.platform == "cpu":  # XLA divides loops by the number of cores
        facts["the number of cores"] = system.usable_cores(sharing=flags.replicas)
        facts["the digest of the native kernels"] = native_library.digest()
    return {name: str(value) for name, value in facts.items() if name not in _SIZES_OF_POOL}


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
    settings["max_adapters"] = flags.max_adapters or len(flags.adapter or ())
    settings["max_adapter_rank"] = flags.max_adapter_rank or EngineSettings().max_adapter_rank
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
