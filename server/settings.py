"""What an operator decides about the HTTP side. Says nothing of the model or the engine."""

from dataclasses import dataclass

from .keys import Keys


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """The settings of one web process.

    Attributes:
      model: the id under which the model is served.
      aliases: further ids that mean the same model; `tgi` always does.
      any_model: every other id means the model, too, and is repeated in the answer.
      keys: who may ask; None lets anybody.
      allow_origins: origins of web pages that may ask; `*` for every one.
      strict: refuse unknown parameters, as OpenAI does, rather than ignore and count them.
      embeddings: POST /v1/embeddings is answered.
      profiles: POST /start_profile and /stop_profile are answered.
      max_concurrent: the most sequences under way, waiting or running; None for no such bound.
      max_wait: the longest predicted wait for a first token, in seconds; who would wait longer is refused.
      max_pause: for how long a sequence whose engine was lost waits for another one, in seconds.
      health_when_ready: /health answers 200 only while requests are taken, as TGI's does.
      default_max_tokens: the most tokens of an answer whose request names no limit; None is the route's own.
      most_choices: the largest `n` of a request.
      drain_seconds: how long running requests may go on after SIGTERM.
      most_connections: beyond these, new connections are refused.
      head_seconds, body_seconds: within which a request's head, and its body, must have arrived.
      read_seconds: for which a client may read nothing of an answer; then it is cut off.
      most_body_bytes: larger bodies are answered 413.
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
        """Every id that is answered, the model's own first."""
        return tuple(dict.fromkeys((self.model, *self.aliases, "tgi")))
