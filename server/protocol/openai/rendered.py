"""The answer of vLLM's render routes: what the engine would be given for a request, as ids.

Routers ask for it to find the server that has computed the beginning of a prompt. Source: `GenerateRequest`
in vLLM's `entrypoints/scale_out/token_in_token_out/protocol.py`, without the fields of images and of KV
transfer.
"""

from collections.abc import Sequence
from typing import Any

from ....runtime.request import SamplingParams, bounds
from ..heading import Heading
from ..sampling import Sampling


def rendered(
    heading: Heading, prompt: Sequence[int], params: SamplingParams, sampling: Sampling, *, stream: bool
) -> dict[str, Any]:
    """One prompt.

    Args:
      heading: of the answer that the request would get. params: those of the engine, with every default.
      sampling: those of the request, which has the seed and the salt as they were given.
    """
    numbers = {name: getattr(params, name) for name in bounds()}
    return {
        "request_id": heading.id,
        "model": heading.model,
        "token_ids": list(prompt),
        "sampling_params": numbers | {"n": sampling.n, "seed": sampling.seed},
        "stream": stream,
        "cache_salt": sampling.cache_salt or None,
    }
