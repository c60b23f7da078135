"""The web process as `distaff serve` puts it together, over the engine process without JAX.

`python web_over_fake_engine.py MODES DRAIN_SECONDS PAUSE_SECONDS`: a replica for each of the modes, which
commas separate; the first pause before a restart is that long; listens on a free port and logs which; on
SIGUSR1 says which modules of JAX it has imported.
"""

import signal
import sys
from pathlib import Path

from distaff.server.command.cli import run
from distaff.server.command.listener import listen
from distaff.server.command.serve import WebProcess
from distaff.server.engines import restart_budget
from distaff.server.logs import configure_logging
from distaff.server.process.progress import progress_display
from distaff.server.settings import ServerSettings
from distaff.server.testing import FakeText
from distaff.server.text.text_model import ServedModel

ENGINE = Path(__file__).parent / "engines" / "fake_engine_process.py"


def say_modules(number: int, frame: object) -> None:
    heavy = sorted({name.split(".")[0] for name in sys.modules} & {"jax", "jaxlib", "flax", "orbax"})
    print("modules:", heavy, flush=True)


def main(modes: str, drain: str, pause: str) -> None:
    restart_budget.PAUSE_SECONDS = float(pause)
    configure_logging("INFO")
    signal.signal(signal.SIGUSR1, say_modules)
    WebProcess(
        ServerSettings(model="fake", drain_seconds=float(drain)),
        [[sys.executable, str(ENGINE), mode] for mode in modes.split(",")],
        listen("127.0.0.1", 0),
        lambda path: ServedModel(FakeText()),
        progress_display(),
    ).run()


if __name__ == "__main__":
    sys.exit(run(lambda: main(*sys.argv[1:])))
