"""The settings that the web process passes to the engine process on its command line."""

import msgspec


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's options for the engine; None derives a value from the model and the machine.

    Attributes:
      model: a folder, a GGUF, a store, a hub id or a bundled name; None for the bundled default.
      revision: of a hub id.
      context: the longest sequence, in tokens. max_input: the longest prompt.
      slots: sequences that decode together. prefill_tokens: the most tokens of a step.
      kv_pages: pages of the KV pool. kv_tokens: the same in tokens. dtype: `float32` or `bfloat16`.
      quantize: `int8` for linear weights that are not so already. kv_cache_dtype: `int8` for keys and values.
      mesh: `model=N`, the devices that the model is divided among.
      kernels: `operation=backend` items that override the default backends.
      coordinator: `host:port` of process 0, to which the others connect; None for a single process.
      process_id: this process's number among `num_processes`.
      replica: which of `replicas` engines of this host this one is, from 0.
      prefix_cache, speculation, deterministic: see `runtime.settings.EngineSettings`.
      profile: the folder for profiles; None refuses to make any.
      log_level: a name of `logging`.
    """

    model: str | None = None
    revision: str | None = None
    context: int | None = None
    max_input: int | None = None
    slots: int | None = None
    prefill_tokens: int | None = None
    kv_pages: int | None = None
    kv_tokens: int | None = None
    dtype: str | None = None
    quantize: str | None = None
    kv_cache_dtype: str | None = None
    mesh: str | None = None
    kernels: tuple[str, ...] = ()
    coordinator: str | None = None
    process_id: int = 0
    num_processes: int = 1
    replica: int = 0
    replicas: int = 1
    prefix_cache: bool = True
    speculation: bool = True
    deterministic: bool = False
    profile: str | None = None
    log_level: str = "INFO"

    def as_replica(self, number: int) -> "WorkerSettings":
        """These settings for one of the replicas."""
        return msgspec.structs.replace(self, replica=number)

    def to_argument(self) -> str:
        """A single argument of a command line."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_argument(cls, word: str) -> "WorkerSettings":
        """The inverse of `to_argument`."""
        return msgspec.json.decode(word, type=cls)
