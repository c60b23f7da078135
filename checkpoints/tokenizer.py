"""Text to ids and back, and conversations to ids: the only tokenizer that the server and scripts use.

Imports no jax, and imports transformers only when a conversation is rendered. The one idea: only the template
puts special tokens into a prompt. What a user typed is text, even if it looks like a special token.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .errors import CheckpointError
from .files import write_whole
from .gguf.gguf_header import read_gguf_header
from .gguf.gguf_tokenizer import read_gguf_tokenizer
from .store.manifest import MANIFEST_FILE, read_manifest
from .tokenization.chat_template import ChatTemplate, Message
from .tokenization.chat_template import TemplateError as TemplateError
from .tokenization.detokenizer import Detokenizer as Detokenizer
from .tokenization.detokenizer import TokenBytes
from .tokenization.special_tokens import SpecialTokenEscaper, encode_text
from .tokenization.tokenizer_folder import (
    CONFIG_FILE,
    TEMPLATE_FILE,
    TEMPLATE_FOLDER,
    TOKENIZER_FILE,
    read_template_file,
    read_tokenizer_folder,
)
from .tokenization.tokenizer_parts import TokenizerParts

_TOOL_USE = "tool_use"

MakeTemplate = Callable[[str, Mapping[str, str]], ChatTemplate]
"""Makes a template from its Jinja source and the texts of the special tokens."""


class ChatTokenizer:
    """One model's tokenizer and chat template. Safe to share between threads.

    Attributes:
      vocabulary: the number of tokens, including added ones.
      bos_id: the id that begins a text; None if the model has none.
      eos_ids: every id that ends a reply.
      special_ids: ids of special tokens; they have no text.
      token_bytes: `token_bytes(id) -> bytes | None`, a token's exact bytes; None for a special token.
    """

    def __init__(self, parts: TokenizerParts, make_template: MakeTemplate = ChatTemplate) -> None:
        """Makes a tokenizer from its parts; `make_template` determines where the chat template is
        rendered."""
        self._parts = parts
        self._tokenizer: Tokenizer = parts.tokenizer
        sources = {**parts.named_templates, "default": parts.chat_template or ""}
        self._templates = {
            name: make_template(source, parts.special)
            for name in ("default", _TOOL_USE)
            if (source := sources.get(name))
        }
        added = self._tokenizer.get_added_tokens_decoder()
        self.vocabulary: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.special_ids: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        self.eos_ids = parts.eos_ids
        bos = parts.special.get("bos_token")
        self.bos_id: int | None = self._tokenizer.token_to_id(bos) if bos is not None else None
        self.token_bytes = TokenBytes(self._tokenizer)

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(self._templates)

    @property
    def chat_template(self) -> str | None:
        """The template's source, if there is one."""
        return self._parts.chat_template

    @property
    def tool_template(self) -> str | None:
        """The source of the template for requests with tools, if there is one."""
        template = self._template(tools=True)
        return template.source if template else None

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The texts of the named tokens that exist: `bos_token`, `eos_token` and so on."""
        return self._parts.special

    @property
    def template_options(self) -> frozenset[str]:
        """Variables that the templates read, in addition to those that every template receives."""
        return frozenset().union(*(template.options for template in self._templates.values()))

    @property
    def knows_tools(self) -> bool:
        """Whether the template for requests with tools has a place for them."""
        return self._knows_tools(given=True)

    @property
    def knows_calls(self) -> bool:
        """The same for the template of requests without tools; their conversation may still have calls."""
        return self._knows_tools(given=False)

    @property
    def start_id(self) -> int:
        """The first id of an empty text: the beginning token, otherwise an end token."""
        return self.bos_id if self.bos_id is not None else min(self.eos_ids, default=0)

    def special_id(self, name: str) -> int | None:
        """The id of the special token of this name, if there is one."""
        token = self._tokenizer.token_to_id(name)
        return token if token in self.special_ids else None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text.

        Args:
          tools: functions that may be called, in OpenAI's form; for templates that support them. With tools
            the template named `tool_use` is used, if there is one.
          continue_final_message: leaves the last message open; needs `add_generation_prompt=False`.
          options: further variables of the template.

        Raises:
          TemplateError: the template refuses the messages, or the model has none.
        """
        template = self._template(bool(tools))
        if template is None:
            found = "; it has one for requests with tools only" if self._templates else ""
            raise TemplateError(f"this model has no chat template{found}; give one, or use plain completions")
        return template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            options=options or {},
        )

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The ids of the rendered prompt, without a beginning token that the template does not add; see
        `render`.

        Special tokens that were typed in a message, a tool or an option are encoded as text.

        Raises:
          TemplateError: the template refuses the messages, or the model has none.
        """
        inputs = {"messages": messages, "tools": tools, "options": options}
        [escaped], escapes = self._escaper.escape([inputs])
        text = self.render(
            escaped["messages"],
            tools=escaped["tools"],
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            options=escaped["options"],
        )
        if not escapes:
            return self.encode(text, add_special_tokens=False)
        return self._escaper.encode(text, escapes)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text. Special tokens in it are recognised, because it is a raw prompt, not a message.

        Args:
          add_special_tokens: add the tokens that begin (and end) a whole text for this model.
        """
        return encode_text(self._tokenizer, text, add_special_tokens=add_special_tokens)

    def token_name(self, token: int) -> str:
        """A token's text in the vocabulary, also of special tokens."""
        name = self._tokenizer.id_to_token(token)
        return f"token_id:{token}" if name is None else name

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a whole sequence, special tokens skipped."""
        whole = self.detokenizer()
        return "".join([whole.push(token) for token in ids]) + whole.flush()

    def detokenizer(self, prompt: Sequence[int] = ()) -> Detokenizer:
        """A new incremental decoder for a reply to `prompt`."""
        return Detokenizer(self.token_bytes, prompt)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json, chat_template.jinja and further templates.

        The end ids belong to generation_config.json, which `GenerationDefaults` writes.
        """
        config = {**self._parts.special, "tokenizer_class": "PreTrainedTokenizerFast"}
        write_whole(folder / TOKENIZER_FILE, self._tokenizer.to_str().encode())
        write_whole(folder / CONFIG_FILE, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
        if self._parts.chat_template is not None:
            write_whole(folder / TEMPLATE_FILE, self._parts.chat_template.encode())
        for name, source in self._parts.named_templates.items():
            (folder / TEMPLATE_FOLDER).mkdir(exist_ok=True)
            write_whole(folder / TEMPLATE_FOLDER / f"{name}.jinja", source.encode())

    def _knows_tools(self, *, given: bool) -> bool:
        template = self._template(given)
        return template is not None and template.knows_tools

    def _template(self, tools: bool) -> ChatTemplate | None:
        """The template for requests with tools, or for those without, chosen as in transformers."""
        default = self._templates.get("default")
        return self._templates.get(_TOOL_USE, default) if tools else default

    @cached_property
    def _escaper(self) -> SpecialTokenEscaper:
        return SpecialTokenEscaper(self._tokenizer)


def load_tokenizer(
    path: Path, chat_template: Path | None = None, make_template: MakeTemplate = ChatTemplate
) -> ChatTokenizer:
    """The tokenizer of a Hugging Face folder, a store or a GGUF file.

    Args:
      chat_template: a Jinja file that replaces the model's own templates.
      make_template: determines where templates are rendered; by default in this process, without limits.

    Raises:
      CheckpointError: missing, damaged, or of a kind that cannot be built exactly.
    """
    if (path / MANIFEST_FILE).exists():
        read_manifest(path).verify(path)
    if path.is_dir():
        parts = read_tokenizer_folder(path)
    elif path.is_file():
        parts = read_gguf_tokenizer(path, read_gguf_header(path).metadata)
    else:
        raise CheckpointError(f"{path}: missing; expected a model folder or a GGUF file")
    if chat_template is not None:
        template = read_template_file(chat_template)
        parts = TokenizerParts(parts.tokenizer, parts.special, template, parts.eos_ids)
    return ChatTokenizer(parts, make_template)
