"""`distaff pack`: its flags, which are those of `distaff serve` that decide what is compiled."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ..flags import Compiled, ServeFlags, marked

_SHARED = (*(name for name, _ in marked(Compiled)), "replicas", "revision")

PackFlags = msgspec.defstruct(
    "PackFlags",
    [
        ("model", Annotated[str, typer.Argument(metavar="MODEL", help="As for `distaff serve`.")]),
        ("destination", Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")]),
        *((name, ServeFlags.__annotations__[name], getattr(ServeFlags(), name)) for name in _SHARED),
    ],
    kw_only=True,
)
"""The flags of `distaff pack`."""


def pack(flags: msgspec.Struct) -> None:
    """Compile a model's steps for this machine into a folder, for `distaff serve --compiled`.

    The flags must be those of `distaff serve` that decide what is compiled.
    """
    from ...checkpoints.sources import check
    from ..worker.packing import become_packer

    given = msgspec.structs.asdict(flags)
    destination = given.pop("destination")
    served = ServeFlags(**given)
    served.check_together()
    check(served.model)
    become_packer(served, destination)
