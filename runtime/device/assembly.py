"""Builds the `Runner` of an engine, a leader or a follower from a model, its parameters and the settings.

Every process of a mesh must compute the same sizes, because they are part of the compiled programs.
"""

import hashlib
import logging
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ...model.cache import page_bytes
from ...model.config import ModelConfig
from ...model.errors import ConfigError
from ...model.lora import AdapterShapes
from ...model.rotary import follows_length
from ...model.sharding import pad_config
from ...model.target import Target
from ...model.transformer import AfterLayer, Skeleton
from ..policy.host_pages import HostPages
from ..policy.page_file import PageFile
from .loading import Loading, Parameters, already_loaded
from .memory import size_host_pages, size_pool
from .processes import agree, minimum
from .runner import Followers, Runner
from .settings import EngineSettings, cache_dtype, derive_shapes

log = logging.getLogger(__name__)


def assemble(
    config: ModelConfig,
    parameters: Parameters | Loading,
    settings: EngineSettings,
    mesh: Mesh,
    followers: Followers | None = None,
    page_file: PageFile | None = None,
    after_layer: AfterLayer | None = None,
) -> Runner:
    """Sizes the KV pool and creates the runner; compiles nothing yet.

    Several processes that share a mesh compare their parameters, so these must be loaded.

    Args:
      parameters: as for an `Engine`.
      page_file: for copies of pages; None without. Unused if no pages are shared, or by several processes.
      after_layer: see `Transformer.hidden`.

    Raises:
      ConfigError: settings that the model or machine does not support.
      OutOfMemory: no room for the KV pool.
    """
    devices = mesh.local_devices
    loading = parameters if isinstance(parameters, Loading) else already_loaded(parameters, mesh)
    dtype = cache_dtype(settings.kv_cache_dtype, loading.dtype)
    skeleton = Skeleton.of(config, Target.of(mesh, dict(settings.kernels), loading.quantization))
    skeleton = replace(skeleton, after_layer=after_layer)
    adapters = adapter_shapes(skeleton, settings, loading.dtype, mesh)
    invariant = skeleton.is_batch_invariant(loading.dtype) and (adapters is None or adapters.in_panels)
    shapes = derive_shapes(config, settings, devices[0], invariant=invariant)
    padded = pad_config(config, mesh.size)
    if not isinstance(parameters, Loading) and mesh.is_multi_process:
        agree({"the digest of the weights": digest_of_replicated(parameters)})
    free, kv_pages = loading.free, settings.kv_pages
    if adapters is not None:
        log.info("adapters: %d of rank %d, %.0f MB", adapters.count, adapters.rank, adapters.nbytes / 1e6)
        free = max(1, free - adapters.nbytes * len(devices)) if free else 0
    width, replicas = loading.dtype.itemsize, settings.replicas
    packed = settings.packed_pages
    pages = minimum(size_pool(padded, shapes, dtype, devices, kv_pages, replicas, free, width, packed))
    shapes = replace(shapes, table=min(shapes.table, pages))  # no sequence has more, see `Engine.context`
    host_pages = None
    if page_file and shares_prefixes(config, settings) and not mesh.is_multi_process:
        size, wanted = page_bytes(padded, shapes.page_size, dtype), settings.host_kv_pages
        most = size_host_pages(pages, size, devices[0], free, wanted, settings.replicas)
        host_pages = HostPages(page_file, most, shapes.page_size, size) if most else None
    return Runner(skeleton, mesh, loading, shapes, pages, dtype, followers, host_pages, adapters)


def adapter_shapes(
    skeleton: Skeleton, settings: EngineSettings, dtype: jnp.dtype, mesh: Mesh
) -> AdapterShapes | None:
    """The sizes of adapters on the device; None without.

    Raises:
      ConfigError: a size is not positive, or several processes share the mesh.
    """
    count, rank = settings.max_adapters, settings.max_adapter_rank
    if not count:
        return None
    if count < 0 or rank < 1:
        raise ConfigError(f"max_adapters is {count} and max_adapter_rank {rank}; expected positive numbers")
    if mesh.is_multi_process:
        raise ConfigError(f"max_adapters is {count}; expected 0, as several processes share the model")
    return AdapterShapes(
        config=skeleton.config, target=skeleton.target, count=count, rank=rank, dtype=jnp.dtype(dtype)
    )


def shares_prefixes(config: ModelConfig, settings: EngineSettings) -> bool:
    """Whether sequences share the pages of equal beginnings."""
    return settings.prefix_cache and not follows_length(config)


def digest_of_replicated(parameters: Parameters) -> str:
    """A hexadecimal digest of the parameters that every device holds completely: norms and routers.

    It distinguishes two checkpoints of one configuration, and is quick to compute.
    """
    digest = hashlib.sha256()
    for name, values in sorted(parameters.items()):
        if values.is_fully_replicated:
            digest.update(name.encode() + np.asarray(values.addressable_data(0)).tobytes())
    return digest.hexdigest()[:16]
