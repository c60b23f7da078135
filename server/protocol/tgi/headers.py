"""TGI's headers of an answer: what computed it, how much, and where the time went.

Only measured values are reported: if the time that a request waited is unknown, the times that depend on it
are left out. As in TGI, `x-compute-time` is in seconds and all other times are whole milliseconds.
"""

Headers = dict[str, str]


def early_headers(platform: str, inputs: str) -> Headers:
    """The headers that are known before the first token; a stream has no others."""
    return {"x-compute-type": platform, "x-compute-characters": str(len(inputs))}


def late_headers(
    *, arrived: float, admitted: float, ended: float, waited: float | None, prompt: int, generated: int
) -> Headers:
    """What is known of a whole answer.

    Args:
      arrived, admitted, ended: of the request, in seconds of one clock. waited: from there on until its first
        step. prompt, generated: tokens.
    """
    found = {
        "x-compute-time": f"{ended - arrived:.6f}",
        "x-total-time": _milliseconds(ended - arrived),
        "x-validation-time": _milliseconds(admitted - arrived),
        "x-prompt-tokens": str(prompt),
        "x-generated-tokens": str(generated),
    }
    if waited is not None:
        inference = ended - admitted - waited
        found["x-queue-time"] = _milliseconds(waited)
        found["x-inference-time"] = _milliseconds(inference)
        found["x-time-per-token"] = _milliseconds(inference / max(1, generated))
    return found


def _milliseconds(seconds: float) -> str:
    return str(max(0, int(seconds * 1000)))
