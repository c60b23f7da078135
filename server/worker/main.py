"""The engine process, `python -m distaff.server.worker.main --fd N FLAGS`; only the web process starts it.

The composition root of the engine process: a checkpoint, its weights, an `Engine`. `engine_server.py`
exchanges the frames. Heavy modules are imported after the heartbeat has started and the environment that XLA
reads once is set; so jax is imported inside functions here, and nowhere in the web process.
"""

import argparse
import hashlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from ...checkpoints.notes import silence_notes
from ...model.errors import ConfigError, DistaffError
from ...runtime.options import parse_adapters, parse_mesh
from .. import exit_codes
from ..engine_client import EngineInfo
from ..engines import wire
from ..flags import ServeFlags
from ..logs import configure_logging
from ..process import system
from ..process.vital import start_thread
from .device_shares import claim_devices, hide_absent_tpu
from .engine_server import Build, EngineServer, OnEvents, Send, throttled
from .from_flags import dtype_of, engine_settings_of, facts_of, set_up_mesh, set_up_programs
from .refusals import memory_refused, settings_refused

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh

    from ...checkpoints.checkpoint import Checkpoint
    from ...checkpoints.files import Progress
    from ...model.adapter import Adapter
    from ...model.config import ModelConfig
    from ...runtime.cluster.lockstep import Leader
    from ...runtime.device.loading import Loading, Parameters
    from ...runtime.device.settings import EngineSettings
    from ...runtime.engine import Engine
    from ...runtime.packs import Pack, PackWriter
    from ...runtime.policy.constraints import Grammars
    from ...runtime.policy.page_file import PageFile

log = logging.getLogger("distaff.server.worker.main")  # `__name__` is `__main__` here

_NICENESS = 10
"""Of an engine on CPUs: it gets a tenth of the time of the web process if both want the same core."""
_LAST_WORD_SECONDS = 0.2
"""Seconds for the web process to receive the reason why this one ends."""


def main() -> None:
    """Entry point of the process; exits by `os._exit`, because XLA's threads do not end cleanly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--page-file", type=int, action="append", default=[], dest="page_files")
    parser.add_argument("--free-memory", type=int)
    parser.add_argument("--replica", type=int, default=0)
    parser.add_argument("flags", type=ServeFlags.from_argument)
    arguments = parser.parse_args()
    flags: ServeFlags = arguments.flags
    replica: int = arguments.replica
    speaker = f"replica {replica}" if flags.replicas > 1 else ""
    configure_logging(flags.log_level.upper(), speaker, flags.log_format)
    silence_notes()  # the web process reads the same files
    memory: int | None = arguments.free_memory
    files: list[int] = arguments.page_files
    serve(arguments.fd, lambda send, on_events: build_engine(flags, replica, send, on_events, files, memory))


def serve(fd: int, build: Build) -> None:
    """Runs an engine behind the socket `fd` and ends the process with it."""
    system.die_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))  # before there are other threads
    connection = socket.socket(fileno=fd)
    connection.set_inheritable(False)
    code = exit_codes.ENGINE_LOST
    try:
        server = EngineServer(connection)
        start_thread("sigterm", lambda: _pass_on_sigterm(server))
        code = server.run(build)
    except BaseException:
        log.exception("the engine process failed")
    sys.stderr.flush()
    os._exit(code)


def _pass_on_sigterm(server: EngineServer) -> None:
    while signal.sigwait((signal.SIGTERM,)):
        server.leave()


def build_engine(
    flags: ServeFlags,
    replica: int,
    send: Send,
    on_events: OnEvents,
    page_files: Sequence[int] = (),
    memory: int | None = None,
    writer: "PackWriter | None" = None,
) -> tuple["Engine", EngineInfo]:
    """Loads the model that the flags name and compiles its steps.

    Args:
      page_files: the descriptors of the files for copies of KV pages: its own, then those of the other
        replicas; without them it keeps none.
      memory: bytes of the host for which a pool in its memory is sized; None for those that are free now.
      writer: keeps all programs in a pack.

    Raises:
      CheckpointError, ConfigError: the model cannot be read or served.
      SettingRefused: a setting does not fit the model or the machine.
    """
    hide_absent_tpu()
    with settings_refused():
        claim_devices(replica, flags.replicas, parse_mesh(flags.mesh))
    system.limit_threads(flags.replicas)
    from ...checkpoints import GrammarCompiler, load_tokenizer, open_checkpoint, resolve, with_own_bits
    from ...checkpoints.adapters import digest_of
    from ...runtime.threads import Background

    progress = throttled(send)
    path = resolve(flags.model, revision=flags.revision, progress=progress)
    send(wire.Located(str(path)))
    checkpoint = open_checkpoint(path, flags.quantize)
    mesh = set_up_mesh(flags)
    checkpoint = with_own_bits(checkpoint, flags.quantize, mesh)
    pack = set_up_programs(flags, checkpoint, mesh, writer)
    if mesh.local_devices[0].platform == "cpu":
        system.lower_priority(os.getpid(), _NICENESS)
    dtype = dtype_of(flags, mesh.local_devices[0])
    leader = _lead(flags, checkpoint, send) if flags.coordinator else None
    with _report_errors_to(leader):
        grammars = GrammarCompiler(lambda: load_tokenizer(path), checkpoint.config.vocabulary)
        with memory_refused(flags):
            parameters = _load(checkpoint, dtype, progress, mesh, memory)
            copies = _copies_in(page_files, checkpoint.fingerprint, flags, mesh)
            config = checkpoint.config
            adapters = _read_adapters(flags, config)
            settings = _settings(flags, mesh, pack)
            if adapters and flags.max_adapter_rank is None:
                rank = max(adapter.rank for adapter in adapters.values())
                settings = replace(settings, max_adapter_rank=rank)
            engine = _engine(flags, settings, config, parameters, on_events, mesh, leader, grammars, copies)
            for name, adapter in adapters.items():
                engine.add_adapter(name, adapter)
            del parameters  # now the engine alone holds them, and frees each one when it has packed it
            engine.warm_up(lambda done, total: progress("compile", done, total))
    if pack:
        pack.report()
    Background("grammars", grammars.prepare)  # not earlier, when loading and XLA need the cores
    weights = "\n".join([checkpoint.fingerprint, *map(digest_of, adapters.values())])
    return engine, _info_of(engine, flags, weights, dtype.name, mesh)


def _info_of(engine: "Engine", flags: ServeFlags, checkpoint: str, dtype: str, mesh: "Mesh") -> EngineInfo:
    """What the web process must know of a ready engine; `checkpoint`: fingerprints of all its weights."""
    device = mesh.local_devices[0]
    parts = [checkpoint, dtype, str(flags.kv_cache_dtype), device.device_kind, str(mesh.size)]
    return EngineInfo(
        context=engine.context,
        vocabulary=engine.vocabulary,
        slots=engine.slots,
        scores=engine.scores,
        max_input=flags.max_input,
        platform=device.platform,
        page_size=engine.page_size,
        pages=engine.pages,
        fingerprint=_fingerprint(*parts, version("jaxlib")),
    )


def _read_adapters(flags: ServeFlags, config: "ModelConfig") -> "dict[str, Adapter]":
    """The adapters that the flags name. Raises CheckpointError: one cannot be read, or does not fit."""
    from ...checkpoints import read_adapter

    return {name: read_adapter(path, config) for name, path in parse_adapters(flags.adapter or ()).items()}


def _load(
    checkpoint: "Checkpoint", dtype: "np.dtype", progress: "Progress", mesh: "Mesh", memory: int | None
) -> "Parameters | Loading":
    """Starts to load the parameters; with several processes, waits for them.

    Only a process alone may load while it does other things: the order of collectives must be equal in all.
    """
    from ...checkpoints import load_parameters
    from ...runtime.device.loading import start_loading

    load = partial(load_parameters, checkpoint, dtype, progress, mesh)
    if mesh.is_multi_process:
        return load()
    return start_loading(checkpoint.config, dtype, checkpoint.quantization, mesh, load, memory)


def _lead(flags: ServeFlags, checkpoint: "Checkpoint", send: Send) -> "Leader":
    """Checks that the other processes have the same facts, and waits until all of them follow."""

    def lost(reason: str, code: int | None) -> None:
        send(wire.Fatal(reason, code or exit_codes.ENGINE_LOST))
        time.sleep(_LAST_WORD_SECONDS)
        end_process(reason, code)

    from ...runtime.cluster.lockstep import Leader
    from ...runtime.device.processes import agree

    membership = flags.membership
    assert membership is not None
    with settings_refused():
        agree(facts_of(flags, checkpoint))
        return Leader(membership, lost)


@contextmanager
def _report_errors_to(leader: "Leader | None") -> Iterator[None]:
    """Sends an error in this process to the followers, which then end too."""
    try:
        yield
    except DistaffError as error:
        if leader:
            leader.fail(str(error), exit_codes.of(error))
        raise


def end_process(reason: str, code: int | None = None) -> None:
    """Ends this process because the other ones are lost; `code`: their exit code, if known."""
    log.error("%s; this process exits", reason)
    sys.stderr.flush()
    os._exit(code or exit_codes.ENGINE_LOST)


def _settings(flags: ServeFlags, mesh: "Mesh", pack: "Pack | None") -> "EngineSettings":
    with settings_refused():
        settings = engine_settings_of(flags, mesh.local_devices[0])
    return replace(settings, packed_pages=pack.pages) if pack else settings


def _engine(
    flags: ServeFlags,
    settings: "EngineSettings",
    config: "ModelConfig",
    parameters: "Parameters | Loading",
    on_events: OnEvents,
    mesh: "Mesh",
    leader: "Leader | None",
    grammars: "Grammars",
    page_file: "PageFile | None",
) -> "Engine":
    from ...runtime.engine import Engine

    with settings_refused():
        engine = Engine(config, parameters, settings, on_events, mesh, leader, grammars, page_file)
        longest, context = flags.max_input, engine.context
        if longest is not None and longest >= context:
            raise ConfigError(f"max_input is {longest}; expected less than the context of {context} tokens")
        return engine


def _copies_in(
    descriptors: Sequence[int], checkpoint: str, flags: ServeFlags, mesh: "Mesh"
) -> "PageFile | None":
    """The file for copies of pages, with all that decides their bytes; `checkpoint` is its fingerprint."""
    from ...runtime.policy.page_file import PageFile

    owner = [checkpoint, flags.to_argument(), mesh.local_devices[0].device_kind, version("jaxlib")]
    if not descriptors:
        return None
    own, *peers = descriptors
    return PageFile(own, "\n".join(owner), tuple(peers))


def _fingerprint(*parts: str) -> str:
    """Ten hex digits that change when outputs may."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


if __name__ == "__main__":
    main()
