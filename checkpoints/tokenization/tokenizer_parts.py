"""The parts of a tokenizer from any source: pipeline, named tokens, template and end ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenizers import Tokenizer, processors


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """A tokenizer as read from a folder or a GGUF.

    Attributes:
      tokenizer: text to ids. special: texts by name (`bos_token`, `eos_token`, `unk_token`, `pad_token`).
      chat_template: its Jinja source; None if the model has none.
      eos_ids: every id that ends a reply.
      named_templates: further templates by name; `tool_use` is for requests with tools.
    """

    tokenizer: Tokenizer
    special: dict[str, str]
    chat_template: str | None
    eos_ids: tuple[int, ...]
    named_templates: Mapping[str, str] = field(default_factory=dict)


def surround(tokenizer: Tokenizer, first: str | None, last: str | None) -> None:
    """Makes `encode` begin with the token `first` and end with `last`, instead of the previous rule."""
    names = [name for name in (first, last) if name is not None]
    parts = [*([first] if first else []), "$A", *([last] if last else [])]
    ids = [(name, tokenizer.token_to_id(name)) for name in dict.fromkeys(names)]
    tokenizer.post_processor = processors.TemplateProcessing(single=parts, special_tokens=ids)
