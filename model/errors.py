"""The root of the errors that a user can cause.

Distaff's own exceptions form one small tree. Each message carries the value that was found and what
was expected in its place. Exit codes (`server/command/cli.py`) and HTTP statuses (`server/errors.py`) are
decided in the server alone.

    DistaffError
    ├── ConfigError                 a model configuration that we cannot or will not compute
    ├── CheckpointError             a checkpoint that is damaged, incomplete or not ours to read
    │   └── SourceNotFound          a model name that leads nowhere             (checkpoints/errors.py)
    ├── TemplateError               messages that a chat template refuses       (checkpoints/chat_template.py)
    ├── OutOfMemory                 no room for the KV pool                     (runtime/device/memory.py)
    ├── KeysRefused                 API keys that cannot be used                (server/keys.py)
    ├── ApiError                    an HTTP status and its envelope             (server/errors.py)
    ├── Failed                      a command's end with an exit code           (server/exit_codes.py)
    ├── InvalidRequest              a request that can never be served          (runtime/request.py)
    └── EngineError                 the engine cannot take or finish a request  (runtime/request.py)
        ├── Overloaded              the queue is full
        ├── NotReady                loading, restarting or draining
        └── EngineFailed            the engine was lost while it held the request
            ├── ShutDown            the server shuts down                   (server/engine_client.py)
            └── RequestFailed       the engine failed this request alone    (server/engine_client.py)
"""


class DistaffError(Exception):
    """Base of every error that a user of Distaff can cause or has to hear about."""


class ConfigError(DistaffError):
    """A model configuration that is inconsistent or asks for mathematics we do not implement."""
