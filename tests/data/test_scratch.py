"""Scratch folders of token caches: a kill leaves one, the next build removes it."""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys

import pytest

from rm_jax.data import scratch
from rm_jax.data.scratch import scratch_folder

BUILDER = """
import os, pathlib, sys
from rm_jax.data.scratch import scratch_folder

with scratch_folder(pathlib.Path(sys.argv[1]) / "set") as folder:
    (folder / "tokens.bin").write_text("half")
    print(folder.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def builder(tmp_path):
    """Starts a process that builds in tmp_path until it is killed: (process, name)."""
    with contextlib.ExitStack() as stack:

        def start():
            process = subprocess.Popen(
                [sys.executable, "-c", BUILDER, tmp_path],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process, process.stdout.readline().strip()

        yield start


def build(root):
    """Builds one in this process; says what was there meanwhile."""
    with scratch_folder(root / "other") as folder:
        return {*os.listdir(root)} - {folder.name}


def kill(process):
    process.kill()
    process.wait()


def test_what_a_killed_build_left_is_removed_by_the_next(builder, tmp_path):
    process, name = builder()
    kill(process)
    assert os.listdir(tmp_path) == [name]
    assert build(tmp_path) == set() and os.listdir(tmp_path) == []


def test_what_a_living_process_builds_is_left(builder, tmp_path):
    killed, stale = builder()
    process, name = builder()
    assert os.listdir(tmp_path / name) == ["tokens.bin"]
    kill(killed)
    assert build(tmp_path) == {stale, name}  # it cannot know which of them is whose
    kill(process)
    assert build(tmp_path) == set()


def test_what_this_process_builds_is_left(tmp_path):
    with scratch_folder(tmp_path / "a") as one, scratch_folder(tmp_path / "a") as two:
        assert build(tmp_path) == {one.name, two.name} and one != two


def test_what_another_machine_left_and_what_is_no_scratch_stay(tmp_path, monkeypatch):
    here = socket.gethostname()
    monkeypatch.setattr(socket, "gethostname", lambda: "another.example")
    stack = contextlib.ExitStack()
    theirs = stack.enter_context(scratch_folder(tmp_path / "set"))
    monkeypatch.setattr(socket, "gethostname", lambda: here)
    others = {theirs.name, "set", "notes.tmp", "tokenizers"}
    for name in others - {theirs.name}:
        (tmp_path / name).mkdir()
    with monkeypatch.context() as patch:  # a disk whose locks end at each machine
        patch.setattr(fcntl, "flock", lambda *_: None)
        assert build(tmp_path) == others
        patch.setattr(socket, "gethostname", lambda: "another.example")
        assert build(tmp_path) == others - {theirs.name}
    stack.close()


def test_a_disk_without_locks_is_never_cleaned(builder, tmp_path, monkeypatch):
    process, name = builder()
    kill(process)

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(scratch.fcntl, "flock", refuse)
    assert build(tmp_path) == {name}


def test_a_folder_that_fails_is_removed_and_one_renamed_stays(tmp_path):
    with pytest.raises(KeyError), scratch_folder(tmp_path / "deep" / "set") as folder:
        (folder / "x").write_text("x")
        raise KeyError
    assert os.listdir(tmp_path / "deep") == []
    with scratch_folder(tmp_path / "deep" / "set") as folder:
        os.rename(folder, tmp_path / "deep" / "set")
    assert os.listdir(tmp_path / "deep") == ["set"]
