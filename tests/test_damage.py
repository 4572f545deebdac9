"""Disks that fail, files that are damaged or gone, clocks that go back: what users see.

tests/faults does it at every call of a run; here is each case that it found, alone.
"""

import errno
import os
import pathlib

import jax.numpy as jnp
import pytest

import rm_jax
from rm_jax import rundir, store
from rm_jax.checkpoint import CheckpointWriter
from rm_jax.config import ConfigError
from rm_jax.data import cache
from rm_jax.data.tokenizers import build_tokenizer, save_tokenizer


def flipped(data, bit):
    data = bytearray(data)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


def test_a_kill_before_the_first_file_has_its_name(tmp_path):
    # The rename of config.json never came: the directory is still nobody's.
    (tmp_path / ".config.json.k3j_9x0a").write_text("{")
    assert rundir.claim(str(tmp_path), None) is False
    (tmp_path / "notes.txt").touch()
    with pytest.raises(rundir.ConfigError, match="is not empty and holds no run"):
        rundir.claim(str(tmp_path), None)


def test_a_workdir_that_cannot_be_written_is_found_first(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(rundir.ConfigError, match="file/run: .*/file is no folder"):
        rundir.claim(str(tmp_path / "file/run"), None)
    asked = []
    # Modes do not stop root, but access() knows of a disk mounted read-only.
    monkeypatch.setattr(os, "access", lambda *args: asked.append(args))
    with pytest.raises(rundir.ConfigError, match="a/run: .* that can be written"):
        rundir.claim(str(tmp_path / "a/run"), None)
    assert asked == [(str(tmp_path), os.W_OK | os.X_OK)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full_under_the_log_is_named():
    with pytest.raises(OSError, match="/dev/full: cannot write: No space left"):
        store.append_lines("/dev/full", ["{}"])


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


@pytest.mark.parametrize(
    "value",
    [{"step": 40, "sets": {"valid": {"nll": 0.69314, "n": 12}}}, {"a": [1, None]}, {}],
)
def test_every_flip_in_a_json_file_is_seen_or_harmless(tmp_path, value):
    path = tmp_path / "evals.json"
    store.write_sealed(str(path), value)
    good, seen = path.read_bytes(), 0
    for bit in range(8 * len(good)):
        path.write_bytes(flipped(good, bit))
        try:
            found = store.read_json(str(path))
        except ValueError as error:
            assert str(error).startswith(str(path))
            seen += 1
        else:  # in the word "seal": every value is as it was
            found = {k: v for k, v in found.items() if k in value}
            assert found == value
    assert seen > 7 * len(good)
    for size in range(1, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(ValueError, match=str(path)):
            store.read_json(str(path))


def test_a_seal_is_of_what_json_gives_back(tmp_path):
    path = str(tmp_path / "x.json")
    store.write_sealed(path, {10: 1.5, 9: (1, 2)})
    assert store.read_json(path) == {"10": 1.5, "9": [1, 2]}


def test_a_file_edited_by_hand_says_what_to_do(tmp_path):
    path = tmp_path / "config.json"
    config = rm_jax.config.load("rm_jax:base")
    text = rundir.config_text(config)
    path.write_text(text.replace('"d_model": 128', '"d_model": 64'))
    with pytest.raises(rundir.ConfigError, match="edited by hand, take out the key 's"):
        rm_jax.config.load(str(path))
    rows = [row for row in path.read_text().splitlines() if '"seal"' not in row]
    path.write_text("\n".join(rows))
    assert rm_jax.config.load(str(path)).model.d_model == 64


def synced(monkeypatch):
    """Paths in the order in which they were synced and renamed."""
    done, fsync, rename = [], os.fsync, os.rename

    def note(handle):
        done.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def move(old, new):
        done.append(f"-> {new}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", move)
    return done


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux's /proc")
def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = synced(monkeypatch)
    with store.new_folder(str(tmp_path / "t")) as folder:
        pathlib.Path(folder, "a").write_text("1")
    names = [os.path.basename(p) for p in done]
    # The folder above last: a rename, too, is lost until it is synced.
    assert names == ["a", os.path.basename(folder), "t", tmp_path.name]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux's /proc")
def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = synced(monkeypatch)
    with CheckpointWriter(
        str(tmp_path), keep_last=1, keep_best=0, best_metrics=(), best_mode="max"
    ) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(3)}, {}, {})
    before = done[: done.index(f"-> {tmp_path}/1")]
    files = {str(p.relative_to(tmp_path / "1")) for p in tmp_path.rglob("1/**/*")}
    assert {f"{tmp_path}/1.saving/{name}" for name in files} <= set(before)
    assert "manifest/data.json" in files


def test_checkpoints_without_run_json_are_not_continued(tmp_path):
    """It alone says with what data and code they were made."""
    config = rm_jax.config.load("rm_jax:base")
    (tmp_path / "config.json").write_text(rundir.config_text(config))
    (tmp_path / "checkpoints").mkdir()
    assert rundir.claim(str(tmp_path), config)  # killed before run.json and any step
    (tmp_path / "checkpoints/8").mkdir()
    with pytest.raises(ConfigError, match=r"checkpoints and no run\.json"):
        rundir.claim(str(tmp_path), config)
