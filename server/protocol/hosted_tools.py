"""Tools of the Responses API that OpenAI runs itself, or that only its own models know.

Agents list them by habit, whatever the server is. They are left out, so that the model is told of functions
alone; a strict server refuses them, and so does a `tool_choice` that demands one, because only functions can
be named there. Tools of the type `custom` are not among them: an agent that lists one waits for its calls.
"""

from .fields import Fields
from .kinds import Schema, record

TYPES = (
    "code_interpreter",
    "computer",
    "computer_use",
    "computer_use_preview",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "namespace",
    "shell",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
)

SCHEMA: Schema = record({"type": {"type": "string", "enum": list(TYPES)}})


def is_hosted(tool: Fields) -> bool:
    """Whether a tool is one of these."""
    return tool.get("type") in TYPES
