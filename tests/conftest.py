"""Suite-wide policy: eight fake devices, no rank promotion, a persistent compile cache."""

import os
import pathlib
import tempfile

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax  # noqa: E402  the line above must come first

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get(
        "RM_JAX_TEST_CACHE", os.path.join(tempfile.gettempdir(), "rm_jax_compile_cache")
    ),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """Folder of real preference data; tests that need it skip without it."""
    default = ROOT.parent / "shared" / "data"
    folder = pathlib.Path(os.environ.get("RM_JAX_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set RM_JAX_TEST_DATA to a copy")
    return folder
