"""Parameters that are still loading while an engine is built."""

import threading
import weakref
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.model import host_memory
from distaff.model.config import MoEConfig
from distaff.model.layout import Layout
from distaff.model.parameters import Mixed
from distaff.model.quantize import quantize
from distaff.model.sharding import create_mesh, place_all
from distaff.model.target import Target
from distaff.model.transformer import Skeleton, random_parameters
from distaff.runtime.device.loading import start_loading
from distaff.runtime.device.settings import EngineSettings
from distaff.runtime.engine import Engine
from distaff.runtime.request import Request, SamplingParams
from distaff.runtime.scorer import Scorer

from ...native import NATIVE
from ..tiny import CONFIG, make_parameters

F32 = np.dtype("float32")
MIXTURE = replace(CONFIG, moe=MoEConfig(experts=4, experts_per_token=2))
PANELS = replace(MIXTURE, width=32, feed_forward=64)
SETTINGS = EngineSettings(slots=2, prefill_tokens=16, kv_pages=16)


def test_an_engine_that_does_not_wait_says_the_same():
    """The steps are compiled before the parameters are there."""
    mesh, there = create_mesh(1), threading.Event()

    def load():
        assert there.wait(60)
        return make_parameters()

    engine = Engine(CONFIG, start_loading(CONFIG, F32, None, mesh, load), SETTINGS, mesh=mesh)
    usual = Engine(CONFIG, make_parameters(), SETTINGS)
    engine.warm_up(lambda done, total: there.set() if done == total else None)
    usual.warm_up()
    tokens = []
    for each in (engine, usual):
        each.start()
        params = SamplingParams(max_tokens=8, temperature=0.0)
        request = Request(id="a", prompt=(3, 4, 5), params=params)
        tokens.append([event.token for event in each.stream(request)])
        each.stop()
    assert tokens[0] == tokens[1]


def test_what_loading_raises_is_raised_by_the_warm_up():
    mesh = create_mesh(1)

    def load():
        raise ValueError("damaged")

    engine = Engine(CONFIG, start_loading(CONFIG, F32, None, mesh, load), SETTINGS, mesh=mesh)
    with pytest.raises(ValueError, match="damaged"):
        engine.warm_up()


def test_the_pool_of_a_restarted_engine_has_the_same_size(monkeypatch: pytest.MonkeyPatch):
    """It is sized for the memory that was free at the first start, whatever is free now."""
    mesh = create_mesh(1)

    def pages(host: int | None) -> int:
        loading = start_loading(CONFIG, F32, None, mesh, make_parameters, host)
        return Engine(
            CONFIG, loading, replace(SETTINGS, kv_pages=None, slots=400, prefill_tokens=400), mesh=mesh
        ).pages

    monkeypatch.setattr(host_memory, "free_bytes", lambda: 1 << 23)
    assert pages(1 << 24) == 2 * pages(None) == pages(1 << 24)


@pytest.mark.parametrize("loading", [True, False], ids=["loading", "loaded"])
@pytest.mark.parametrize("backend", ["transposed", pytest.param("native", marks=NATIVE)])
def test_a_weight_is_freed_before_the_next_one_is_laid_out(monkeypatch, backend, loading):
    """While a weight has both forms, every weight before it has its new one alone."""
    mesh, apply = create_mesh(1), Layout.apply
    changed: list[weakref.ref[jax.Array]] = []
    kept: list[int] = []

    def watch(self, values, where, form):
        kept.append(sum(weight() is not None for weight in changed))
        laid = apply(self, values, where, form)
        if laid is not values:
            changed.append(weakref.ref(values))
        return laid

    def load():
        return quantize(make_parameters())

    monkeypatch.setattr(Layout, "apply", watch)
    settings = replace(SETTINGS, kernels=(("int8_linear", backend),))
    parameters = start_loading(CONFIG, F32, "int8", mesh, load) if loading else load()
    engine = Engine(CONFIG, parameters, settings, mesh=mesh)
    del parameters
    engine.warm_up()
    assert len(changed) > CONFIG.layers and not any(kept)
    assert all(weight() is None for weight in changed)


def test_the_log_says_how_weights_are_served(caplog: pytest.LogCaptureFixture):
    mixed = Mixed("int8", (("head", None),))
    with caplog.at_level("INFO"):
        for quantization in (None, mixed):
            start_loading(CONFIG, F32, quantization, create_mesh(1), make_parameters)
    wide, few = caplog.messages
    assert wide.startswith("weights: float32, ") and few.startswith("weights: int8 but for head wide, ")


def test_a_mapping_of_parameters_stays_as_it_is():
    parameters = make_parameters()
    Engine(CONFIG, parameters, SETTINGS).warm_up()
    Scorer.of(CONFIG, parameters)
    assert parameters.keys() == make_parameters().keys()


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("config", [MIXTURE, PANELS], ids=["unstacked", "panels"])
def test_shapes_of_experts_are_known_before_they_are_loaded(config, devices, quantization):
    """They are those of the unstacked experts, or of panels, on each number of devices."""
    mesh = create_mesh(devices)
    skeleton = Skeleton.of(config, Target.of(mesh, {}, quantization))
    weights = random_parameters(config, 1, F32)
    weights = quantize(weights) if quantization else weights
    leaves = skeleton.flatten(place_all(weights, config, mesh, quantization))
    for leaf, expected in zip(leaves, skeleton.abstract(jnp.dtype(F32)), strict=True):
        shapes = [(part.shape, part.dtype) for part in leaf] if isinstance(leaf, tuple) else leaf.shape
        wanted = (
            [(part.shape, part.dtype) for part in expected] if isinstance(expected, tuple) else expected.shape
        )
        assert shapes == wanted
