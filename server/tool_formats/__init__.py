"""How models write calls of tools: texts to calls, tools to grammars, and tools told to models without a word
for them. Knows text and JSON; neither requests nor tokens.
"""

from .formats import FORMATS, ToolFormat, format_of
from .parts import CallArguments, CallsOnly, CallStart, Part, Text, Tool, ToolCallParser
from .telling import tell

__all__ = [
    "FORMATS", "CallArguments", "CallStart", "CallsOnly", "Part", "Text", "Tool", "ToolCallParser",
    "ToolFormat", "format_of", "tell",
]  # fmt: skip
