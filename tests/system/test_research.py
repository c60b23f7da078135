"""The research API on drawn models: hidden states, edits and scores as transformers has them; thousands of
prompts; Ctrl-C; an event loop."""

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from distaff.runtime import LLM, AsyncLLM, SamplingParams
from distaff.runtime.edits import InvalidEdit
from distaff.runtime.request import EngineFailed, InvalidRequest

from ..checkpoints.making import make_model, save_folder

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=0)
PROMPTS = ["The quick brown fox", "over", "It's 2024, and we're here! The lazy dog jumps over the quick"]
TOLERANCE = 1e-3


class Drawn:
    """A model in transformers, and the same as ours."""

    def __init__(self, folder: Path, family: str) -> None:
        self.theirs = make_model(family, num_hidden_layers=3, max_position_embeddings=128).eval()
        for parameter in self.theirs.parameters():
            parameter.requires_grad_(False)
            parameter *= 0.3
        self.folder = save_folder(folder, self.theirs)
        self.llm = LLM(str(self.folder), dtype="float32", slots=4, speculation=False)

    def run(self, tokens: list[int], hooks: dict[int, Callable[..., Any]] | None = None) -> np.ndarray:
        """Their logits `[T, V]`, with functions that are called after some layers and may change them."""
        layers = self.theirs.model.layers
        handles = [layers[n].register_forward_hook(hook) for n, hook in (hooks or {}).items()]
        try:
            with torch.no_grad():
                return self.theirs(torch.tensor([tokens])).logits[0].numpy()
        finally:
            for handle in handles:
                handle.remove()


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drawn]:
    """Its compiled programs go where the other tests' do."""
    before = jax.config.jax_compilation_cache_dir
    drawn = Drawn(tmp_path_factory.mktemp("model"), request.param)
    jax.config.update("jax_compilation_cache_dir", before)
    with drawn.llm:
        yield drawn


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    before = jax.config.jax_compilation_cache_dir
    folder = save_folder(tmp_path_factory.mktemp("small"), make_model())
    with LLM(str(folder), dtype="float32", slots=4) as llm:
        jax.config.update("jax_compilation_cache_dir", before)
        yield llm


def output_of(found: Any) -> torch.Tensor:
    """The residual stream in what a layer of transformers returns."""
    return found[0] if isinstance(found, tuple) else found


def keep(found: dict[int, np.ndarray], number: int, layer: object, inputs: object, outputs: Any) -> None:
    """A hook that keeps the residual stream."""
    found[number] = output_of(outputs)[0].numpy()


def test_hidden_states_are_those_after_a_layer(drawn: Drawn) -> None:
    """Of several prompts of different lengths at once, in the order of the layers that were asked for."""
    found = drawn.llm.hidden(PROMPTS, layers=(0, 2, -2))
    for prompt, stream_TLD in zip(PROMPTS, found, strict=True):
        tokens, expected = drawn.llm.tokenizer.encode(prompt), dict[int, np.ndarray]()
        drawn.run(tokens, {n: partial(keep, expected, n) for n in range(3)})
        assert stream_TLD.shape == (len(tokens), 3, 64) and stream_TLD.dtype == np.float32
        for place, layer in enumerate((0, 2, 1)):
            scale = np.abs(expected[layer]).max()
            np.testing.assert_allclose(stream_TLD[:, place], expected[layer], rtol=0, atol=TOLERANCE * scale)


def test_an_edit_changes_every_token_after_a_layer(drawn: Drawn) -> None:
    """The greedy tokens and their log-probabilities are those of transformers with the same vector added."""
    vector = np.random.default_rng(3).standard_normal(64).astype(np.float32) * 3
    edit = {1: lambda x_TD: x_TD + vector[None, :]}
    tensor = torch.tensor(vector)
    hooks = {1: lambda layer, inputs, outputs: output_of(outputs) + tensor}
    plain = drawn.llm.generate(PROMPTS, GREEDY, progress=False)
    edited = drawn.llm.generate(PROMPTS, GREEDY, edit=edit, progress=False)
    assert [each.tokens for each in plain] != [each.tokens for each in edited]
    for prompt, completion in zip(PROMPTS, edited, strict=True):
        ids = drawn.llm.tokenizer.encode(prompt)
        logits_TV = drawn.run([*ids, *completion.tokens], hooks)[len(ids) - 1 : -1]
        logprobs_TV = torch.log_softmax(torch.tensor(logits_TV), -1).numpy()
        assert logits_TV.argmax(-1).tolist() == list(completion.tokens)
        chosen = [entry.chosen for entry in completion.logprobs]
        np.testing.assert_allclose(chosen, logprobs_TV.max(-1), rtol=0, atol=TOLERANCE * 10)
    (stream_TLD,) = drawn.llm.hidden(PROMPTS[0], (1,), edit=edit)
    (before_TLD,) = drawn.llm.hidden(PROMPTS[0], (1,))
    np.testing.assert_allclose(stream_TLD, before_TLD + vector, atol=1e-3)


def test_edits_are_compiled_once_and_kept_apart(small: LLM) -> None:
    """What changes nothing gives the same bits, and no edit finds the pages of another one."""
    compiled: list[str] = []

    def count(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    same = {1: lambda x_TD: x_TD, -1: lambda x_TD: x_TD}  # the same layer twice
    other = {-1: lambda x_TD: -x_TD, 0: lambda x_TD: 2 * x_TD}
    plain = small.generate(PROMPTS, GREEDY, progress=False)
    assert small.generate(PROMPTS, GREEDY, edit=same, progress=False) == plain
    wait_for_compilation(small)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        assert small.generate(PROMPTS, GREEDY, edit=same, progress=False) == plain
        assert not compiled
        changed = small.generate(PROMPTS, GREEDY, edit=other, progress=False)
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert [each.tokens for each in changed] != [each.tokens for each in plain]
    assert small.generate(PROMPTS, GREEDY, progress=False) == plain


def wait_for_compilation(llm: LLM) -> None:
    """Waits until the engine with edits has compiled all of its steps."""
    (engine,) = llm._edited._engines.values()
    deadline = time.monotonic() + 120
    while (stats := engine.stats).buckets_ready < stats.buckets:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_edits_that_cannot_be_computed(small: LLM) -> None:
    """They are named, their own errors reach the caller, and the model goes on."""
    with pytest.raises(InvalidEdit, match=r"layer is 2; expected -2 to 1"):
        small.generate("fox", GREEDY, edit={2: lambda x_TD: x_TD}, progress=False)
    with pytest.raises(InvalidEdit, match=r"layer is -3; expected -2 to 1"):
        small.hidden("fox", layers=(-3,))
    with pytest.raises(InvalidEdit, match=r"the edit after layer 1 returns float32\[\d+,2\]; expected"):
        small.generate("fox", GREEDY, edit={1: lambda x_TD: x_TD[:, :2]}, progress=False)
    with pytest.raises(InvalidEdit, match=r"returns float16\[\d+,64\]; expected float32\[\d+,64\]"):
        small.hidden("fox", edit={1: lambda x_TD: x_TD.astype(jnp.float16)})
    with pytest.raises(ZeroDivisionError):
        small.generate("fox", GREEDY, edit={1: lambda x_TD: x_TD * (1 / 0)}, progress=False)
    assert small.generate("fox", GREEDY, progress=False)


def test_scores_are_log_probabilities(drawn: Drawn) -> None:
    """Of continuations as texts and as ids; a greedy one is what the model generates."""
    ids = [drawn.llm.tokenizer.encode(prompt) for prompt in PROMPTS]
    greedy = drawn.llm.generate(PROMPTS, GREEDY, progress=False)
    scores = drawn.llm.score(
        [*ids, *PROMPTS], [*(list(each.tokens) for each in greedy), *[" jumps over"] * 3]
    )
    assert [score.greedy for score in scores] == [True] * 3 + [False] * 3
    for prompt, score in zip([*ids, *ids], scores, strict=True):
        tokens = [*prompt, *score.tokens]
        logprobs_TV = torch.log_softmax(torch.tensor(drawn.run(tokens)), -1).numpy()
        expected = logprobs_TV[np.arange(len(prompt) - 1, len(tokens) - 1), tokens[len(prompt) :]]
        np.testing.assert_allclose(score.logprobs, expected, rtol=0, atol=TOLERANCE * 10)
        assert score.logprob == pytest.approx(expected.sum(), abs=0.1)
    spaced, plain = drawn.llm.score(["The quick ", "The quick"], ["fox", " fox"])
    assert spaced.tokens == plain.tokens


def test_pairs_that_cannot_be_scored(small: LLM) -> None:
    """With the numbers of what was found and expected."""
    with pytest.raises(InvalidRequest, match=r"1 continuations; expected 2, one for each prompt"):
        small.score(["a", "b"], ["c"])
    with pytest.raises(InvalidRequest, match=r"0 of continuation; expected some of each"):
        small.score(["fox"], [""])
    with pytest.raises(InvalidRequest, match=r"expected at most 128 together"):
        small.score(["fox " * 200], [" dog"])


def test_thousands_of_prompts(small: LLM) -> None:
    """They keep their order, only some are in flight at once, and an invalid one is refused before all."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 300, rng.integers(1, 5)).tolist() for _ in range(2000)]
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            stats = small.engine.stats
            most = max(most, stats.waiting + stats.running)

    watcher = threading.Thread(target=watch)
    watcher.start()
    params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
    completions = small.generate(prompts, params, progress=False)
    done.set()
    watcher.join()
    assert 0 < most <= 2 * small.engine.slots
    assert len(completions) == 2000
    for number in (0, 7, 1999):
        assert completions[number] == small.generate(prompts[number], params, progress=False)[0]
    with pytest.raises(InvalidRequest, match=r"the prompt is empty"):
        small.generate([*prompts, []], params, progress=False)
    assert small.engine.stats.running == 0


def test_a_failed_prompt_fails_the_call(small: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are aborted, and the model goes on."""
    matcher = SamplingParams(max_tokens=100, temperature=0, grammar="{not a grammar")
    with pytest.raises((InvalidRequest, EngineFailed)):
        small.generate(["fox"] * 20, matcher, progress=False)
    assert small.generate("fox", GREEDY, progress=False)


INTERRUPTED = """
    import sys
    from distaff.runtime import LLM, SamplingParams

    with LLM(sys.argv[1], dtype="float32", slots=2) as llm:
        params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
        print("ready", flush=True)
        found = llm.generate([[n % 300 + 1] for n in range(20_000)], params, progress=True)
        whole = [each for each in found if each.finish == "length"]
        assert len(found) == 20_000 and found[0].finish == "length" and len(found[0].tokens) == 40
        assert 0 < len(whole) < 20_000
        assert found[-1].finish == "interrupted" and found[-1].text == ""
        assert llm.generate([[1]], params, progress=False)[0] == found[0]
        print("partial", len(whole), flush=True)
"""


def test_ctrl_c_returns_what_there_is(drawn: Drawn) -> None:
    """In a script: the finished prompts in their places, and the model can be used again."""
    program = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(drawn.folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(1.5)  # some of the prompts
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert out.startswith("partial ")
    assert "generating" in err + out


async def test_an_event_loop_is_not_blocked(small: LLM) -> None:
    """Calls of several tasks give what they give without a loop, while the loop goes on."""
    llm, ticks = AsyncLLM(small), 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticker = asyncio.create_task(tick())
    params = SamplingParams(max_tokens=80, temperature=0, ignore_eos=True)
    results = await asyncio.gather(*(llm.generate(prompt, params) for prompt in PROMPTS * 4))
    ticker.cancel()
    assert ticks > 10
    expected = small.generate(PROMPTS, params, progress=False)
    assert [each for (each,) in results] == expected * 4
    pieces = [piece async for piece in llm.stream(PROMPTS[0], params)]
    assert "".join(pieces) == expected[0].text
    conversation = [{"role": "user", "content": "fox"}]
    assert await llm.chat(conversation, GREEDY) == small.chat(conversation, GREEDY, progress=False)
    (score,) = await llm.score(["The quick"], [" fox"])
    assert score.logprob == pytest.approx(small.score(["The quick"], [" fox"])[0].logprob)
    np.testing.assert_array_equal((await llm.hidden("fox"))[0], small.hidden("fox")[0])
    np.testing.assert_array_equal(await llm.logprobs("The quick fox"), small.logprobs("The quick fox"))
    np.testing.assert_array_equal(await llm.forward([1, 2, 3]), small.forward([1, 2, 3]))


async def test_different_edits_at_the_same_time(small: LLM) -> None:
    """Each call has its own, and none is stopped before it has ended; the last one stays."""
    llm, edits = AsyncLLM(small), [{0: lambda x_TD, n=n: x_TD * n} for n in (1, 2, 3)]
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    together = await asyncio.gather(*(llm.generate("fox", params, edit=edit) for edit in edits))
    assert [small.generate("fox", params, edit=edit, progress=False) for edit in edits] == list(together)
    assert len({each[0].tokens for each in together}) == 3
    assert len(small._edited._engines) == 1


async def test_a_cancelled_task_aborts_its_requests(small: LLM) -> None:
    """Whether it waits for whole completions or has left a stream."""
    llm, params = AsyncLLM(small), SamplingParams(max_tokens=120, temperature=0, ignore_eos=True)
    task = asyncio.create_task(llm.generate([[5]] * 50, params))
    while not small.engine.stats.running:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stream = llm.stream([5], params)
    assert await anext(stream)
    await stream.aclose()
    deadline = time.monotonic() + 10
    while (stats := small.engine.stats).running or stats.waiting:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
    assert stats.free_pages == stats.total_pages
