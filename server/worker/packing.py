"""`distaff pack`: an engine that compiles every step into a pack, and then ends. No HTTP, no web process.

It is built as an engine process builds its own, from the same flags and in the same environment, because both
decide what is compiled. `runtime/packs.py` has the format.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from ...checkpoints.notes import silence_notes
from ...model.errors import DistaffError
from .. import exit_codes
from ..engines import wire
from ..flags import ServeFlags
from ..logs import configure_logging
from ..process import system
from ..process.progress import ProgressDisplay, progress_display
from .main import build_engine
from .refusals import memory_refused, settings_refused

log = logging.getLogger("distaff.server.worker.packing")  # `__name__` is `__main__` here


def become_packer(flags: ServeFlags, destination: Path) -> NoReturn:
    """Replaces this process by one that writes a pack, in the environment that an engine needs."""
    command = [sys.executable, "-m", "distaff.server.worker.packing", flags.to_argument(), str(destination)]
    os.execve(sys.executable, command, system.engine_environment())


def main() -> None:
    """Entry point; exits by `os._exit`, because XLA's threads do not end cleanly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("flags", type=ServeFlags.from_argument)
    parser.add_argument("destination", type=Path)
    arguments = parser.parse_args()
    configure_logging("INFO")
    silence_notes()
    display, code = progress_display(), exit_codes.ENGINE_LOST
    try:
        write_pack(arguments.flags, arguments.destination, display)
        code = exit_codes.OK
    except DistaffError as error:
        print("distaff:", " ".join(str(error).split()), file=sys.stderr)
        code = exit_codes.of(error)
    except BaseException:
        log.exception("the pack could not be written")
    display.close()
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code)


def write_pack(flags: ServeFlags, destination: Path, display: ProgressDisplay) -> None:
    """Compiles every step for this machine into a pack, and prints its path.

    Raises:
      CheckpointError, ConfigError, SettingRefused, Failed: as for an engine; also if the destination exists.
    """

    def send(frame: wire.ToWeb) -> None:
        if isinstance(frame, wire.Progress):
            display.show(frame.phase, frame.done, frame.total)

    from ...runtime.packs import PackWriter

    with settings_refused():
        writer = PackWriter(destination)
    with system.open_memory_file("pages") as pages, memory_refused(flags):
        engine, info = build_engine(flags, 0, send, lambda events: None, [pages.fileno()], writer=writer)
        engine.compile_all(lambda done, total: display.show("compile", done, total))
    count = writer.finish(info.pages)
    log.info("%d programs, for a KV pool of %d pages", count, info.pages)
    print(destination)


if __name__ == "__main__":
    main()
