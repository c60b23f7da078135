"""The served models in Anthropic's shape."""

from datetime import UTC, datetime
from typing import Any


def model_info(name: str, created: int, context: int) -> dict[str, Any]:
    """One model; `created` in Unix seconds, `context` in tokens."""
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": context,
        "max_tokens": context,
    }


def model_list(models: list[dict[str, Any]]) -> dict[str, Any]:
    """The list of all of them, which is one page."""
    return {
        "data": models,
        "has_more": False,
        "first_id": models[0]["id"],
        "last_id": models[-1]["id"],
    }
