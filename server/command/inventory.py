"""The models on this machine: those bundled with Distaff, and those in the hub's cache."""

from collections.abc import Iterator

from rich.filesize import decimal

from ...checkpoints.sources import bundled, cache_folder


def inventory() -> Iterator[str]:
    """A line for each model: its name, where it comes from, and how much of it is present."""
    for model in bundled():
        state = "ready" if model.path(cache_folder()).exists() else "downloaded when first used"
        yield f"{model.name}  bundled ({model.licence}), {state}"
    for name, size in sorted(_hub_models()):
        yield f"{name}  from the hub, {decimal(size)}"


def _hub_models() -> Iterator[tuple[str, int]]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in repositories:
        if repository.repo_type == "model":
            yield repository.repo_id, repository.size_on_disk
