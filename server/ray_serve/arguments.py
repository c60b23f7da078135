"""The arguments of the application, checked before anything is deployed.

They come from `serve run distaff.server.ray_serve.app:build name=value …` or from a config file's `args`. The
flags of `distaff serve` are read by its own command line, so they mean the same and fail with the same words.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import typer

from ...model.errors import ConfigError
from ..command.cli import taking
from ..flags import ServeFlags, flag

Count = Annotated[int, msgspec.Meta(ge=1)]
Amount = Annotated[float, msgspec.Meta(ge=0)]

_SET_HERE = ("host", "port", "coordinator", "process_id", "num_processes")
_IN_ONE_REPLICA = ("batches", "store_responses", "profile")


class Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may choose.

    Attributes:
      flags: of `distaff serve`, as a list or as on a command line; the model comes first.
      replicas: servers, if their number is fixed.
      autoscaling: Ray Serve's `autoscaling_config`; then `replicas` has no effect.
      ingresses: processes that hold clients' connections: one for each node that takes requests.
      hosts: processes of one model, each on a node of its own.
      cpus, gpus, resources: what each process reserves on its node, such as `{"TPU": 4}`.
    """

    flags: list[str] | str = []
    replicas: Count = 1
    autoscaling: dict[str, Any] | None = None
    ingresses: Count = 1
    hosts: Count = 1
    cpus: Amount = 1
    gpus: Amount = 0
    resources: dict[str, Amount] = {}

    @property
    def words(self) -> list[str]:
        """The flags, each by itself; raises ConfigError if a quotation in their text does not end."""
        if not isinstance(self.flags, str):
            return list(self.flags)
        try:
            return shlex.split(self.flags)
        except ValueError as error:
            raise ConfigError(f"flags of distaff serve: {self.flags!r} cannot be divided: {error}") from None

    @property
    def actor_options(self) -> dict[str, Any]:
        """What one process reserves, as Ray names it."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": dict(self.resources)}

    @property
    def bundle(self) -> dict[str, float]:
        """The same, as a bundle of a placement group."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: amount for name, amount in amounts.items() if amount}


def parse_arguments(given: Mapping[str, Any]) -> Arguments:
    """The arguments as they were given, with their types.

    Raises:
      ConfigError: an unknown name, or a value of the wrong type.
    """
    try:
        return msgspec.convert(dict(given), Arguments, strict=False)
    except msgspec.ValidationError as error:
        names = ", ".join(Arguments.__struct_fields__)
        raise ConfigError(f"arguments of distaff.server.ray_serve.app: {error}; expected {names}") from None


def parse_flags(words: Sequence[str]) -> ServeFlags:
    """The flags of `distaff serve`.

    Raises:
      ConfigError: what `distaff serve` would refuse, or a flag that has no use here.
    """
    try:
        flags = _command_line(list(words), standalone_mode=False)
        assert isinstance(flags, ServeFlags)
        flags.check_together()
    except typer.TyperException as error:
        raise ConfigError(f"flags of distaff serve: {error.format_message()}") from None
    _refuse(flags, _SET_HERE, "is set by the application")
    _refuse(flags, _IN_ONE_REPLICA, "keeps something in one replica, and requests reach any")
    return flags


def _refuse(flags: ServeFlags, names: Sequence[str], reason: str) -> None:
    usual = ServeFlags()
    for name in names:
        if (value := getattr(flags, name)) != getattr(usual, name):
            raise ConfigError(f"flags of distaff serve: {flag(name)} is {str(value)!r}: it {reason}")


_command_line = typer.Typer(add_completion=False, rich_markup_mode=None)


@_command_line.command()
@taking(ServeFlags)
def _read(flags: ServeFlags) -> ServeFlags:
    return flags
