"""Run like `distaff serve --host HOST --port PORT`: the app, with its keys, over an engine that is fake."""

import os
import sys

from distaff.server.app import RUN_OPTIONS, create_app
from distaff.server.command.listener import listen
from distaff.server.keys import configured_keys
from distaff.server.settings import ServerSettings
from distaff.server.testing import FakeEngine, FakeText
from distaff.server.text.text_model import ServedModel

if __name__ == "__main__":
    words = dict(zip(sys.argv, sys.argv[1:], strict=False))
    settings = ServerSettings(model="stand-in", keys=configured_keys(None, os.environ), drain_seconds=0.2)
    app = create_app(settings, FakeEngine(), ServedModel(text=FakeText()))
    app.run(sock=listen(words["--host"], int(words["--port"])), **RUN_OPTIONS)
