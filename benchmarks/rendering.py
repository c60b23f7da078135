"""The cost of rendering a chat template in another process: `python -m benchmarks.rendering`.

Milliseconds to render conversations of several sizes with the bundled model's template: in this process, in a
renderer process, and in a renderer process called from an event loop through a thread, as in the server.
Before that, milliseconds to start and end renderers: the first ones, which import libraries, and others.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice

from distaff.checkpoints import load_tokenizer, resolve
from distaff.checkpoints.tokenization.chat_template import ChatTemplate
from distaff.server.answering.off_loop import OffLoop
from distaff.server.text.rendering import RemoteTemplate

TIMES = 500
_SENTENCE = "All human beings are born free, and equal in dignity. "
SIZES = {"1 message": (1, 1), "10 messages, 5 kB": (10, 10), "40 messages, 60 kB": (40, 30)}


def _conversation(messages: int, sentences: int) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": _SENTENCE * sentences} for n in range(messages)]


def _measure(work: Callable[[], object]) -> Iterator[float]:
    for _ in range(TIMES):
        begun = time.perf_counter()
        work()
        yield 1000 * (time.perf_counter() - begun)


async def _through_threads(work: Callable[[], object]) -> list[float]:
    off_loop, took = OffLoop(), []
    for _ in range(TIMES):
        begun = time.perf_counter()
        await off_loop.of("").render(work)
        took.append(1000 * (time.perf_counter() - begun))
    off_loop.close()
    return took


def main() -> None:
    """Prints the median and the 99th percentile of each method."""
    tokenizer = load_tokenizer(resolve(None))
    source, special = tokenizer.chat_template or "", tokenizer.special_tokens
    first, *others = islice(_measure(lambda: RemoteTemplate(source, special).close()), 21)
    print(f"start and end: {first:.0f} ms, then {statistics.median(others):.0f} ms", flush=True)
    local, remote = ChatTemplate(source, special), RemoteTemplate(source, special)
    for size, (messages, sentences) in SIZES.items():
        conversation = _conversation(messages, sentences)

        def here(conversation: list[dict[str, str]] = conversation) -> str:
            return local.render(conversation, add_generation_prompt=True, continue_final_message=False)

        def there(conversation: list[dict[str, str]] = conversation) -> str:
            return remote.render(conversation, add_generation_prompt=True, continue_final_message=False)

        assert here() == there()
        methods = {"here": list(_measure(here)), "there": list(_measure(there))}
        methods["by thread"] = asyncio.run(_through_threads(there))
        figures = [
            f"{method} {statistics.median(took):.3f} / {statistics.quantiles(took, n=100)[98]:.3f}"
            for method, took in methods.items()
        ]
        print(f"{size}: {', '.join(figures)} ms (median / p99)", flush=True)
    remote.close()


if __name__ == "__main__":
    main()
