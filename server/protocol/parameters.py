"""What the routes know of every parameter: honoured, checked and without effect, or refused.

Nothing is ignored in silence. A parameter that would change the answer and is not honoured is refused with
`unsupported_parameter`, unless its value asks for what happens anyway.
"""

from dataclasses import dataclass
from typing import Any

from ..errors import BadRequest
from .fields import Fields, check_length, unknown, unsupported, wrong_type

_SAMPLING = (
    "max_tokens max_new_tokens temperature top_p top_k min_p seed frequency_penalty presence_penalty "
    "repetition_penalty logit_bias stop stop_token_ids min_tokens ignore_eos allowed_token_ids n logprobs "
    "include_stop_str_in_output skip_special_tokens cache_salt stream stream_options model"
).split()

_REFUSED: dict[str, tuple[Any, ...]] = {
    "functions": (),
    "function_call": ("none",),
    "prediction": (),
    "moderation": (),
    "web_search_options": (),
    "modalities": (["text"],),
    "audio": (),
    "suffix": (),
    "length_penalty": (1, 1.0),
    "use_beam_search": (False,),
    "bad_words": ([],),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "chat_template": (),
    "documents": ([],),
    "prompt_embeds": (),
    "mm_processor_kwargs": (),
    "lora": (),
    "logits_processors": ([],),
    "grammar": (),
    "guided_json_object": (False,),
    "guided_whitespace_pattern": (),
    "structural_tag": (),
    "regex": (),
    "ebnf": (),
    "regex_pattern": (),
    "grammar_string": (),
    "priority": (0,),
}
"""Refused everywhere, each with the values that change nothing and so pass. Null always passes."""

_UNHEARD = (
    "user safety_identifier prompt_cache_key prompt_cache_options prompt_cache_retention metadata store "
    "verbosity service_tier reasoning_effort"
).split()


@dataclass(frozen=True, slots=True)
class Parameters:
    """Every parameter of one route.

    Attributes:
      honoured: they do what they say. checked: their types are; they have no effect.
      refused: with the values that change nothing and so pass.
    """

    honoured: frozenset[str]
    checked: frozenset[str]
    refused: dict[str, tuple[Any, ...]]

    @property
    def known(self) -> frozenset[str]:
        """All of them."""
        return self.honoured | self.checked | self.refused.keys()

    def unknown_keys(self, fields: Fields, *, strict: bool) -> tuple[str, ...]:
        """The keys that are no parameter of this route, in the order of the body.

        Raises:
          BadRequest: there is one, and `strict` refuses it.
        """
        known = self.known
        found = tuple(name for name in fields.values if name not in known)
        if strict and found:
            raise self.unknown_parameter(found[0])
        return found

    def unknown_parameter(self, name: str) -> BadRequest:
        """The refusal of an unknown key, with the nearest known one where it is two edits away or less."""
        near = [_nearness(name, known) for known in self.known] if len(name) <= 64 else []
        distance, _, nearest = min(near, default=(3, True, ""))
        return BadRequest(*unknown(name, nearest if distance <= 2 else None))

    def refuse_unsupported(self, fields: Fields) -> None:
        """Raises BadRequest for the first parameter that is understood but not served."""
        for name, neutral in self.refused.items():
            value = fields.get(name)
            if value is not None and not any(type(value) is type(v) and value == v for v in neutral):
                raise unsupported(name)


def _route(honoured: str, refused: dict[str, tuple[Any, ...]]) -> Parameters:
    names = frozenset([*_SAMPLING, *honoured.split()])
    return Parameters(names, frozenset(_UNHEARD), {**_REFUSED, **refused})


CHAT = _route(
    "messages max_completion_tokens top_logprobs response_format tools tool_choice parallel_tool_calls "
    "add_generation_prompt continue_final_message chat_template_kwargs guided_json guided_regex "
    "guided_choice guided_grammar json_schema structured_outputs",
    {"best_of": (1,), "echo": (False,), "add_special_tokens": (False,)},
)

COMPLETIONS = _route(
    "prompt best_of echo add_special_tokens response_format guided_json guided_regex guided_choice "
    "guided_grammar json_schema structured_outputs",
    {"max_completion_tokens": ()},
)

MOVED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "max_new_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}
"""What the Responses API has elsewhere."""


def _responses(honoured: str, checked: str, refused: dict[str, tuple[Any, ...]]) -> Parameters:
    """What the others have too, but for what is elsewhere here, means less or is refused."""
    refused = {**_REFUSED, **dict.fromkeys(MOVED, ()), **refused}
    less = frozenset([*_UNHEARD, *checked.split()]) - refused.keys()
    return Parameters(frozenset([*_SAMPLING, *honoured.split()]) - refused.keys() - less, less, refused)


RESPONSES = _responses(
    "input instructions max_output_tokens text include tools tool_choice parallel_tool_calls top_logprobs "
    "chat_template_kwargs guided_json guided_regex guided_choice guided_grammar json_schema "
    "structured_outputs",
    "reasoning max_tool_calls stream_options",
    {
        "previous_response_id": (),
        "conversation": (),
        "prompt": (),
        "background": (False,),
        "truncation": ("disabled",),
        "context_management": ([],),
        "n": (1,),
        "logprobs": (False,),
    },
)

EMBEDDINGS = Parameters(
    frozenset(("model", "input", "encoding_format")),
    frozenset(("user",)),
    {"dimensions": (), "truncate_prompt_tokens": ()},
)

_TIERS = ("auto", "default", "flex", "scale", "priority", "fast")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
VERBOSITIES = ("low", "medium", "high")
_LONGEST_LABEL = 512


def check_identity(fields: Fields) -> None:
    """`user` and its kin. Raises BadRequest."""
    for name in ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"):
        fields.string(name, _LONGEST_LABEL)
    fields.object("prompt_cache_options")
    fields.one_of("verbosity", VERBOSITIES)
    fields.one_of("reasoning_effort", EFFORTS)


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
