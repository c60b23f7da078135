"""The law of validation: packing accepts every request that passes `check`, with all its values."""

import numpy as np

from distaff.runtime.device.buckets import Bucket, Layout, Shapes
from distaff.runtime.device.packing import adjustments_of, pack
from distaff.runtime.policy.sequence import Row, Sequence
from distaff.runtime.request import Request
from distaff.runtime.validation import check

PAGE = 16


def assert_packs(request: Request, vocabulary: int, context: int) -> None:
    """The request passes, and can be packed into both kinds of step: all its tokens, and its last one.

    Raises:
      InvalidRequest: it does not pass.
    """
    limit = check(request, vocabulary, context)
    params, prompt = request.params, request.prompt
    tokens = [*prompt, *request.generated]
    assert len(tokens) < limit <= context and params.min_tokens <= limit - len(prompt)
    seed = 0 if params.seed is None else params.seed % 2**64
    sequence = Sequence(request=request, seed=seed, limit=limit, arrival=0, tokens=tokens)
    sequence.pages = list(range(1, -(-len(tokens) // PAGE) + 1))
    shapes = Shapes(slots=2, budget=len(tokens) + 2, page_size=PAGE, table=-(-context // PAGE), tile=8)
    last = Row(sequence, 1, len(tokens) - 1, 1, samples=True, first=True)
    counts_V, bias_V, marks_V = adjustments_of(last, vocabulary)
    assert counts_V.sum() == params.penalises * max(0, len(request.generated) - 1)
    assert np.isfinite(bias_V).any() and np.count_nonzero(marks_V & 2) <= len(params.stop_ids)
    assert set(np.flatnonzero(marks_V & 1)) == set(prompt)
    for bucket, start in (
        (shapes.buckets()[0], 0),
        (Bucket(kind="decode", tokens=2, rows=2), len(tokens) - 1),
    ):
        row = Row(sequence, 1, start, len(tokens) - start, samples=True, first=True)
        layout = Layout(bucket, shapes)
        fields = _unpacked(layout, pack([row], bucket, layout, shapes))
        assert fields["token"][: row.count].tolist() == tokens[start:]
        places = range(start, len(tokens))
        assert fields["length"][: row.count].tolist() == [max(at + 1, len(prompt)) for at in places]
        counted = [params.penalises and at >= len(prompt) for at in places]
        assert fields["counted"][: row.count].tolist() == counted
        assert fields["sample_position"][0] == len(tokens)
        assert fields["end_position"][0] == len(prompt) + params.min_tokens
        assert (fields["top_k"][0], fields["choice"][0]) == (params.top_k, request.choice)
        assert int(fields["seed"][0, 0]) + (int(fields["seed"][0, 1]) << 32) == seed
        floats = (
            "temperature",
            "top_p",
            "min_p",
            "frequency_penalty",
            "presence_penalty",
            "repetition_penalty",
        )
        assert all(np.isfinite(fields[name][0]) for name in floats)


def _unpacked(layout: Layout, buffer: np.ndarray) -> dict[str, np.ndarray]:
    _, views = layout.allocate()
    at = 0
    for name, view in views.items():
        views[name] = buffer[at : at + view.size].view(view.dtype).reshape(view.shape)
        at += view.size
    return views
