"""From a model, its parameters and an operator's wishes to a `Runner`, of a lone engine, leader or follower.

Every process of a mesh must come to the same sizes, since they are part of what it compiles.
"""

from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from ..model.config import ModelConfig
from ..model.sharding import pad_config
from ..model.target import Target
from ..model.transformer import Skeleton
from .cluster import least
from .memory import size_pool
from .runner import Followers, Runner
from .settings import EngineSettings, derive_shapes


def assemble(
    config: ModelConfig,
    parameters: Mapping[str, jax.Array],
    settings: EngineSettings,
    mesh: Mesh,
    followers: Followers | None = None,
) -> Runner:
    """Sizes the KV pool and makes the runner; compiles nothing yet.

    Raises:
      ConfigError: settings that the model or machine cannot honour.
      OutOfMemory: no room for the KV pool.
    """
    devices, dtype = mesh.local_devices, parameters["embed"].dtype
    shapes = derive_shapes(config, settings, devices[0])
    padded = pad_config(config, mesh.size)
    pages = least(size_pool(padded, shapes, dtype, devices, settings.kv_pages, settings.replicas))
    target = Target.of(mesh, dict(settings.kernels))
    return Runner(Skeleton.of(config, target), mesh, parameters, shapes, pages, followers)
