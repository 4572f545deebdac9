"""Disks that fail, files that are damaged or gone, clocks that go back: what users see.

tests/faults does it at every call of a run; here is each case that it found, alone.
"""

import errno
import pathlib

import pytest

from rm_jax import rundir
from rm_jax.data import cache
from rm_jax.data.tokenizers import build_tokenizer, save_tokenizer


def test_a_kill_before_the_first_file_has_its_name(tmp_path):
    # The rename of config.json never came: the directory is still nobody's.
    (tmp_path / ".config.json.k3j_9x0a").write_text("{")
    assert rundir.claim(str(tmp_path), None) is False
    (tmp_path / "notes.txt").touch()
    with pytest.raises(rundir.ConfigError, match="is not empty and holds no run"):
        rundir.claim(str(tmp_path), None)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_cache_that_cannot_be_written_is_named(tmp_path, error):
    def write(folder: pathlib.Path):
        raise OSError(error, "the disk says no")  # as a write to an open file does

    with pytest.raises(cache.CacheError, match=f"{tmp_path}/key: cannot be .*says no"):
        cache.create(tmp_path / "key", write)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    tokenizer = build_tokenizer("byte")

    def broken(folder):
        raise Exception("Input/output error (os error 5)")  # what the Rust library says

    monkeypatch.setattr(tokenizer, "save_pretrained", broken)
    with pytest.raises(OSError, match=f"{tmp_path}/t: cannot write .*os error 5"):
        save_tokenizer(tokenizer, tmp_path / "t")
