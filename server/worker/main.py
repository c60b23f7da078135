"""The engine process, `python -m distaff.server.worker.main --fd N SETTINGS`; only the web process starts it.

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
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from ...checkpoints.notes import leave_notes_to_another
from ...checkpoints.sources import cache_folder
from ...model.errors import ConfigError, DistaffError
from ...runtime.options import Membership, parse_kernels, parse_mesh
from .. import exit_codes, system
from ..engine_client import EngineInfo
from ..engines import wire
from ..engines.worker_settings import WorkerSettings
from ..exit_codes import Failed
from ..logs import configure_logging
from ..vital import start_thread
from .device_shares import claim_devices, hide_absent_tpu
from .engine_server import Build, EngineServer, OnEvents, Send, ServedEngine, throttled

if TYPE_CHECKING:
    import jax
    import numpy as np
    from jax.sharding import Mesh
    from jaxlib._jax import Device

    from ...checkpoints.checkpoint import Checkpoint
    from ...model.config import ModelConfig
    from ...runtime.cluster.lockstep import Leader
    from ...runtime.device.settings import EngineSettings
    from ...runtime.engine import Engine
    from ...runtime.policy.constraints import Grammars

log = logging.getLogger("distaff.server.worker.main")  # `__name__` is `__main__` here

_LAST_WORD_SECONDS = 0.2
"""Seconds for the web process to receive the reason why this one ends."""
_EXHAUSTED = "RESOURCE_EXHAUSTED"
"""Parts of XLA's messages when a device or the host runs out of memory."""
_LONGEST_REASON = 300
_EQUAL = (
    "context", "slots", "prefill_tokens", "kv_pages", "kv_tokens", "kv_cache_dtype", "dtype", "mesh",
    "kernels", "quantize", "deterministic",
)  # fmt: skip
"""Settings that all processes of a mesh must share: they are part of what is compiled."""


class SettingRefused(DistaffError):
    """An operator's setting that the model or the machine does not support."""


def main() -> None:
    """Entry point of the process; exits by `os._exit`, because XLA's threads do not end cleanly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("settings", type=WorkerSettings.from_argument)
    arguments = parser.parse_args()
    settings: WorkerSettings = arguments.settings
    speaker = f"replica {settings.replica}" if settings.replicas > 1 else ""
    configure_logging(settings.log_level, speaker)
    leave_notes_to_another()  # the web process reads the same files
    serve(arguments.fd, lambda send, on_events: build_engine(settings, send, on_events))


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
    settings: WorkerSettings, send: Send, on_events: OnEvents
) -> tuple[ServedEngine, EngineInfo]:
    """Loads the model that the settings name and compiles its steps.

    Raises:
      CheckpointError, ConfigError: the model cannot be read or served.
      SettingRefused: a setting does not fit the model or the machine.
    """
    hide_absent_tpu()
    with settings_refused():
        claim_devices(settings.replica, settings.replicas, parse_mesh(settings.mesh))
    system.limit_threads(settings.replicas)
    from ...checkpoints import GrammarCompiler, load_parameters, load_tokenizer, open_checkpoint, resolve

    progress = throttled(send)
    path = resolve(settings.model, revision=settings.revision, progress=progress)
    send(wire.Located(str(path)))
    checkpoint = open_checkpoint(path, int8=settings.quantize == "int8")
    mesh = claim_mesh_of(settings)
    device = mesh.local_devices[0]
    dtype = dtype_of(settings, device)
    leader = _lead(settings, checkpoint, send) if settings.coordinator else None
    with _report_errors_to(leader):
        grammars = GrammarCompiler(lambda: load_tokenizer(path), checkpoint.config.vocabulary)
        with memory_refused(settings):
            parameters = load_parameters(checkpoint, dtype, progress, mesh)
            engine = _engine(settings, checkpoint.config, parameters, on_events, mesh, leader, grammars)
            engine.warm_up(lambda done, total: progress("compile", done, total))
    info = EngineInfo(
        context=engine.context,
        vocabulary=engine.vocabulary,
        slots=engine.slots,
        scores=not settings.deterministic,
        max_input=settings.max_input,
        platform=device.platform,
        page_size=engine.page_size,
        pages=engine.pages,
        fingerprint=_fingerprint(
            checkpoint.fingerprint,
            dtype.name,
            str(settings.kv_cache_dtype),
            device.device_kind,
            str(mesh.size),
            version("jaxlib"),
        ),
    )
    return engine, info


def membership_of(settings: WorkerSettings) -> Membership | None:
    """This process's place among several; None for one alone."""
    if settings.coordinator is None:
        return None
    return Membership(
        coordinator=settings.coordinator, process=settings.process_id, processes=settings.num_processes
    )


def facts_of(settings: WorkerSettings, checkpoint: "Checkpoint") -> dict[str, object]:
    """Facts that must be equal in all processes of a mesh, under names that an operator knows."""
    return {
        "the model's configuration": repr(checkpoint.config),
        "whether weights are int8": checkpoint.int8,
        **{f"the {package} version": version(package) for package in ("distaff", "jax", "jaxlib")},
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **{f"--{name.replace('_', '-')}": getattr(settings, name) for name in _EQUAL},
    }


def _lead(settings: WorkerSettings, checkpoint: "Checkpoint", send: Send) -> "Leader":
    """Checks that the other processes have the same facts, and waits until all of them follow."""

    def lost(reason: str, code: int | None) -> None:
        send(wire.Fatal(reason, code or exit_codes.ENGINE_LOST))
        time.sleep(_LAST_WORD_SECONDS)
        end_process(reason, code)

    from ...runtime.cluster.lockstep import Leader
    from ...runtime.device.processes import agree

    membership = membership_of(settings)
    assert membership is not None
    with settings_refused():
        agree(facts_of(settings, checkpoint))
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


def claim_mesh_of(settings: WorkerSettings) -> "Mesh":
    """The mesh of the devices that the engine owns, after JAX's compilation cache is set up."""
    from ...runtime.device.compilation_cache import keep_compiled
    from ...runtime.device.devices import claim_mesh

    with settings_refused():
        mesh = claim_mesh(settings.mesh, membership_of(settings))
    if mesh.local_devices[0].platform == "cpu":
        system.lower_priority()
    kind = mesh.local_devices[0].device_kind
    keep_compiled(cache_folder(), kind)
    cores = system.usable_cores(sharing=settings.replicas)
    log.info("running on %d x %s with %d cores", mesh.size, kind, cores)
    return mesh


def dtype_of(settings: WorkerSettings, device: "Device") -> "np.dtype":
    """The data type of the computation."""
    from ...runtime.device.settings import compute_dtype

    with settings_refused():
        return compute_dtype(settings.dtype, device)


def _engine(
    settings: WorkerSettings,
    config: "ModelConfig",
    parameters: "dict[str, jax.Array]",
    on_events: OnEvents,
    mesh: "Mesh",
    leader: "Leader | None",
    grammars: "Grammars",
) -> "Engine":
    from ...runtime.engine import Engine

    with settings_refused():
        engine_settings = engine_settings_of(settings, mesh.local_devices[0])
        engine = Engine(config, parameters, engine_settings, on_events, mesh, leader, grammars)
        longest, context = settings.max_input, engine.context
        if longest is not None and longest >= context:
            raise ConfigError(f"max_input is {longest}; expected less than the context of {context} tokens")
        return engine


def engine_settings_of(settings: WorkerSettings, device: "Device") -> "EngineSettings":
    """The engine's settings for such a device, from the operator's options."""
    from ...runtime.device.settings import EngineSettings, pages_of

    tokens = settings.kv_tokens
    return EngineSettings(
        slots=settings.slots,
        context=settings.context,
        prefill_tokens=settings.prefill_tokens,
        kv_pages=settings.kv_pages if tokens is None else pages_of(tokens, device),
        kv_cache_dtype=settings.kv_cache_dtype,
        replicas=settings.replicas,
        kernels=parse_kernels(settings.kernels),
        prefix_cache=settings.prefix_cache,
        speculation=settings.speculation,
        deterministic=settings.deterministic,
        grammars=True,
        scores=True,
        profile=settings.profile,
    )


@contextmanager
def settings_refused() -> Iterator[None]:
    """Turns errors that a valid checkpoint cannot cause into errors about a setting."""
    try:
        yield
    except ConfigError as error:
        raise SettingRefused(str(error)) from error


@contextmanager
def memory_refused(settings: WorkerSettings) -> Iterator[None]:
    """Turns an out-of-memory error into one line, with settings that need less memory.

    Raises:
      Failed: with the exit code for a model that does not fit.
    """
    from jax.errors import JaxRuntimeError

    from ...runtime.device.memory import OutOfMemory

    try:
        yield
    except (OutOfMemory, MemoryError, JaxRuntimeError) as error:
        if isinstance(error, JaxRuntimeError) and _EXHAUSTED not in str(error):
            raise
        log.debug("out of memory", exc_info=error)
        reason = (str(error).splitlines() or ["out of memory"])[0][:_LONGEST_REASON]
        message = f"does not fit: {reason}; to use less memory: {', '.join(_takes_less(settings))}"
        raise Failed(message, exit_codes.DOES_NOT_FIT) from None


def _takes_less(settings: WorkerSettings) -> Iterator[str]:
    """Settings with which the same model needs less memory on each device."""
    if settings.quantize is None:
        yield "--quantize int8"
    if settings.kv_cache_dtype is None:
        yield "--kv-cache-dtype int8"
    if settings.kv_pages is not None:
        yield f"fewer --kv-pages than {settings.kv_pages}"
    if settings.kv_tokens is not None:
        yield f"fewer --kv-tokens than {settings.kv_tokens}"
    yield "fewer --slots, a smaller --context, more devices (--mesh model=N); see `distaff plan`"


def _fingerprint(*parts: str) -> str:
    """Ten hex digits that change when outputs may."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


if __name__ == "__main__":
    main()
