"""`Followers`: the processes of a model over several hosts that are not its leader.

Each runs in an actor of its own, in its own bundle of the replica's placement group, so on another node. When
one process ends, Distaff ends all of them (`docs/several-hosts.md`), and Ray Serve replaces the whole group.
"""

from collections.abc import Sequence

import ray
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .child import ServerChild


class Follower:
    """The actor of one process."""

    async def __init__(self, words: Sequence[str]) -> None:
        """Starts the process."""
        self._child = ServerChild(words, {})

    async def wait(self) -> str:
        """The reason of its end."""
        return await self._child.wait()


class Followers:
    """All followers of a leader; they end with the leader's actor, too."""

    def __init__(self, words: Sequence[str], hosts: int, reserved: dict[str, float]) -> None:
        """Starts them, each as soon as its node has the place.

        Args:
          words: the arguments that all processes have. hosts: processes, the leader included.
          reserved: each one's bundle.
        """
        group = get_current_placement_group()
        assert group is not None or hosts == 1
        self._actors = [
            ray.remote(Follower)
            .options(
                num_cpus=reserved.get("CPU", 0),
                num_gpus=reserved.get("GPU", 0),
                resources={name: n for name, n in reserved.items() if name not in ("CPU", "GPU")},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, number),
            )
            .remote([*words, "--process-id", str(number)])
            for number in range(1, hosts)
        ]

    async def wait(self) -> None:
        """Waits until all have ended, as they do after their leader."""
        for actor in self._actors:
            await actor.wait.remote()
