"""Reasoning that a model writes before its answer: the marks around it, and where it ends in a reply.

Handles text; neither requests nor tokens nor JSON.
"""

from .formats import FORMATS, Place, ReasoningFormat, format_of
from .splitter import ReasoningSplitter, Split

__all__ = ["FORMATS", "Place", "ReasoningFormat", "ReasoningSplitter", "Split", "format_of"]
