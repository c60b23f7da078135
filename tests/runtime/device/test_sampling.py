"""Laws of the sampler, against definitions in float64 numpy.

The definition: temperature first; then the k most likely ids of the tempered distribution; of these,
renormalised, the smallest set of the most likely with a total of at least top_p; of these, those at least
min_p times as likely as the best. The remaining ones are renormalised and one is drawn.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.model.kernels.draw import WINDOW, DrawSettings, floors
from distaff.runtime.device.sampling import Adjustments, RowParams, sample

SMALL, LARGE = 50, 128 * 128 + 77
"""A vocabulary within the window and within one block, and one of more than 128 blocks."""


@jax.jit
def run(logits, params, counts, broken=None):
    """The sampler with these counts, and no broken row by default."""
    broken = jnp.zeros(logits.shape[0], bool) if broken is None else broken
    known = Adjustments(counts, jnp.zeros_like(logits), jnp.zeros(logits.shape, jnp.uint8))
    return sample(logits, params, lambda: known, broken)


def make_params(rows: int, **given) -> RowParams:
    """Plain sampling at positions 0, 1, 2 … except for the given values, one or one per row."""
    neutral = {"choice": 0, "temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0}
    neutral |= {
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "wants_logprobs": False,
    }
    neutral |= {"adjusts": "frequency_penalty" in given or "presence_penalty" in given, "end_position": 0}
    values = {**neutral, "position": np.arange(rows), **given}
    seed = np.broadcast_to(np.asarray(values.pop("seed", (7, 9)), np.uint32), (rows, 2))
    kinds = {"choice": np.int32, "position": np.int32, "top_k": np.int32, "wants_logprobs": bool}
    kinds |= {"adjusts": bool, "end_position": np.int32}
    fields = {
        f"{name}_B": np.broadcast_to(np.asarray(value, kinds.get(name, np.float32)), (rows,))
        for name, value in values.items()
    }
    return RowParams(seed_B2=seed, **fields)


def make_logits(rows: int, size: int, *, spread: float = 2.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, size]).normal(0, spread, (rows, size)).astype(np.float32)


def draw(logits: np.ndarray, counts: np.ndarray | None = None, **given) -> np.ndarray:
    """One token per row."""
    counts = np.zeros(logits.shape, np.int32) if counts is None else counts
    return np.array(run(logits, make_params(len(logits), **given), counts).token_B)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def target(logits_V: np.ndarray, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """The definition: every id's probability, f64."""
    p_V = softmax(logits_V.astype(np.float64) / temperature)
    order_V = np.argsort(-p_V, kind="stable")
    ranked_V = p_V[order_V]
    ranked_V[top_k or len(p_V) :] = 0
    ranked_V /= ranked_V.sum()
    if top_p < 1:
        ranked_V[np.cumsum(ranked_V) - ranked_V >= top_p] = 0
    ranked_V[ranked_V < min_p * ranked_V[0]] = 0
    kept_V = np.zeros_like(p_V)
    kept_V[order_V] = ranked_V / ranked_V.sum()
    return kept_V


SETTINGS = [
    {},
    {"temperature": 0.3},
    {"temperature": 3.0},
    {"top_k": 2},
    {"top_k": 17, "temperature": 0.7},
    {"top_k": WINDOW},
    {"top_k": WINDOW + 1},
    {"top_k": 3000},
    {"top_k": 10**9, "top_p": 0.5},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.999, "temperature": 0.5},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 3000, "top_p": 0.7},
    {"top_k": 5000, "top_p": 0.95, "min_p": 0.02, "temperature": 1.4},
    {"top_k": 200, "top_p": 0.6, "temperature": 0.6},
]


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}, {"top_p": 1e-9}])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_without_randomness_the_best_is_chosen(setting, size):
    """Temperature 0, top-k 1 and top-p 0 are the argmax, each by itself."""
    logits = make_logits(16, size)
    np.testing.assert_array_equal(draw(logits, **setting), logits.argmax(-1))


@pytest.mark.parametrize("size", [SMALL, 300, LARGE])
def test_what_can_be_drawn_is_exact(size):
    """The kept ids are those of the definition, for all settings in one batch; ids within rounding error of a
    threshold can be kept or not."""
    logits = make_logits(len(SETTINGS), size)
    params = make_params(len(SETTINGS), **columns(SETTINGS))
    tempered = (logits - logits.max(-1, keepdims=True)) / params.temperature_B[:, None]
    weights = np.exp(tempered)
    key = np.zeros((len(SETTINGS), 2), np.uint32)
    settings = DrawSettings(params.temperature_B, params.top_k_B, params.top_p_B, params.min_p_B, key)
    floor = np.asarray(jax.jit(floors)(weights, settings))
    for row, setting in enumerate(SETTINGS):
        kept = weights[row] >= floor[row]
        sure = [target(logits[row], **nudged(setting, by)) > 0 for by in (-1e-5, 1e-5)]
        assert np.all(kept[sure[0] & sure[1]]) and not np.any(kept[~sure[0] & ~sure[1]]), setting


def columns(settings):
    """One array per setting that any row has."""
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return {name: [setting.get(name, value) for setting in settings] for name, value in neutral.items()}


def nudged(setting, by):
    """The setting with its thresholds moved by a rounding error."""
    moved = dict(setting)
    if moved.get("top_p", 1.0) < 1:
        moved["top_p"] = max(moved["top_p"] + by, 1e-12)
    if 0 < moved.get("min_p", 0) < 1:
        moved["min_p"] *= 1 - by
    return moved


@pytest.mark.parametrize(
    ("size", "setting"), [(SMALL, s) for s in SETTINGS] + [(LARGE, s) for s in SETTINGS[::4]], ids=str
)
def test_frequencies_are_the_definitions(setting, size):
    """Over thousands of positions frequencies match the target: chi-square below its mean + 5 deviations, and
    no id outside the support is drawn."""
    rows, rounds = (4096, 2) if size == SMALL else (256, 12)
    logits_V = make_logits(1, size, spread=2.0)[0]
    batch = np.broadcast_to(logits_V, (rows, size))
    tokens = np.concatenate(
        [draw(batch, position=np.arange(rows) + n * rows, **setting) for n in range(rounds)]
    )
    expected = target(logits_V, **setting) * rows * rounds
    observed = np.bincount(tokens, minlength=size)
    assert np.all(expected[observed > 0] > 0)
    assert_matches(observed, expected)


def assert_matches(observed: np.ndarray, expected: np.ndarray) -> None:
    """Chi-square over ids; rare ones are combined in the order of their ids."""
    bins, cut = [], 0
    totals = np.cumsum(expected)
    while cut < len(expected) and totals[-1] - (totals[cut - 1] if cut else 0) > 20:
        end = int(np.searchsorted(totals, (totals[cut - 1] if cut else 0) + 10)) + 1
        bins.append((observed[cut:end].sum(), expected[cut:end].sum()))
        cut = end
    bins.append((observed[cut:].sum(), expected[cut:].sum()))
    found, wanted = np.array([b for b in bins if b[1] > 0]).T
    freedom = max(1, len(found) - 1)
    assert ((found - wanted) ** 2 / wanted).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_a_draw_does_not_depend_on_its_row():
    """Equal seed, choice, position and logits give the same token in any row of a batch of one size."""
    logits = make_logits(32, 1000)
    settings = {"position": np.arange(32) * 3, "choice": np.arange(32) % 3, **columns(SETTINGS * 2)}
    settings = {name: np.asarray(value)[:32] for name, value in settings.items()}
    straight = draw(logits, **settings)
    order = np.random.default_rng(1).permutation(32)
    shuffled = draw(logits[order], **{name: value[order] for name, value in settings.items()})
    np.testing.assert_array_equal(straight[order], shuffled)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_draw_does_not_depend_on_the_batch(rows):
    """The random number of a draw has equal bits in batches of any size; cumulative sums can have another
    order, which moves a border by an ulp, but changes none of these draws."""
    logits = make_logits(16, 1000)
    whole = draw(logits, temperature=0.8, top_p=0.9)
    parts = [
        draw(logits[n : n + rows], position=np.arange(n, min(n + rows, 16)), temperature=0.8, top_p=0.9)
        for n in range(0, 16, rows)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("changed", [{"seed": (7, 10)}, {"seed": (8, 9)}, {"choice": 1}, {"position": 1000}])
def test_seed_choice_and_position_each_matter(changed):
    """A change in any of them, also in either word of the seed, gives another draw."""
    logits = np.zeros((32, 1000), np.float32)
    assert np.mean(draw(logits) == draw(logits, **changed)) < 0.2


def test_draws_of_neighbouring_keys_are_independent():
    """Over neighbouring positions and choices, ids from a flat distribution do not repeat more often than
    random ones."""
    logits = np.zeros((64, LARGE), np.float32)
    tokens = np.concatenate([draw(logits, choice=choice) for choice in range(8)])
    assert len(set(tokens.tolist())) > 512 - 8 - 30


def test_penalties_are_openais():
    """`logit - count * frequency - (count > 0) * presence`, for the greedy choice and for the draw."""
    logits = make_logits(64, SMALL)
    counts = np.random.default_rng(2).integers(0, 4, logits.shape).astype(np.int32)
    settings = {"frequency_penalty": np.linspace(-2, 2, 64), "presence_penalty": np.linspace(2, -1, 64)}
    adjusted = logits - counts * np.float32(settings["frequency_penalty"])[:, None]
    adjusted -= (counts > 0) * np.float32(settings["presence_penalty"])[:, None]
    greedy = draw(logits, counts, temperature=0.0, **settings)
    np.testing.assert_array_equal(greedy, adjusted.argmax(-1))
    np.testing.assert_array_equal(draw(logits, counts, **settings), draw(adjusted))


def test_counts_without_penalties_do_nothing():
    """The penalties of a row do not affect a row without penalties."""
    logits = make_logits(8, SMALL)
    counts = np.full(logits.shape, 3, np.int32) * (np.arange(SMALL) % 2).astype(np.int32)
    mixed = draw(logits, counts, frequency_penalty=np.array([2.0, 0.0] * 4))
    np.testing.assert_array_equal(mixed[1::2], draw(logits)[1::2])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {}, {"top_k": 5}, {"top_p": 0.5, "min_p": 0.1}])
def test_a_row_that_is_not_finite_is_reported(bad, setting):
    """Such a row gives -1; the others do not change."""
    logits = make_logits(6, 300)
    expected = draw(logits, **setting)
    logits[2, 17], logits[4] = bad, -np.inf
    expected[[2, 4]] = -1
    np.testing.assert_array_equal(draw(logits, **setting), expected)


def test_impossible_ids_are_never_drawn():
    """Minus infinity is a valid logit, of an id that is never drawn."""
    logits = make_logits(512, 300)
    logits[:, 1::2] = -np.inf
    assert np.all(draw(logits, temperature=5.0, top_p=0.99) % 2 == 0)


def test_only_a_broken_row_is_reported():
    """An earlier NaN in a sequence counts, even if its logits are finite now."""
    logits, broken = make_logits(4, SMALL), np.array([False, True, False, True])
    tokens = np.array(
        run(logits, make_params(4, temperature=0.0), np.zeros(logits.shape, np.int32), broken)[0]
    )
    assert (tokens == np.where(broken, -1, logits.argmax(-1))).all()


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 1e4, 3e38])
def test_extreme_temperatures_stay_finite(temperature):
    """The coldest draw is the argmax, the hottest can be any id; neither is an error."""
    logits = make_logits(16, SMALL, spread=30.0)
    tokens = draw(logits, temperature=temperature)
    assert np.all(tokens >= 0)
    if temperature <= 1e-3:
        np.testing.assert_array_equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_logprobs_are_of_the_raw_logits(size):
    """Log-softmax before temperature and penalties; the best ids in descending order."""
    logits = make_logits(5, size)
    counts = np.ones(logits.shape, np.int32)
    wants = np.array([True, False, True, True, False])
    params = make_params(5, temperature=2.0, top_k=7, frequency_penalty=1.0, wants_logprobs=wants)
    token, logprob, top = map(np.asarray, run(logits, params, counts))
    expected = np.log(softmax(logits.astype(np.float64)))
    np.testing.assert_allclose(logprob[:, 0], expected[np.arange(5), token], atol=1e-5)
    np.testing.assert_allclose(logprob[:, 1:], np.take_along_axis(expected, top, 1), atol=1e-5)
    np.testing.assert_array_equal(top, np.argsort(-logits, -1, kind="stable")[:, : top.shape[1]])


def test_logprobs_that_no_row_requests_are_zero():
    """The tokens are the same."""
    logits = make_logits(5, SMALL)
    counts = np.zeros(logits.shape, np.int32)
    without = run(logits, make_params(5), counts)
    with_them = run(logits, make_params(5, wants_logprobs=True), counts)
    assert not np.any(without.logprob_BX) and not np.any(without.top_BX)
    np.testing.assert_array_equal(without.token_B, with_them.token_B)
