"""Turns requests into device steps: token ids in, token ids out.

For scripts and notebooks:

    from distaff.runtime import LLM, SamplingParams

    llm = LLM("smollm2")
    print(llm.generate("The capital of France is", SamplingParams(max_tokens=8, temperature=0))[0].text)

Names are imported on first use, so that the parts without JAX work without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .async_llm import AsyncLLM as AsyncLLM
    from .device.settings import EngineSettings as EngineSettings
    from .engine import Engine as Engine
    from .llm import LLM as LLM
    from .request import Request as Request
    from .request import SamplingParams as SamplingParams
    from .request import TokenEvent as TokenEvent
    from .texts import Completion as Completion
    from .texts import Score as Score

_HOMES = {
    "Engine": ".engine",
    "LLM": ".llm",
    "AsyncLLM": ".async_llm",
    "Completion": ".texts",
    "Score": ".texts",
    "Request": ".request",
    "SamplingParams": ".request",
    "TokenEvent": ".request",
    "EngineSettings": ".device.settings",
}
__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
