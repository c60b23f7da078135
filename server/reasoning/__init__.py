"""Reasoning before an answer: its marks, where it ends in a reply, and grammars that allow it.

Handles text; neither requests nor protocols.
"""

from .formats import FORMATS, Place, ReasoningFormat, format_of
from .grammar import Limit, grammar_of_reply
from .splitter import ReasoningSplitter, Split

__all__ = [
    "FORMATS", "Limit", "Place", "ReasoningFormat", "ReasoningSplitter", "Split",
    "format_of", "grammar_of_reply",
]  # fmt: skip
