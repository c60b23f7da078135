"""The formats of tool calls: parsers from text to calls, grammars from tools, and tools as plain messages for
templates without tool support. Handles text and JSON; neither requests nor tokens.
"""

from .formats import FORMATS, ToolFormat, format_of
from .parts import FREE_TEXT, CallArguments, CallsOnly, CallStart, Part, Text, Tool, ToolCallParser
from .plain_messages import tools_as_messages

__all__ = [
    "FORMATS", "FREE_TEXT", "CallArguments", "CallStart", "CallsOnly", "Part", "Text", "Tool", 
    "ToolCallParser", "ToolFormat", "format_of", "tools_as_messages",
]  # fmt: skip
