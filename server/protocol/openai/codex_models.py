"""The served models as Codex reads them from `GET /v1/models?client_version=…`, beside OpenAI's list.

Source: `ModelInfo` of codex-rs/protocol (Apache-2.0), read in version 0.171. With it Codex knows the context,
cuts what tools return to a size that fits, and edits files with its free-form `apply_patch`.
"""

from typing import Any

_LEVELS = ("low", "medium", "high")
_CHARACTERS_OF_TOKEN = 4
_SHARE_OF_OUTPUT = 8
"""The part of the context that the output of one tool may take."""
_INSTRUCTIONS = (
    "You are a coding agent in a terminal. Work in the user's folder with the tools that you are given, "
    "until what the user asked for is done. Look before you change something, change as little as is needed, "
    "check the result, and say in a few sentences what you did."
)


def codex_model(name: str, context: int, *, reasons: bool) -> dict[str, Any]:
    """One model.

    Args:
      context: in tokens. reasons: it has reasoning that is separated from its answers.
    """
    levels = [{"effort": level, "description": level} for level in _LEVELS] if reasons else []
    limit = context * _CHARACTERS_OF_TOKEN // _SHARE_OF_OUTPUT
    return {
        "slug": name,
        "display_name": name,
        "description": None,
        "supported_reasoning_levels": levels,
        "shell_type": "shell_command",
        "visibility": "list",
        "supported_in_api": True,
        "priority": 0,
        "availability_nux": None,
        "upgrade": None,
        "base_instructions": _INSTRUCTIONS,
        "supports_reasoning_summaries": False,
        "support_verbosity": False,
        "default_verbosity": None,
        "apply_patch_tool_type": "freeform",
        "truncation_policy": {"mode": "bytes", "limit": limit},
        "supports_parallel_tool_calls": True,
        "context_window": context,
        "experimental_supported_tools": [],
        "input_modalities": ["text"],
    }
