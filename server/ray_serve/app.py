"""The application for Ray Serve: `serve run distaff.server.ray_serve.app:build flags='MODEL --auth none'`.

The only place that knows how the deployments are configured. A config file may override their options by the
names `Ingress` and `Replica`.
"""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from .arguments import Arguments, parse_arguments, parse_flags
from .ingress import Ingress
from .prefix_router import PrefixRouter
from .relay import Patience
from .replica import Replica

USUAL_SLOTS = 32
"""Of a server without `--slots` on a CPU; on accelerators there are more."""
MOST_ONGOING = 1_000
"""Requests in one replica: the server itself decides which wait, and refuses the others."""
MOST_CONNECTIONS = 10_000
"""Requests in one ingress, as in one server."""
DRAIN_SECONDS = 600.0
"""How long a replica or an ingress that is to end may still answer requests."""
HEALTH_PERIOD_SECONDS = 2.0
"""So often Ray Serve looks whether a replica must be replaced."""


def build(args: dict[str, Any]) -> Application:
    """The application with these arguments; see `Arguments`.

    Raises:
      ConfigError: an invalid argument or flag. Nothing has been deployed.
    """
    arguments = parse_arguments(args)
    flags = parse_flags(arguments.words)
    slots = flags.slots or USUAL_SLOTS
    replicas = serve.deployment(Replica).options(
        max_ongoing_requests=MOST_ONGOING,
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs={"slots": slots}
        ),
        **_number(arguments, slots),
        **_place(arguments),
        **_COMMON,
    )
    ingresses = serve.deployment(Ingress).options(
        num_replicas=arguments.ingresses,
        max_ongoing_requests=MOST_CONNECTIONS,
        ray_actor_options={"num_cpus": 0},
        **_COMMON,
    )
    servers = replicas.bind(arguments.words, arguments.hosts, arguments.bundle)
    return ingresses.bind(servers, Patience(flags.max_wait, flags.max_pause))


_COMMON: dict[str, Any] = {
    "health_check_period_s": HEALTH_PERIOD_SECONDS,
    "graceful_shutdown_timeout_s": DRAIN_SECONDS,
}


def _number(arguments: Arguments, slots: int) -> dict[str, Any]:
    """How many replicas there are. One more is started when all slots are in use on average."""
    if arguments.autoscaling is None:
        return {"num_replicas": arguments.replicas}
    return {"autoscaling_config": {"target_ongoing_requests": slots, **arguments.autoscaling}}


def _place(arguments: Arguments) -> dict[str, Any]:
    """What a replica reserves on its node, or on each of its nodes."""
    options: dict[str, Any] = {"ray_actor_options": arguments.actor_options}
    if arguments.hosts > 1:
        options["placement_group_bundles"] = [arguments.bundle] * arguments.hosts
        options["placement_group_strategy"] = "STRICT_SPREAD"
    return options
