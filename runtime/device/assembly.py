"""Builds the `Runner` of an engine, a leader or a follower from a model, its parameters and the settings.

Every process of a mesh must compute the same sizes, because they are part of the compiled programs.
"""

import hashlib
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from ...model.config import ModelConfig
from ...model.quantize import quantization_of
from ...model.sharding import pad_config
from ...model.target import Target
from ...model.transformer import Skeleton
from .memory import size_pool
from .processes import agree, minimum
from .runner import Followers, Runner
from .settings import EngineSettings, cache_dtype, derive_shapes


def assemble(
    config: ModelConfig,
    parameters: Mapping[str, jax.Array],
    settings: EngineSettings,
    mesh: Mesh,
    followers: Followers | None = None,
) -> Runner:
    """Sizes the KV pool and creates the runner; compiles nothing yet.

    Raises:
      ConfigError: settings that the model or machine does not support.
      OutOfMemory: no room for the KV pool.
    """
    devices, dtype = mesh.local_devices, cache_dtype(settings.kv_cache_dtype, parameters["norm"].dtype)
    target = Target.of(mesh, dict(settings.kernels), quantization_of(parameters))
    skeleton = Skeleton.of(config, target)
    invariant = skeleton.is_batch_invariant(parameters["norm"].dtype)
    shapes = derive_shapes(config, settings, devices[0], invariant=invariant)
    padded = pad_config(config, mesh.size)
    if mesh.is_multi_process:
        agree({"the digest of the weights": digest_of_replicated(parameters)})
    pages = minimum(size_pool(padded, shapes, dtype, devices, settings.kv_pages, settings.replicas))
    return Runner(skeleton, mesh, parameters, shapes, pages, dtype, followers)


def digest_of_replicated(parameters: Mapping[str, jax.Array]) -> str:
    """A hexadecimal digest of the parameters that every device holds completely: norms and routers.

    It distinguishes two checkpoints of one configuration, and is quick to compute.
    """
    digest = hashlib.sha256()
    for name, values in sorted(parameters.items()):
        if values.is_fully_replicated:
            digest.update(name.encode() + np.asarray(values.addressable_data(0)).tobytes())
    return digest.hexdigest()[:16]
