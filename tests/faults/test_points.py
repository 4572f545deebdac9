"""The small logic of the sweep: points, faults, what a loss of power takes."""

import errno
import os
import pathlib
import subprocess
import sys

import flips
import pytest
import shim
from points import (
    Call,
    Fault,
    Point,
    faults_of,
    fits,
    points_of,
    read_log,
    sample,
    unlogged,
    unsynced,
)

from rm_jax import checkpoint

needs_shim = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing())


def calls(*lines):
    """Calls of "call size path [to]"."""
    rows = [[*line.split(), ""][:4] for line in lines]
    return [Call(".", call, int(n), path, to) for call, n, path, to in rows]


@pytest.mark.parametrize(
    "path, pattern",
    [
        ("/r/.config.json.k3j_9x0a", "/r/.config.json.*"),
        ("/r/.tokenizer.k3j_9x0a/tokenizer.json", "/r/.tokenizer.*/tokenizer.json"),
        ("/t/9cd1.f46b5aa8.tmp/.meta.json.ski5nfb5", "/t/9cd1.*.tmp/.meta.json.*"),
        ("/r/10/state/d/" + "0f" * 16, "/r/10/state/d/*"),
        ("/r/metrics.jsonl", "/r/metrics.jsonl"),
        ("/t/9cd1.f46b5aa8.tmp/#2442032", "/t/9cd1.*.tmp/#*"),
        ("/r/t/events.out.tfevents.17.host", "/r/t/events.out.tfevents.*"),
        ("/r/10.orbax-checkpoint-tmp/state", "/r/10.orbax-checkpoint-tmp/state"),
    ],
)  # fmt: skip
def test_what_is_random_in_a_path_is_a_star(path, pattern):
    assert fits(path) == pattern


def test_points_are_counted_by_call_and_path():
    found = points_of(
        calls("open 0 /r/a", "write 3 /r/a", "write 9 /b", "write 5 /r/a"), "/r"
    )
    assert found == [
        Point("open", "/a", 1, 0),
        Point("write", "/a", 1, 3),
        Point("write", "/b", 1, 9),
        Point("write", "/a", 2, 5),
    ]


def test_every_point_has_its_faults():
    faults = faults_of(
        points_of(calls("write 1 /a", "rename 0 /a /b", "fsync 2 /b"), "")
    )
    assert [(f.point.call, f.mode) for f in faults] == [
        ("write", "kill"), ("write", "eio"), ("write", "full"),
        ("rename", "kill"), ("rename", "eio"), ("rename", "read_only"),
        ("fsync", "lost"), ("fsync", "eio"),
    ]  # fmt: skip
    (write, *_) = points_of(calls("write 2 /a"), "")
    assert Fault(write, "half") in faults_of([write])


def test_samples_are_evenly_spread():
    assert sample(range(10), 0) == sample(range(10), 10) == list(range(10))
    assert sample(range(10), 2) == [2, 7]
    assert sample([], 3) == []


def test_bytes_that_no_call_wrote_are_noticed():
    done = calls("mkdir 0 /t", "open 0 /t/a", "write 4 /t/a", "rename 0 /t /u")
    assert unlogged(done, {"/u/a": 4}) == []
    assert unlogged(done, {"/u/a": 5}) == ["/u/a"]
    assert unlogged(done, {"/u/a": 4, "/u/b": 0}) == ["/u/b"]


def test_a_loss_of_power_takes_what_was_not_synced():
    done = calls(
        "open 0 /t/a", "write 4 /t/a", "fsync 4 /t/a", "write 3 /t/a", "write 1 /t/b",
        "write 2 /c", "fsync 2 /c", "rename 0 /t /u",
    )  # fmt: skip
    assert unsynced(done) == {"/u/a": 4, "/u/b": 0}
    assert unsynced(done[:3]) == {}


def test_every_bit_and_every_length_is_in_the_list(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_bytes(b"ab")
    (tmp_path / "b").write_bytes(b"")
    found = list(flips.damages(str(tmp_path), 0))
    assert [d.at for d in found if d.how == "flip"] == list(range(16))
    assert [d.at for d in found if d.how == "cut"] == [0, 1]
    assert [d.file for d in found if d.how == "remove"] == ["b", "d/a"]
    assert len(list(flips.damages(str(tmp_path), 6))) == 3 + 2 + 4


def test_the_small_checkpoint_needs_every_guard_of_ours(tmp_path, monkeypatch):
    flips.small_checkpoint(str(tmp_path))
    patient = flips.Patient(str(tmp_path))
    noise = dict((name, raw) for name, _, _, raw in patient.good[0])["a"]
    at = {
        file: 8 * found
        for file in flips.files(str(tmp_path))
        if (found := (tmp_path / file).read_bytes().find(noise)) >= 0
    }
    assert at  # as it is, so that a flip gives other values
    ((file, bit), *_) = at.items()
    damage = flips.Damage(file, "flip", bit + 9)
    assert patient.try_one(damage).outcome == "detected"
    monkeypatch.setattr(checkpoint, "check_digests", lambda *_: None)
    assert patient.try_one(damage) == flips.Result(damage, "bad", "silent")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return shim.compile_to(tmp_path_factory.mktemp("shim"))


WRITES = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[1])
import shim
folder = pathlib.Path(sys.argv[3])
shim.arm(sys.argv[2], [str(folder / "in")], str(folder / "log"), *eval(sys.argv[4]))
(folder / "in").mkdir()
(folder / "out").write_text("not watched")
for n in range(3):
    try:
        (folder / "in" / "a").write_text("0123456789")
        os.rename(folder / "in" / "a", folder / "in" / "b")
    except OSError as error:
        print(n, error.errno)
"""


def disturbed(library, folder, fault):
    """Runs WRITES with a fault; its exit code, what it printed, its calls."""
    here = os.path.dirname(shim.__file__)
    done = subprocess.run(
        [sys.executable, "-c", WRITES, here, library, str(folder), repr(fault)],
        env=os.environ | {"LD_PRELOAD": library},
        stdout=subprocess.PIPE,
        text=True,
    )
    log = read_log((pathlib.Path(folder) / "log").read_text())
    return done.returncode, done.stdout.split(), log


@needs_shim
def test_the_shim_logs_and_fails_and_kills(library, tmp_path):
    def run(name, *fault):
        folder = tmp_path / name
        folder.mkdir()
        return *disturbed(library, folder, fault), folder / "in"

    code, said, log, folder = run("nothing")
    assert (code, said) == (0, []) and folder.joinpath("b").stat().st_size == 10
    turn = ["open", "write", "rename"]
    assert [call.call for call in log] == ["mkdir", *turn, *turn, *turn]
    assert log[3].to == f"{folder}/b" and log[2].size == 10
    code, said, log, folder = run("kill", "rename", f"{tmp_path}/kill/in/a", 2, "kill")
    assert (code, log[-1].flag) == (-9, "K") and len(log) == 7
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b"]
    code, said, log, folder = run("half", "write", f"{tmp_path}/half/in/a", 1, "half")
    assert code == -9 and folder.joinpath("a").read_text() == "01234"
    _, said, log, folder = run(
        "once", "write", f"{tmp_path}/once/in/a", 2, "once", errno.EIO
    )
    assert said == ["1", str(errno.EIO)]
    _, said, log, _ = run(
        "full", "write", f"{tmp_path}/full/in/a", 2, "full", errno.ENOSPC
    )
    assert said == ["1", str(errno.ENOSPC), "2", str(errno.ENOSPC)]
    last = [(c.flag, c.call) for c in log[5:]]  # Python tries again when it closes
    assert last == [("F", "write"), ("f", "write"), ("f", "open")]
    _, said, log, _ = run(
        "ro", "rename", f"{tmp_path}/ro/in/a", 1, "read_only", errno.EROFS
    )
    assert said[::2] == ["0", "1", "2"] and [c.flag for c in log[3:]] == ["F", "f", "f"]
