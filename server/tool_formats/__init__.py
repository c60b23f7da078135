"""The formats of tool calls: parsers from text to calls, grammars from tools, and tools as plain messages for
templates without tool support. Handles text and JSON; neither requests nor tokens.
"""

from .formats import FORMATS, ToolFormat, format_of
from .parts import CallArguments, CallsOnly, CallStart, Part, Text, Tool, ToolCallParser
from .telling import tell

__all__ = [
    "FORMATS", "CallArguments", "CallStart", "CallsOnly", "Part", "Text", "Tool", "ToolCallParser",
    "ToolFormat", "format_of", "tell",
]  # fmt: skip
