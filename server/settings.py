"""The settings of the web process: the operator's flags, what is derived from them at start, fixed limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..model.errors import ConfigError
from ..runtime.options import parse_adapters
from .batches.limits import BatchLimits
from .flags import ServeFlags
from .keys import Keys

if TYPE_CHECKING:
    from .tracing import Traces


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """The settings of one web process.

    Attributes:
      model: the id under which the model is served.
      keys: the accepted API keys; None accepts requests without a key.
      allow_origins: origins of web pages that may send requests; `*` for every one.
      flags: those of `distaff serve`.
      traces: where the spans of requests go; None for nowhere.
      resume_key: of the proxies that may resume streams; None for none.
      most_choices: the largest `n` of a request.
      drain_seconds: how long running requests may continue after SIGTERM.
      most_connections: beyond this number, new connections are refused.
      head_seconds, body_seconds: the time limits for the arrival of a request's head and of its body.
      read_seconds: how long a client may read nothing of an answer before it is disconnected.
      most_body_bytes: larger bodies are answered with 413.
      batch_limits: those of files and batches.

    Raises:
      ConfigError: an adapter has a name of the model.
    """

    model: str
    keys: Keys | None = None
    allow_origins: tuple[str, ...] = ()
    flags: ServeFlags = field(default_factory=ServeFlags)
    resume_key: str | None = None
    traces: Traces | None = None
    most_choices: int = 16
    drain_seconds: float = 60.0
    most_connections: int = 10_000
    head_seconds: float = 15.0
    body_seconds: float = 60.0
    read_seconds: float = 60.0
    most_body_bytes: int = 8 * 2**20
    batch_limits: BatchLimits = field(default_factory=BatchLimits)

    def __post_init__(self) -> None:
        for name in self.adapters:
            if name in self._own_names:
                raise ConfigError(f"adapter {name!r} has a name of the model; expected another one")

    @property
    def names(self) -> tuple[str, ...]:
        """All ids of the model, its own first, and then those of its adapters."""
        return *self._own_names, *self.adapters

    @property
    def _own_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.model, *(self.flags.alias or ()), "tgi")))

    @property
    def adapters(self) -> dict[str, Path]:
        """The folders of LoRA adapters, by the ids under which they are served."""
        return parse_adapters(self.flags.adapter or ())
