"""The root of the errors that a user can cause.

Distaff's own exceptions form one small tree. Each message carries the value that was found and what
was expected in its place. Exit codes (`server/command/cli.py`) and HTTP statuses (`server/errors.py`) are
chosen only in the server.

    DistaffError
    ├── ConfigError                 a model configuration that we cannot compute
    ├── CheckpointError             a checkpoint that is damaged, incomplete or not supported
    │   └── SourceNotFound          a model name that matches nothing           (checkpoints/errors.py)
    ├── TemplateError               messages that a chat template refuses       (checkpoints/tokenization)
    ├── GrammarError                a grammar that cannot be followed           (checkpoints/errors.py)
    │   └── SchemaError             a JSON schema that cannot be followed       (checkpoints/errors.py)
    ├── OutOfMemory                 not enough memory for the KV pool           (runtime/device/memory.py)
    ├── HandshakeFailed             a process that is none of this mesh's       (runtime/cluster/control.py)
    ├── SettingRefused              a setting that is not supported here        (server/worker/refusals.py)
    ├── KeysRefused                 API keys that cannot be used                (server/keys.py)
    ├── ApiError                    an HTTP status and its envelope; one class  (server/errors.py)
    │                               for each kind of answer: BadRequest, …
    ├── Failed                      a command ends with an exit code            (server/exit_codes.py)
    ├── InvalidRequest              a request that can never be served          (runtime/request.py)
    └── EngineError                 the engine cannot take or finish a request  (runtime/request.py)
        ├── Overloaded              the queue is full
        │   └── RenderingOverloaded no process is free to render the prompt     (server/errors.py)
        ├── NotReady                loading, restarting or draining
        └── EngineFailed            the engine was lost while it held the request
            ├── ShutDown            the server shuts down                   (server/engine_client.py)
            └── RequestFailed       the engine failed this request alone    (server/engine_client.py)
"""


class DistaffError(Exception):
    """Base of every error that a user of Distaff can cause or must know about."""


class ConfigError(DistaffError):
    """A model configuration that is inconsistent or needs mathematics that is not implemented."""
