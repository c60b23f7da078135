"""Settings every test runs under: strict JAX promotion, a shared compilation cache, a few fake devices, and
no deadlines for hypothesis, because the first example of a test may import or compile."""

import gc
import os
import shutil
import ssl
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Without it each httpx client parses certifi's bundle, 50 ms; a folder's certificates are read when needed.
os.environ.setdefault("SSL_CERT_DIR", ssl.get_default_verify_paths().openssl_capath)

import hypothesis
import jax
import pytest

_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "distaff" / "test-xla"
_LARGEST_CACHE = 1 << 30
"""In bytes. Drawn shapes add some megabytes to it in each run."""

hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# Torch, transformers and JAX have a million objects that live on, so collections are costly.
gc.set_threshold(10_000, 20, 20)


def pytest_configure(config: pytest.Config) -> None:
    """Empties a cache of compiled programs that has grown too large, before any worker uses it."""
    if not hasattr(config, "workerinput") and _size(_CACHE) > _LARGEST_CACHE:
        shutil.rmtree(_CACHE)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
