"""A linear probe: after which layer does a model know whether a review is positive?

Run it with `python examples/linear_probe.py [MODEL]`; without a model it uses the bundled default. Half of
the reviews have a negation, so single words do not tell. For some layers it trains a logistic regression on
the residual stream of the last token, and prints its accuracy on reviews with adjectives it has not seen.
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from distaff.runtime import LLM

LAYERS = (0, 7, 14, 21, -1)
THINGS = ["film", "meal", "hotel", "book", "concert"]
GOOD = ["wonderful", "excellent", "delightful", "superb", "charming", "brilliant", "lovely", "great"]
BAD = ["terrible", "awful", "dreadful", "boring", "horrible", "disgusting", "dull", "poor"]


def reviews(good: list[str], bad: list[str]) -> tuple[list[str], list[int]]:
    """Sentences with each of some adjectives, and whether each is positive."""
    texts, labels = list[str](), list[int]()
    for thing, verb, word in itertools.product(THINGS, ("was", "was not"), [*good, *bad]):
        texts.append(f"The {thing} {verb} {word}.")
        labels.append(int((word in good) == (verb == "was")))
    return texts, labels


def fit(x_ND: np.ndarray, y_N: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Weights `[D]` and bias of a logistic regression, by gradient descent with some weight decay."""

    def loss(model: tuple[jax.Array, jax.Array]) -> jax.Array:
        logit_N = x_ND @ model[0] + model[1]
        likelihood = jax.nn.log_sigmoid(jnp.where(y_N > 0, logit_N, -logit_N))
        return -likelihood.mean() + 1e-3 * jnp.square(model[0]).sum()

    model = jnp.zeros(x_ND.shape[1]), jnp.zeros(())
    step = jax.jit(lambda model: jax.tree.map(lambda w, g: w - 0.1 * g, model, jax.grad(loss)(model)))
    for _ in range(300):
        model = step(model)
    return model


def main() -> None:
    known, labels = reviews(GOOD[:5], BAD[:5])
    unseen, more = reviews(GOOD[5:], BAD[5:])
    y_N, train = np.array(labels + more), len(known)
    with LLM(sys.argv[1] if len(sys.argv) > 1 else None) as llm:
        x_NLD = np.stack([stream_TLD[-1] for stream_TLD in llm.hidden(known + unseen, LAYERS)])
    for place, layer in enumerate(LAYERS):
        x_ND = x_NLD[:, place]
        x_ND = (x_ND - x_ND[:train].mean(0)) / (x_ND[:train].std(0) + 1e-6)
        weights, bias = fit(x_ND[:train], y_N[:train])
        right_N = (x_ND @ np.asarray(weights) + float(bias) > 0) == (y_N > 0)
        print(f"after layer {layer:2}: accuracy {right_N[train:].mean():.2f} on {len(unseen)} unseen reviews")


if __name__ == "__main__":
    main()
