"""What the chat route knows of every parameter: honoured, checked and without effect, or refused.

Nothing is ignored in silence. A parameter that would change the answer and is not honoured is refused with
`unsupported_parameter`, unless its value asks for what happens anyway.
"""

from typing import Any

from ..errors import BadRequest
from .fields import Fields, check_array, check_length, unknown, unsupported, wrong_type, wrong_value

HONOURED = frozenset(
    "model messages stream stream_options max_tokens max_completion_tokens max_new_tokens temperature top_p "
    "top_k min_p seed frequency_penalty presence_penalty stop n logprobs top_logprobs ignore_eos "
    "cache_salt".split()
)

CHECKED = frozenset(
    "user safety_identifier prompt_cache_key prompt_cache_options prompt_cache_retention metadata store "
    "verbosity service_tier reasoning_effort".split()
)

TOOL_PARAMETERS = frozenset(("tools", "tool_choice", "parallel_tool_calls"))

REFUSED: dict[str, tuple[Any, ...]] = {
    "functions": (),
    "function_call": ("none",),
    "logit_bias": ({},),
    "prediction": (),
    "moderation": (),
    "web_search_options": (),
    "modalities": (["text"],),
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "suffix": (),
    "min_tokens": (0,),
    "repetition_penalty": (1, 1.0),
    "length_penalty": (1, 1.0),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "add_special_tokens": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "prompt_embeds": (),
    "mm_processor_kwargs": (),
    "lora": (),
    "logits_processors": ([],),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "grammar": (),
    "priority": (0,),
}
"""Refused parameters, each with the values that change nothing and so pass. Null always passes."""

KNOWN = HONOURED | CHECKED | TOOL_PARAMETERS | REFUSED.keys() | {"response_format"}

_TIERS = ("auto", "default", "flex", "scale", "priority", "fast")
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_LONGEST_LABEL = 512


def unknown_keys(fields: Fields) -> list[str]:
    """The keys that are no parameter of this route, in the order of the body."""
    return [name for name in fields.values if name not in KNOWN]


def unknown_parameter(name: str) -> BadRequest:
    """The refusal of an unknown key, with the nearest known one where it is two edits away or less."""
    near = [_nearness(name, known) for known in KNOWN] if len(name) <= 64 else []
    distance, _, nearest = min(near, default=(3, True, ""))
    return BadRequest(*unknown(name, nearest if distance <= 2 else None))


def check_identity(fields: Fields) -> None:
    """`user` and its kin. Raises BadRequest."""
    for name in ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"):
        fields.string(name, _LONGEST_LABEL)
    fields.object("prompt_cache_options")
    fields.one_of("verbosity", ("low", "medium", "high"))
    fields.one_of("reasoning_effort", _EFFORTS)


def check_service_tier(fields: Fields) -> None:
    """`service_tier`: every tier is the default one here. Raises BadRequest."""
    fields.one_of("service_tier", _TIERS)


def check_storage(fields: Fields) -> None:
    """`store` (which never stores) and `metadata`. Raises BadRequest."""
    fields.boolean("store")
    metadata = fields.object("metadata")
    if metadata is None:
        return
    if (size := len(metadata.values)) > 16:
        raise BadRequest(
            "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got "
            f"an object with {size} properties instead.",
            "metadata",
            "object_above_max_properties",
        )
    for name in metadata.values:
        _check_metadata_pair(metadata, name)


def _check_metadata_pair(metadata: Fields, name: str) -> None:
    if len(name) > 64:
        raise BadRequest(
            "Invalid 'metadata': property name too long. Expected a property name with maximum length 64, "
            f"but got a property name with length {len(name)} instead.",
            "metadata",
            "property_name_above_max_length",
        )
    value = metadata.get(name)
    if not isinstance(value, str):
        raise wrong_type(metadata.where(name), "a string", value)
    check_length(metadata.where(name), value, 512)


def check_response_format(fields: Fields) -> None:
    """`response_format` is well-formed. Raises BadRequest."""
    found = fields.object("response_format")
    if found is not None:
        found.require("type")
        found.one_of("type", ("json_object", "json_schema", "text"))


def check_tool_fields(fields: Fields) -> None:
    """`tools` and what depends on them are well-formed. Raises BadRequest."""
    tools = fields.get("tools")
    if tools is not None:
        if not isinstance(tools, list):
            raise wrong_type("tools", "an array of objects", tools)
        check_array("tools", tools, 128)
    choice = fields.get("tool_choice")
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise wrong_value("tool_choice", choice, ("none", "auto", "required"))
    if choice is not None and not isinstance(choice, str | dict):
        raise wrong_type("tool_choice", "one of a string or object", choice)
    fields.boolean("parallel_tool_calls")


def refuse_unsupported(fields: Fields) -> None:
    """Raises BadRequest for the first parameter that is understood but not served."""
    if fields.get("tools") is not None:
        raise unsupported("tools")
    if fields.get("tool_choice") not in (None, "none"):
        raise _needs_tools("tool_choice")
    if fields.get("parallel_tool_calls") is not None:
        raise _needs_tools("parallel_tool_calls")
    for name, neutral in REFUSED.items():
        value = fields.get(name)
        if value is not None and not any(type(value) is type(v) and value == v for v in neutral):
            raise unsupported(name)
    if (fields.get("response_format") or {}).get("type", "text") != "text":
        raise unsupported("response_format")


def _needs_tools(name: str) -> BadRequest:
    message = f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are specified."
    return BadRequest(message, name)


def _nearness(name: str, known: str) -> tuple[int, bool, str]:
    """Orders candidates: few edits first, then words that were only broken off."""
    return _edits(name, known), not known.startswith(name), known


def _edits(a: str, b: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
