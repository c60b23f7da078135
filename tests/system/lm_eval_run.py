"""lm-eval over a few tasks of our own, in a process of its own: each line of its input is a backend to ask.

A line is JSON, the backend's name and its options. It is answered by a line after `result: `, a JSON object:
for each task, each item's answers in order.
"""

import json
import string
import sys
from typing import Any

import datasets
import lm_eval

FACTS = [
    {"text": "The quick brown fox jumps over the lazy", "choices": [" dog", " cat's", " 12345", " über"]},
    {"text": "Straßenbahn über die", "choices": [" Brücke", " Br", " café; 世界", " def f(x):"]},
    {"text": "def f(x):\n    return", "choices": [" x  + 1", " y", "\n", "🙂"]},
    {"text": "", "choices": ["It's 2024", "the dog", "один"]},
    {"text": "один два", "choices": [" три", " два", " words.", " 🙂🙂"]},
    {"text": "The dog's", "choices": [" 12345 words.", " words", " w", " 6", " naïve"]},
    *(
        {"text": text, "choices": [*string.ascii_letters, *"0123456789;: "]}
        for text in ("The", "words.", "x = ")
    ),
]
TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * n + "It's 2024, and we're here!" for n in (0, 2, 9)
]


def rows(records: list[dict[str, Any]]) -> Any:
    """A data set that is nowhere but here."""
    data = datasets.Dataset.from_list(records)
    return lambda **_: {"test": data}


def task(name: str, records: list[dict[str, Any]], **config: Any) -> dict[str, Any]:
    return {"task": name, "custom_dataset": rows(records), "test_split": "test", **config}


TASKS = [
    task(
        "choices",
        [fact | {"answer": 0} for fact in FACTS],
        output_type="multiple_choice",
        doc_to_text="{{text}}",
        doc_to_choice="{{choices}}",
        doc_to_target="answer",
        target_delimiter="",
        metric_list=[{"metric": "acc"}],
    ),
    task(
        "rolling",
        [{"text": text} for text in TEXTS],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}],
    ),
    task(
        "generation",
        [{"text": fact["text"] or "x", "answer": ""} for fact in FACTS],
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="{{answer}}",
        generation_kwargs={
            "until": ["\n\n", "q", "J", "Z", "0", "<|im_end|>", "Question:"],
            "max_gen_toks": 24,
            "do_sample": False,
        },
        metric_list=[{"metric": "exact_match"}],
    ),
]


def evaluate(backend: str, options: dict[str, Any]) -> dict[str, list[Any]]:
    """Each task's items, in order."""
    found = lm_eval.simple_evaluate(
        backend, model_args=options, tasks=TASKS, bootstrap_iters=0, log_samples=True
    )
    assert found is not None
    return {
        name: [sample["resps"] for sample in sorted(each, key=lambda sample: sample["doc_id"])]
        for name, each in found["samples"].items()
    }


if __name__ == "__main__":
    for line in sys.stdin:
        print("result: " + json.dumps(evaluate(*json.loads(line))), flush=True)
