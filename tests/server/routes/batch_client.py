"""What the tests of files and batches share: clients that take no other types, and lines."""

import json
import time
from collections.abc import Callable
from typing import Any

import openai
from openai.types import Batch, FileObject

from ...patience import patient
from ..conftest import MODEL, Server


def client_of(server: Server, key: str = "none") -> openai.OpenAI:
    """The official client, which takes no answer that departs from its types."""
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=20, _strict_response_validation=True
    )


def line(name: str, text: str = "hi", url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    """A line of a batch."""
    content = {"model": MODEL, "messages": [{"role": "user", "content": text}]} | body
    return {"custom_id": name, "method": "POST", "url": url, "body": content}


def upload(client: openai.OpenAI, *lines: Any) -> FileObject:
    """A file of these lines; anything but bytes is written as JSON."""
    raw = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines]
    return client.files.create(file=("in.jsonl", b"\n".join(raw)), purpose="batch")


def started(client: openai.OpenAI, *lines: Any, **options: Any) -> Batch:
    """A new batch of these lines."""
    usual = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return client.batches.create(input_file_id=upload(client, *lines).id, **(usual | options))


def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Waits until a condition holds; returns what it returned."""
    deadline = time.monotonic() + patient(seconds)
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    """A batch once it has ended."""
    ends = ("completed", "failed", "expired", "cancelled")
    return until(lambda: found if (found := client.batches.retrieve(batch.id)).status in ends else None)


def content(client: openai.OpenAI, file_id: str | None) -> dict[str | None, dict[str, Any]]:
    """The results in a file, by the lines' custom ids; none if there is no file."""
    if file_id is None:
        return {}
    found = [json.loads(each) for each in client.files.content(file_id).content.splitlines()]
    assert len({each["id"] for each in found}) == len(found)
    return {each["custom_id"]: each for each in found}
