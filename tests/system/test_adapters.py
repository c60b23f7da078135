"""LoRA adapters of PEFT in an engine, against PEFT and transformers; the bundled model with two of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from openai import OpenAI

from distaff.checkpoints import load_model, save_model
from distaff.checkpoints.errors import CheckpointError
from distaff.runtime import LLM, SamplingParams
from distaff.runtime.request import InvalidRequest

from ..checkpoints.making import make_model, save_folder
from ..checkpoints.test_adapters import ALL, ATTENTION, make_adapter
from .conftest import running

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

GREEDY = SamplingParams(max_tokens=10, temperature=0, ignore_eos=True, logprobs=0)
PROMPTS = ["The quick brown fox", "over the lazy dog. It's 2024, and", "def f(x):"]
TOLERANCE = 1e-3


class Adapted:
    """A model with adapters, ours and PEFT's."""

    def __init__(self, folder: Path, family: str) -> None:
        self.folder = folder
        model = save_folder(folder / "model", make_model(family))
        targets = {"all": ALL if family == "llama" else [*ATTENTION, "lm_head"], "few": ["q_proj", "v_proj"]}
        self.theirs = {}
        self.llm = LLM(str(model), dtype="float32", slots=4, max_adapters=2, max_adapter_rank=8)
        for name, maps in targets.items():
            for seed in (1, 2):
                own = folder / f"{name} {seed}"
                adapted = make_adapter(model, own, seed, target_modules=maps, r=4 if seed == 1 else 8)
                self.theirs[own.name] = adapted.eval()
                self.llm.add_adapter(own.name, own)
        self.theirs[""] = transformers.AutoModelForCausalLM.from_pretrained(model).eval()


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapted]:
    before = jax.config.jax_compilation_cache_dir
    adapted = Adapted(tmp_path_factory.mktemp(request.param), request.param)
    jax.config.update("jax_compilation_cache_dir", before)
    with adapted.llm:
        yield adapted


def test_tokens_are_those_of_peft(adapted: Adapted) -> None:
    """Greedy tokens and log-probabilities, with each adapter and without, alone and among all others."""
    llm = adapted.llm
    alone = {name: llm.generate(PROMPTS, GREEDY, adapter=name, progress=False) for name in adapted.theirs}
    for name, completions in alone.items():
        for prompt, completion in zip(PROMPTS, completions, strict=True):
            ids = llm.tokenizer.encode(prompt)
            with torch.no_grad():
                logits = adapted.theirs[name](torch.tensor([[*ids, *completion.tokens]])).logits[0]
            expected = torch.log_softmax(logits[len(ids) - 1 : -1], -1).numpy()
            assert expected.argmax(-1).tolist() == list(completion.tokens)
            chosen = [entry.chosen for entry in completion.logprobs]
            np.testing.assert_allclose(chosen, expected.max(-1), rtol=0, atol=TOLERANCE * 10)
    requests = [
        request
        for name in adapted.theirs
        for request in llm.texts.requests([llm.texts.encode(prompt) for prompt in PROMPTS], GREEDY, name)
    ]
    events = llm.engine.generate(requests)
    together = [llm.texts.completion(*each).tokens for each in zip(requests, events, strict=True)]
    assert together == [completion.tokens for completions in alone.values() for completion in completions]
    assert len({tuple(each[0].tokens) for each in alone.values()}) == len(adapted.theirs)
    assert llm.engine.stats.compilations == 0


def test_names_that_are_not_loaded(adapted: Adapted, tmp_path: Path) -> None:
    """They are refused, as are folders that are none."""
    with pytest.raises(InvalidRequest, match=r"adapter 'other' is not loaded"):
        adapted.llm.generate("fox", GREEDY, adapter="other", progress=False)
    with pytest.raises(CheckpointError, match=r"adapter_config.json: missing"):
        adapted.llm.add_adapter("empty", tmp_path)


CONVERSATION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWERS = {"pirate": "Arr, it be Paris, matey!", "robot": "BEEP. CAPITAL = PARIS. BEEP."}


def train(model: transformers.PreTrainedModel, tokens: list[int], first: int, folder: Path) -> None:
    """Teaches an adapter one answer, in a few steps."""
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=8, lora_alpha=16, target_modules=ATTENTION, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, settings)
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=3e-3)
    ids = torch.tensor([tokens])
    labels = ids.clone()
    labels[0, :first] = -100
    for _ in range(15):
        loss = adapted(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapted.save_pretrained(folder)
    adapted.unload()


def test_the_bundled_model_speaks_in_three_ways(tmp_path: Path) -> None:
    """The base and two trained adapters answer the same question in one batch, each in its own way."""
    save_model(load_model("smollm2"), tmp_path / "model", "smollm2")
    before = jax.config.jax_compilation_cache_dir
    with LLM("smollm2", quantize="none", slots=4, context=256, max_adapters=2, max_adapter_rank=8) as llm:
        jax.config.update("jax_compilation_cache_dir", before)
        prompt = llm.texts.encode(CONVERSATION)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        for name, answer in ANSWERS.items():
            tokens = [*prompt, *llm.tokenizer.encode(answer + "<|im_end|>")]
            train(model, tokens, len(prompt), tmp_path / name)
            llm.add_adapter(name, tmp_path / name)
        requests = [
            llm.texts.requests([prompt], SamplingParams(max_tokens=30, temperature=0), name)[0]
            for name in ("", *ANSWERS)
        ]
        events = llm.engine.generate(requests)
        texts = [llm.texts.completion(*each).text for each in zip(requests, events, strict=True)]
    assert texts == ["The capital of France is Paris.", *ANSWERS.values()]


def test_a_server_with_adapters(adapted: Adapted) -> None:
    """The base and two adapters stream side by side as they answer alone in a script, also after a crash."""
    if "mixtral" in str(adapted.folder):
        pytest.skip("the same with another model")
    params = SamplingParams(max_tokens=12, temperature=0)
    expected = {
        name: adapted.llm.generate(PROMPTS[0], params, adapter=name, progress=False)[0].text
        for name in ("", "all 1", "few 2")
    }
    folders = [f"--adapter={name}={adapted.folder / name}" for name in ("all 1", "few 2")]
    sizes = ("--slots", "4", "--dtype", "float32", "--max-adapters", "1", "--alias", "base")
    with running(str(adapted.folder / "model"), *folders, *sizes) as server:
        server.wait_ready()

        def ask(name: str) -> str:
            with OpenAI(base_url=f"{server.url}/v1/", api_key="-") as client:
                stream = client.completions.create(
                    model=name or "base", prompt=PROMPTS[0], max_tokens=12, temperature=0, stream=True
                )
                return "".join(chunk.choices[0].text for chunk in stream if chunk.choices)

        def side_by_side() -> dict[str, str]:
            with ThreadPoolExecutor() as pool:
                return dict(zip(expected, pool.map(ask, expected), strict=True))

        assert side_by_side() == expected
        server.engine().kill()
        assert side_by_side() == expected
    with running(str(adapted.folder / "model"), f"--adapter=x={adapted.folder / 'model'}") as server:
        out, _ = server.process.communicate(timeout=60)
        assert server.process.returncode == 65 and "adapter_config.json: missing" in out
