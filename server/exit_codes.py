"""The exit codes of the `distaff` command: the numbers of BSD's sysexits.h where they fit."""

from ..checkpoints.errors import CheckpointError, SourceNotFound
from ..model.errors import ConfigError, DistaffError

OK = 0
LINES_FAILED = 1
"""A batch is complete, and not all of its lines succeeded."""
USAGE = 2
"""An unknown flag or a bad value, as everywhere on a command line."""
DOES_NOT_FIT = 3
"""The model, planned or loaded, does not fit the devices."""
BAD_CHECKPOINT = 65
"""A damaged checkpoint, or an unsupported configuration."""
NO_MODEL = 66
"""The model is not found."""
PORT_TAKEN = 69
"""The server cannot listen on the address; of a client: no server answers, or all its answers fail."""
ENGINE_LOST = 70
"""The engine was lost too often, or could not be started."""
NO_OUTPUT = 74
"""The results of a batch cannot be written."""
REFUSED_SETTING = 78
"""A setting that the model or the machine does not support, or that would leave the server open."""


class Failed(DistaffError):
    """The failure of a command, with its exit code. The message is one line for the operator."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def of(error: DistaffError) -> int:
    """The exit code for an error that makes a command fail."""
    match error:
        case Failed():
            return error.code
        case SourceNotFound():
            return NO_MODEL
        case CheckpointError() | ConfigError():
            return BAD_CHECKPOINT
    return REFUSED_SETTING
