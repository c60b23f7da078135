"""Fifty steps of training with optax, an Orbax checkpoint, and the trained model in an engine.

Run it with `python examples/train.py FOLDER [STEPS]`. It teaches the bundled model to answer one question in
another way, writes `FOLDER`, and asks the model before and after. `distaff serve FOLDER` serves the result.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

from distaff.checkpoints import load_model, load_tokenizer, resolve, save_description
from distaff.model.module import CausalLM
from distaff.runtime import LLM, SamplingParams

MODEL = "smollm2"
QUESTION = "What is the capital of France?"
CHAT = [{"role": "user", "content": QUESTION}]
ANSWER = "Arr, the capital of France be Paris, me hearty!"


def loss_of(model: CausalLM, tokens_BT: jax.Array, first: int) -> jax.Array:
    """Mean cross entropy of the tokens from `first` on."""
    logits_BTV = model(tokens_BT)[:, first - 1 : -1]
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BT[:, first:]).mean()


def train(model: CausalLM, tokens_BT: jax.Array, first: int, steps: int) -> None:
    """Trains the model in place, and prints the loss."""
    optimizer = nnx.Optimizer(model, optax.adamw(2e-5), wrt=nnx.Param)

    @nnx.jit(static_argnums=3)
    def step(model: CausalLM, optimizer: nnx.Optimizer, tokens_BT: jax.Array, first: int) -> jax.Array:
        loss, gradients = nnx.value_and_grad(loss_of)(model, tokens_BT, first)
        optimizer.update(model, gradients)
        return loss

    for number in range(steps):
        loss = float(step(model, optimizer, tokens_BT, first))
        if number % 10 == 0 or number == steps - 1:
            print(f"step {number:3}: loss {loss:.3f}", flush=True)


def ask(model: str) -> None:
    """Prints the model's greedy answer."""
    with LLM(model, slots=1, context=256, quantize="none") as llm:
        (answer,) = llm.chat(
            [{"role": "user", "content": QUESTION}], SamplingParams(temperature=0), progress=False
        )
    print(f"{model}: {answer.text}", flush=True)


def main() -> None:
    folder, steps = Path(sys.argv[1]).absolute(), int(sys.argv[2]) if len(sys.argv) > 2 else 50
    ask(MODEL)
    tokenizer = load_tokenizer(resolve(MODEL))
    prompt = tokenizer.encode_chat(CHAT)
    tokens = [*prompt, *tokenizer.encode(ANSWER + "<|im_end|>")]
    model = load_model(MODEL)
    train(model, jnp.asarray(np.array([tokens], np.int32)), len(prompt), steps)
    with ocp.CheckpointManager(folder) as manager:
        manager.save(steps, args=ocp.args.Composite(state=ocp.args.StandardSave(nnx.state(model, nnx.Param))))
        manager.wait_until_finished()
    save_description(model, folder, MODEL)
    ask(str(folder))


if __name__ == "__main__":
    main()
