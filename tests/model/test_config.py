"""What a model's configuration refuses, and that the error has the value that was found."""

import re

import pytest

from distaff.model.config import ModelConfig, RopeScaling
from distaff.model.errors import ConfigError

SIZES = dict(vocabulary=8, layers=1, width=8, feed_forward=8, heads=4, kv_heads=2, head_size=4, context=16)
ROPE = dict(kind="linear", factor=2.0, original_context=16)

POSITIVE = [*SIZES, "norm_epsilon", "rope_theta", "window"]
POSITIVE_ROPE = [
    *("factor", "original_context", "low_frequency", "high_frequency", "beta_fast", "beta_slow"),
    *("attention_factor", "mscale", "mscale_all_dim"),
]


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", POSITIVE)
def test_sizes_are_positive(name: str, value: float) -> None:
    """Every number of a model must be positive and finite; the error names the field and the value."""
    with pytest.raises(ConfigError, match=f"^{name} is {re.escape(repr(value))}; expected"):
        ModelConfig(**SIZES | {name: value})


@pytest.mark.parametrize("value", [0, -2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", POSITIVE_ROPE)
def test_rope_numbers_are_positive(name: str, value: float) -> None:
    """Every number of a rope scaling that is given must be positive and finite."""
    with pytest.raises(ConfigError, match=f"^rope.{name} is {re.escape(repr(value))}; expected"):
        RopeScaling(**ROPE | {name: value})


REFUSED = {
    "heads do not divide": (dict(heads=4, kv_heads=3), "heads is 4 and kv_heads 3"),
    "fewer heads than kv_heads": (dict(heads=2, kv_heads=4), "heads is 2 and kv_heads 4"),
    "odd head": (dict(head_size=5), "head_size is 5"),
    "dynamic of one pair": (
        dict(head_size=2, rope=RopeScaling(**ROPE | {"kind": "dynamic"})),
        "head_size is 2",
    ),
    "yarn without a base": (
        dict(rope_theta=1.0, rope=RopeScaling(**ROPE | {"kind": "yarn"})),
        "rope_theta is 1.0",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_impossible_models_are_refused(changes: dict, message: str) -> None:
    """A model that cannot be computed is refused when it is described, with the numbers at fault."""
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        ModelConfig(**SIZES | changes)


def test_empty_llama3_band_is_refused() -> None:
    """`llama3` blends between two limits; they must differ."""
    with pytest.raises(ConfigError, match=r"high_frequency is 1\.0; expected more than low_frequency, 1\.0"):
        RopeScaling(kind="llama3", factor=8.0, original_context=64, low_frequency=1.0, high_frequency=1.0)


def test_the_same_numbers_are_accepted_if_they_make_sense() -> None:
    """The cases above fail because of their numbers and nothing else."""
    ModelConfig(**SIZES, window=1, norm_epsilon=1e-12, rope=RopeScaling(**ROPE, attention_factor=0.5))
    ModelConfig(**SIZES | {"head_size": 2, "kv_heads": 4, "rope": RopeScaling(**ROPE | {"kind": "yarn"})})
