"""From files on disk to parameters, tokenizers and chat templates. Only grammars are used for every token.

    name --sources.resolve--> path --reading.open_checkpoint--> Checkpoint --load_parameters--> arrays
                                   --tokenizer.load_tokenizer--> ChatTokenizer

Names are exported lazily: importing `checkpoints.tokenizer` imports no jax.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adapters import read_adapter as read_adapter
    from .checkpoint import Checkpoint as Checkpoint
    from .errors import CheckpointError as CheckpointError
    from .errors import GrammarError as GrammarError
    from .errors import SourceNotFound as SourceNotFound
    from .files import Progress as Progress
    from .generation import GenerationDefaults as GenerationDefaults
    from .grammars.matching import GrammarCompiler as GrammarCompiler
    from .modules import load_model as load_model
    from .modules import save_description as save_description
    from .modules import save_model as save_model
    from .reading import load_parameters as load_parameters
    from .reading import open_checkpoint as open_checkpoint
    from .reading import with_own_bits as with_own_bits
    from .sources import bundled as bundled
    from .sources import check as check
    from .sources import resolve as resolve
    from .store_writer import convert as convert
    from .tokenizer import ChatTokenizer as ChatTokenizer
    from .tokenizer import Detokenizer as Detokenizer
    from .tokenizer import TemplateError as TemplateError
    from .tokenizer import load_tokenizer as load_tokenizer

_HOMES = {
    "read_adapter": "adapters",
    "CheckpointError": "errors",
    "GrammarError": "errors",
    "SourceNotFound": "errors",
    "Progress": "files",
    "GenerationDefaults": "generation",
    "GrammarCompiler": "grammars.matching",
    "Checkpoint": "checkpoint",
    "load_model": "modules",
    "save_description": "modules",
    "save_model": "modules",
    "load_parameters": "reading",
    "open_checkpoint": "reading",
    "with_own_bits": "reading",
    "bundled": "sources",
    "check": "sources",
    "resolve": "sources",
    "convert": "store_writer",
    "ChatTokenizer": "tokenizer",
    "Detokenizer": "tokenizer",
    "TemplateError": "tokenizer",
    "load_tokenizer": "tokenizer",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll] - the names are imported above


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
