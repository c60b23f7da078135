"""A tiny model that is served, asked in every way at once, and known to the last logit.

`Asker.ask` sends each request twice: whole and alone, then streamed and in company; both must say the same.
`Asker.logits` is what transformers computes on the same weights.
"""

import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer

from distaff.checkpoints.tokenizer import load_tokenizer

from ..checkpoints.making import CHATML, byte_level, edit_json, make_model, save_folder

MARK = "</think>"
THINKS = "{% if add_generation_prompt and thinks %}{{ '<think>\n' }}{% endif %}"
TEMPLATE = "{% if style %}{{ style }}{% endif %}" + CHATML + THINKS
RENDERING = ("messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")
Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What was answered; `ids` of the first choice, where log-probabilities were asked for."""

    choices: list[dict[str, Any]]
    usage: dict[str, Any]
    ids: list[int]

    @property
    def text(self) -> str:
        return self.choices[0]["message"]["content"] or ""

    @property
    def finish(self) -> str:
        return self.choices[0]["finish_reason"]

    @property
    def entries(self) -> list[dict[str, Any]]:
        return self.choices[0]["logprobs"]["content"]


def tiny_model() -> transformers.PreTrainedModel:
    """The same each time; the last id is the mark's."""
    return make_model(vocab_size=byte_level().get_vocab_size() + 1, max_position_embeddings=1024)


def make_folder(folder: Path) -> Path:
    """A random Llama of a byte-level vocabulary, whose template heeds `style` and `thinks`."""
    save_folder(folder, tiny_model())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(MARK, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    edit_json(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    return folder


class Asker:
    """One server, and the same model in transformers."""

    def __init__(self, url: str, folder: Path) -> None:
        self._http = httpx.Client(base_url=url, timeout=20)
        self._model = tiny_model()
        self.text = load_tokenizer(folder)
        self.size = self._model.config.vocab_size
        names = {self.text.token_name(id): id for id in range(self.size)}
        data = {self.text.token_bytes(id): id for id in range(self.size)}
        data = {key: id for key, id in data.items() if key is not None}
        texts = {key.decode(errors="backslashreplace"): id for key, id in data.items()}
        self._ids: dict[Any, int] = {**names, **texts, **data}
        self._company: deque[Body] = deque([{"messages": [{"role": "user", "content": "a"}]}], maxlen=2)
        self._pool = ThreadPoolExecutor(3)

    def close(self) -> None:
        self._pool.shutdown()
        self._http.close()

    def ask(self, body: Body) -> Answer:
        """Asks; streamed and in company the answer is the same."""
        body = {"model": "tgi"} | body
        whole = self.post(body)
        others = [self._pool.submit(self.post, {"model": "tgi"} | other) for other in self._company]
        streamed = fold(self.stream(body))
        assert [other.result() for other in others]
        assert streamed == [comparable(choice) for choice in whole["choices"]]
        self._company.append(body)
        entries = (whole["choices"][0]["logprobs"] or {"content": []})["content"]
        return Answer(whole["choices"], whole["usage"], [self._id(entry) for entry in entries])

    def post(self, body: Body) -> dict[str, Any]:
        reply = self._http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def stream(self, body: Body) -> list[dict[str, Any]]:
        """The chunks."""
        text = self._http.post("/v1/chat/completions", json=body | {"stream": True}).text
        *events, done, nothing = text.split("\n\n")
        assert (done, nothing) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def refused(self, body: Body) -> str:
        """The code of the error."""
        return self._http.post("/v1/chat/completions", json=body).json()["error"]["code"]

    def prompt(self, body: Body) -> list[int]:
        """The ids that the conversation comes to."""
        asked = {name: body[name] for name in RENDERING if name in body}
        return self._http.post("/tokenize", json=asked).json()["tokens"]

    def metric(self, name: str) -> float:
        """The engine's sample of `/metrics`."""
        lines = self._http.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}{{"))

    def logits(self, body: Body, ids: Sequence[int]) -> np.ndarray:
        """Before each of some ids that follow the prompt: f64 `[T, V]`."""
        prompt = self.prompt(body)
        with torch.no_grad():
            logits = self._model(torch.tensor([[*prompt, *ids]])).logits[0]
        return logits[len(prompt) - 1 : -1].double().numpy()

    def _id(self, entry: dict[str, Any]) -> int:
        """What is not part of the content has no bytes; special tokens have those of their names where
        they are shown."""
        data = bytes(entry["bytes"] or ())
        return self._ids[data if data in self._ids else entry["token"]]


def comparable(choice: dict[str, Any]) -> tuple[Any, ...]:
    """What must not depend on how a choice is delivered: all but the ids of calls."""
    message = choice["message"]
    calls = [
        (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())
    ]
    entries = choice["logprobs"]["content"] if choice["logprobs"] else []
    return message["content"] or "", message.get("reasoning", ""), calls, choice["finish_reason"], entries


def fold(chunks: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The choices of a stream."""
    folded: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        empty = {"text": "", "reasoning": "", "calls": [], "finish": None, "entries": []}
        one = folded.setdefault(choice["index"], empty)
        delta, entries = choice["delta"], choice["logprobs"]
        one["text"] += delta.get("content") or ""
        one["reasoning"] += delta.get("reasoning", "")
        one["finish"] = choice["finish_reason"] or one["finish"]
        if entries is not None:
            one["entries"] += entries["content"]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                one["calls"].append([call["function"]["name"], ""])
            one["calls"][call["index"]][1] += call["function"]["arguments"]
    return [
        (
            one["text"],
            one["reasoning"],
            [tuple(call) for call in one["calls"]],
            one["finish"],
            one["entries"],
        )
        for _, one in sorted(folded.items())
    ]
