"""What the `distaff` command says with its exit code: the numbers of BSD's sysexits.h where they fit."""

from ..checkpoints.errors import CheckpointError, SourceNotFound
from ..model.errors import ConfigError, DistaffError

OK = 0
USAGE = 2
"""An unknown flag or a bad value, as everywhere on a command line."""
DOES_NOT_FIT = 3
"""What was planned, or was to be loaded, does not fit the devices."""
BAD_CHECKPOINT = 65
"""A checkpoint that is damaged, or a configuration that we do not compute."""
NO_MODEL = 66
"""A model name that leads nowhere."""
PORT_TAKEN = 69
"""The address cannot be listened on."""
ENGINE_LOST = 70
"""The engine was lost too often, or could not be brought up."""
REFUSED_SETTING = 78
"""A setting that the model or the machine cannot honour, or that would leave the server open."""


class Failed(DistaffError):
    """A command's end, with the code that says how. The message is one line for the operator."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def of(error: DistaffError) -> int:
    """The code for an error that keeps a command from its work."""
    match error:
        case Failed():
            return error.code
        case SourceNotFound():
            return NO_MODEL
        case CheckpointError() | ConfigError():
            return BAD_CHECKPOINT
    return REFUSED_SETTING
