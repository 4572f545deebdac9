"""Sweeps of the tiny experiment, with workers that train nothing."""

import io
import pathlib

import pytest
import tinysweep
from pool import Pool

from rm_jax.launch.backends import BACKENDS
from rm_jax.launch.sweep import sweep


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the tiny experiment; gives the exit code, what was said, the pool."""
    root = str(tmp_path / "root")

    def run(*codes, root=root, address="", silent=0, **more):
        pool, stream = Pool(codes, silent), io.StringIO()
        monkeypatch.setitem(BACKENDS, "local", pool)
        address = address or f"{tinysweep.__file__}:{tmp_path}"
        code = sweep(address, root, stream=stream, **more)
        return code, stream.getvalue(), pool

    run.root = root
    return run


@pytest.fixture
def edited(tmp_path):
    """The address of the tiny experiment with texts replaced: (old, new), ..."""

    def edited(*pairs):
        text = pathlib.Path(tinysweep.__file__).read_text()
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "edited.py").write_text(text)
        return f"{tmp_path}/edited.py:{tmp_path}"

    return edited
