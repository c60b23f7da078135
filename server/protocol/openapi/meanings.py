"""The meaning of each parameter in a few words: for `/v1/capabilities` and the tables of docs/api.md."""

import json
from typing import Any

from .. import sampling
from ..anthropic.parameters import COUNT, MESSAGE
from ..openai.parameters import BATCHES, CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Parameters

ROUTES: dict[str, Parameters] = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGE,
    "/v1/messages/count_tokens": COUNT,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/batches": BATCHES,
}

MEANINGS = {
    **sampling.MEANINGS,
    "model": "the served id or an alias; another is answered 404, or served with `--any-model`",
    "messages": "roles system, developer, user, assistant, tool, function; strings or text parts",
    "prompt": "a string, token ids, or a list of either; silence is an empty text",
    "input": "a string, token ids, or a list of either",
    "encoding_format": "`float` or `base64` (little-endian float32)",
    "max_tokens": "most tokens to generate; fewer if the context is full before",
    "max_completion_tokens": "the same; wins over `max_tokens`",
    "max_new_tokens": "the same, in TGI's word",
    "best_of": "generates so many and answers the `n` likeliest; not streamed",
    "echo": "the prompt begins the text; with `logprobs` its tokens are scored",
    "logprobs": "of the model's own distribution, before temperature and penalties",
    "top_logprobs": "0 to 20 alternatives for each token; needs `logprobs`",
    "add_special_tokens": "false takes a string prompt without the beginning token",
    "priority": "lower is served earlier (vLLM's); 0, or what the API key sets, which is also the best",
    "stream": "server-sent events instead of one object",
    "stream_options": "`include_usage`, `continuous_usage_stats`; `include_obfuscation` changes nothing",
    "response_format": "`text`, `json_object` (with or without a `schema`), `json_schema`: held to it",
    "json_schema": "a JSON schema, as an object or a string (llama.cpp)",
    "guided_json": "a JSON schema, as an object or a string",
    "guided_regex": "a regular expression (Rust's syntax)",
    "guided_choice": "one of a list of strings",
    "guided_grammar": "a grammar in Lark or GBNF",
    "structured_outputs": "an object with one of `json`, `regex`, `choice`, `grammar`, `json_object`",
    "tools": "functions that may be called; an empty list is none, and an error with `--strict`",
    "tool_choice": "`none`, `auto`, `required`, a function, or `allowed_tools`",
    "parallel_tool_calls": "false: one call at most",
    "add_generation_prompt": "false does not open an answer's turn",
    "continue_final_message": "the last message is continued instead of answered",
    "chat_template_kwargs": "variables that the model's template reads; others are refused",
    "user": "a label", "safety_identifier": "a label",
    "prompt_cache_key": "names a conversation: the same engine, pages kept for 5 minutes",
    "prompt_cache_options": "an object",
    "prompt_cache_retention": "keeps the conversation's pages, with `24h` for a day, else for 5 minutes",
    "metadata": "at most 16 pairs", "store": "nothing is ever stored", "verbosity": "low, medium, high",
    "request_id": "a label; answers have ids of their own", "rid": "a label, likewise",
    "id_slot": "which slot is free is the scheduler's business", "cache_prompt": "prompts are always cached",
    "guided_decoding_backend": "there is one",
    "include_reasoning": "false leaves reasoning out of the answer; it is still counted",
    "separate_reasoning": "false leaves reasoning, with its marks, in the content",
    "max_reasoning_tokens": "most tokens of reasoning; then the answer begins; 0 is an effort of `none`",
    "thinking_token_budget": "the same, in vLLM's words",
    "reasoning_format": "`none` does the same; `auto` and `deepseek` separate it",
    "parse_tool_calls": "calls are always separated",
    "service_tier": "every tier is `default`",
    "reasoning_effort": "`none`: no reasoning; others are for templates that read them",
}  # fmt: skip
"""Of the parameters that are honoured or checked. Those of sampling are declared with `Sampling`."""

_NOT_SPLIT = "a completion's text has its reasoning in it"
_MESSAGE_MEANINGS = {
    "messages": "roles user, assistant, system; text, tool calls, their results, thinking; no images",
    "system": "a string or text blocks; billing headers and marks of tokens left are removed",
    "tools": "with `input_schema`; those of Anthropic's own types are left out",
    "tool_choice": "`auto`, `any`, `tool`, `none`; `disable_parallel_tool_use`",
    "thinking": "`disabled` turns it off, `budget_tokens` limits it, `display: omitted` leaves it out",
    "context_management": "an object; nothing is removed from the conversation",
    "cache_control": "anywhere: pages are kept for 5 minutes, with a `ttl` of `1h` for an hour",
    "speed": "standard, fast",
}
OWN_MEANINGS = {
    "/v1/messages": _MESSAGE_MEANINGS
    | {
        "max_tokens": "most tokens to generate; fewer if the context is full before",
        "stop_sequences": "up to 64 strings that end the answer, without them",
        "temperature": "0 to 1; 0 takes the likeliest token; silent: what the model recommends, else 1",
        "top_k": "so many of the likeliest tokens; 0 for no limit",
        "output_config": "`format` holds the answer to a JSON schema; `effort` is checked",
        "stream": "named events instead of one object",
        "metadata": "an object; `user_id` is a label",
        "service_tier": "auto, standard_only",
        "inference_geo": "a string",
        "diagnostics": "an object",
    },
    "/v1/messages/count_tokens": _MESSAGE_MEANINGS | {"output_config": "`format` and `effort` are checked"},
    "/v1/completions": dict.fromkeys(
        ("include_reasoning", "separate_reasoning", "reasoning_format"), _NOT_SPLIT
    )
    | {
        "max_tokens": "most tokens to generate; prompt and completion together must fit the context",
        "reasoning_effort": "none … max",
    },
    "/v1/responses": {
        "input": "a string, or items: messages, calls of tools, what they returned, reasoning",
        "previous_response_id": "continues a stored response, with `--store-responses`",
        "store": "`false` does not store the response, with `--store-responses`",
        "instructions": "a system message before all others",
        "max_output_tokens": "most tokens to generate; fewer if the context is full before",
        "text": "`format` holds the answer to a schema; `verbosity` is checked",
        "include": "`message.output_text.logprobs`, `reasoning.encrypted_content`; the others change nothing",
        "top_logprobs": "0 to 20 alternatives for each token",
        "tool_choice": "`none`, `auto`, `required`, a function, a free-form tool, or `allowed_tools`",
        "tools": "functions, free-form tools (`custom`) and namespaces; others are left out",
        "max_tool_calls": "is of tools that OpenAI runs",
        "reasoning": "`effort`, as `reasoning_effort` in a chat; `summary` is checked, and none is made",
        "stream": "named events instead of one object",
        "stream_options": "`include_obfuscation`",
    },
    "/v1/batches": {
        "input_file_id": "a file of the same key, with the purpose `batch`",
        "endpoint": "the `url` of all its lines; Anthropic's messages as well as OpenAI's routes",
        "completion_window": "`24h`, or another number of hours up to `999h`; then the batch expires",
        "metadata": "at most 16 pairs, returned with the batch",
    },
}
"""For parameters of one route only, or with another meaning there."""


def describe(route: str) -> list[dict[str, Any]]:
    """Every parameter of a route, by name: its status, and the accepted values of a refused one."""
    parameters, meanings = ROUTES[route], MEANINGS | OWN_MEANINGS.get(route, {})
    entries = []
    for name in sorted(parameters.kinds):
        if name in parameters.refused:
            accepted = list(parameters.refused[name].neutral)
            entries.append({"name": name, "status": "refused", "accepted": accepted})
        else:
            status = "honoured" if name in parameters.honoured else "no effect"
            entries.append({"name": name, "status": status, "meaning": meanings[name]})
    return entries


def table(route: str) -> str:
    """The same as Markdown: a table, and below it the refused parameters."""
    rows, refused = ["| parameter | here | |", "|---|---|---|"], []
    for entry in describe(route):
        if entry["status"] == "refused":
            refused.append(f"`{entry['name']}`{accepted(entry['accepted'])}")
        else:
            rows.append(f"| `{entry['name']}` | {entry['status']} | {entry['meaning']} |")
    return "\n".join(rows) + f"\n\nRefused: {', '.join(refused)}.\n"


def accepted(values: list[Any]) -> str:
    """The accepted values of a refused parameter except null, in parentheses; empty if there are none."""
    shown = " or ".join(f"`{json.dumps(value)}`" for value in values)
    return f" (except {shown})" if shown else ""
