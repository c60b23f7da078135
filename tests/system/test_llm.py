"""The research API on the real model: by name, in batches, in pieces, in numbers, in an event loop too."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from distaff.runtime import LLM, SamplingParams
from distaff.runtime.request import InvalidRequest

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def llm():
    """The bundled model, small; what it compiles goes where the other tests' does."""
    before = jax.config.jax_compilation_cache_dir
    with LLM("smollm2", quantize="none", slots=4, context=256) as llm:
        yield llm
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_batch_is_what_its_prompts_are_alone(llm: LLM) -> None:
    """Several prompts go through the engine together and come back in order."""
    prompts = [
        "The capital of France is",
        "Two plus two",
        "Once upon a time, there",
        "Water boils",
        "The moon",
    ]
    together = llm.generate(prompts, GREEDY, progress=False)
    alone = [llm.generate(prompt, GREEDY, progress=False)[0] for prompt in prompts]
    assert together == alone
    assert "Paris" in together[0].text
    assert all(completion.finish == "length" and len(completion.tokens) == 12 for completion in together)


def test_a_chat_ends_by_itself(llm: LLM) -> None:
    """The model's end tokens come with it, for one conversation as for several."""
    (single,) = llm.chat(CAPITAL, SamplingParams(temperature=0), progress=False)
    assert (single.text, single.finish) == ("The capital of France is Paris.", "stop")
    assert llm.chat([CAPITAL, CAPITAL], SamplingParams(temperature=0), progress=False) == [single, single]


def test_a_stream_is_the_whole_in_pieces(llm: LLM) -> None:
    """Of a text, of ids and of a conversation; leaving it early leaves nothing behind."""
    whole = llm.generate("Once upon a time", GREEDY, progress=False)[0].text
    pieces = list(llm.stream("Once upon a time", GREEDY))
    assert "".join(pieces) == whole and len(pieces) > 3
    assert "".join(llm.stream(llm.tokenizer.encode("Once upon a time"), GREEDY)) == whole
    assert "Paris" in "".join(llm.stream(CAPITAL, GREEDY))
    next(iter(llm.stream("Once", SamplingParams(max_tokens=200))))
    assert llm.generate("Once upon a time", GREEDY, progress=False)[0].text == whole


def test_log_probabilities_of_three_kinds_agree(llm: LLM) -> None:
    """Those of a generated token, those of the same text scored, and the log-softmax of the logits."""
    params = SamplingParams(max_tokens=12, temperature=0, logprobs=5, ignore_eos=True)
    prompt = llm.tokenizer.encode("The capital of France is")
    (completion,) = llm.generate([prompt], params, progress=False)
    tokens = [*prompt, *completion.tokens]
    logits = llm.forward(tokens)
    assert logits.shape == (len(tokens), llm.config.vocabulary)
    expected = np.asarray(jax.nn.log_softmax(logits, axis=-1))[np.arange(len(tokens) - 1), tokens[1:]]
    np.testing.assert_allclose(llm.logprobs(tokens), expected, atol=1e-4)
    sampled = [report.chosen for report in completion.logprobs]
    np.testing.assert_allclose(sampled, expected[len(prompt) - 1 :], atol=1e-3)
    assert all(len(report.top) == 5 and report.top[0][1] == report.chosen for report in completion.logprobs)
    ending = replace(params, ignore_eos=False, stop_ids=(completion.tokens[5],))
    (ended,) = llm.generate([prompt], ending, progress=False)
    assert len(ended.logprobs) == len(ended.tokens) == completion.tokens.index(completion.tokens[5])


def test_seeds_repeat(llm: LLM) -> None:
    """The same seed, the same text, in whatever company."""
    params = SamplingParams(max_tokens=12, temperature=1.5, seed=11)
    first = llm.generate("My favourite", params, progress=False)
    assert llm.generate(["My favourite", "Another", "A third"], params, progress=False)[0] == first[0]


async def test_it_needs_no_event_loop_and_minds_none(llm: LLM) -> None:
    """A notebook runs cells inside a loop."""
    assert llm.generate("Water", GREEDY, progress=False)


def test_what_cannot_be_served_is_refused(llm: LLM) -> None:
    """With the numbers, and without harm."""
    with pytest.raises(InvalidRequest, match="expected at most 256 together"):
        llm.generate("word " * 300, GREEDY, progress=False)
    assert llm.generate("Water", GREEDY, progress=False)


def run_example(name: str, *arguments: str) -> str:
    """What a script of ours prints."""
    example = Path(__file__).parents[2] / "examples" / name
    command = [sys.executable, str(example), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_runs() -> None:
    """examples/research.py prints perplexities, and a scrambled sentence has the highest."""
    out = run_example("research.py")
    perplexities = [float(line.split()[0]) for line in out.splitlines()[:3]]
    assert perplexities[2] == max(perplexities) and min(perplexities) > 1
    assert "Paris" in out


def test_the_perplexity_of_a_file(tmp_path: Path) -> None:
    """English has a lower one than the same words in another order."""
    words = (Path(__file__).parents[2] / "docs" / "tracing.md").read_text().split()
    found = []
    for name, text in (("plain", words), ("sorted", sorted(words))):
        (tmp_path / name).write_text(" ".join(text))
        out = run_example("perplexity.py", str(tmp_path / name))
        ((count, perplexity),) = re.findall(r"(\d+) tokens, perplexity (.*)\n", out)
        assert int(count) > 700
        found.append(float(perplexity))
    assert 1 < found[0] < found[1]


def test_a_probe_finds_the_layer_that_knows() -> None:
    """Chance after the first layer, nearly always right in the middle."""
    found = re.findall(r"after layer +(-?\d+): accuracy ([\d.]+)", run_example("linear_probe.py"))
    accuracies = {int(layer): float(accuracy) for layer, accuracy in found}
    assert accuracies[0] < 0.7 and accuracies[14] > 0.9


def test_a_trained_model_is_asked_again(tmp_path: Path) -> None:
    """The loss falls, and an engine reads the checkpoint that Orbax wrote."""
    out = run_example("train.py", str(tmp_path / "trained"), "12")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
    assert losses[-1] < 0.1 * losses[0]
    assert "trained: Arr, the capital of France be Paris" in out


def test_silence_samples_as_the_checkpoint_recommends(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field of the recommendation is one of the request's."""
    stated = dict(temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2)
    monkeypatch.setattr(llm.texts, "defaults", replace(llm.texts.defaults, **stated))
    params = llm.texts.requests([[1]], None)[0].params
    assert {name: getattr(params, name) for name in stated} == stated
    assert llm.texts.requests([[1]], GREEDY)[0].params.repetition_penalty == 1.0
