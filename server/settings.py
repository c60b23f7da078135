"""The operator's settings of the HTTP server, without those of the model and the engine."""

from dataclasses import dataclass

from .keys import Keys


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """The settings of one web process.

    Attributes:
      model: the id under which the model is served.
      aliases: further ids of the same model; `tgi` always is one.
      any_model: the model is served under every other id too, which is repeated in the answer.
      keys: the accepted API keys; None accepts requests without a key.
      allow_origins: origins of web pages that may send requests; `*` for every one.
      strict: refuse unknown parameters, as OpenAI does, instead of ignoring and counting them.
      embeddings: enable POST /v1/embeddings.
      profiles: enable POST /start_profile and /stop_profile.
      max_concurrent: the most sequences, waiting or running; None for no bound.
      max_wait: the longest predicted wait for a first token, in seconds; beyond it requests are refused.
      max_pause: how long a sequence waits for another engine after its own was lost, in seconds.
      health_when_ready: /health answers 200 only while requests are accepted, as TGI's does.
      default_max_tokens: the most tokens of an answer if a request sets no limit; None is the route's
        default.
      most_choices: the largest `n` of a request.
      drain_seconds: how long running requests may continue after SIGTERM.
      most_connections: beyond this number, new connections are refused.
      head_seconds, body_seconds: the time limits for the arrival of a request's head and of its body.
      read_seconds: how long a client may read nothing of an answer before it is disconnected.
      most_body_bytes: larger bodies are answered with 413.
    """

    model: str
    aliases: tuple[str, ...] = ()
    any_model: bool = False
    keys: Keys | None = None
    allow_origins: tuple[str, ...] = ()
    strict: bool = False
    embeddings: bool = False
    profiles: bool = False
    max_concurrent: int | None = None
    max_wait: float = 30.0
    max_pause: float = 300.0
    health_when_ready: bool = False
    default_max_tokens: int | None = None
    most_choices: int = 16
    drain_seconds: float = 60.0
    most_connections: int = 10_000
    head_seconds: float = 15.0
    body_seconds: float = 60.0
    read_seconds: float = 60.0
    most_body_bytes: int = 8 * 2**20

    @property
    def names(self) -> tuple[str, ...]:
        """All ids of the model, its own first."""
        return tuple(dict.fromkeys((self.model, *self.aliases, "tgi")))
