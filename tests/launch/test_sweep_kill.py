"""Whole sweeps with real workers: one undisturbed, one killed in the middle."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import tinysweep
from tiny import lines

from rm_jax import rundir, store, together
from rm_jax.checkpoint import Checkpoints
from rm_jax.launch import plan, units

STEPS = 40


@pytest.fixture
def start(tmp_path, root):
    """Starts a sweep of ROOT; compiled programs are shared."""
    path = [str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    address = f"{tinysweep.__file__}:{tmp_path},{STEPS}"

    def start(name, *more):
        words = [sys.executable, "-m", "rm_jax", "sweep", "--experiment", address]
        return subprocess.Popen(
            [*words, "--root", str(tmp_path / name), "--workers", "2", *more],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def finish(process):
    said, _ = process.communicate()
    return process.returncode, said


def begun(folder):
    """Saved steps of each group that has a checkpoint."""
    files = (folder / "units" / together.FOLDER).glob("*/checkpoints")
    return [last for f in files if (last := Checkpoints(str(f)).latest())]


def until(process, true):
    while process.poll() is None and not true():
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]


def workers(root):
    """Processes that have the root among their words."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"worker" in words and str(root).encode() in words:
                found.append(int(folder.name))
    return found


def names(root):
    return [unit["name"] for unit in plan.read(str(root))["units"]]


def unit_folders(root):
    return [pathlib.Path(units.folder(str(root), name)) for name in names(root)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the death of a parent is Linux's")
def test_a_killed_sweep_loses_and_repeats_nothing(start, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    code, said = finish(start("straight"))
    assert code == 0 and "rule gain" in said, said
    process = start("killed")
    until(process, lambda: len(begun(killed)) == 2 and min(begun(killed)) > 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    second = start("killed")  # at once: workers of the first still save
    code, said = finish(second)
    assert code == 0, said
    assert not workers(killed)
    assert names(killed) == names(straight)
    resumed = []
    for a, b in zip(unit_folders(killed), unit_folders(straight), strict=True):
        for name in ("metrics.jsonl", "evals.json"):
            assert (a / name).read_bytes() == (b / name).read_bytes(), (a, name)
        sessions = rundir.run_json(str(a))["sessions"]
        starts = [start["step"] for s in sessions for start in s["starts"]]
        assert starts == sorted(starts) and len(starts) <= 2, starts
        # Each session went on where the one before it was saved: no step was run twice.
        timed = [line for line in lines(a, "timing.jsonl") if "from" in line]
        assert [line["from"] for line in timed[1:]] == [
            line["step"] for line in timed[:-1]
        ], timed
        resumed.append(len(starts) == 2)
    assert any(resumed) and not all(resumed)  # two groups of three were cut short
    code, said = finish(start("killed"))
    assert code == 0 and "0 programs to run" in said
    verdicts = [store.read_text(str(f / "verdicts.json")) for f in (straight, killed)]
    assert verdicts[0] == verdicts[1]


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_continues(start, tmp_path):
    root = tmp_path / "stopped"
    process = start("stopped", "--separate", "--workers", "1")
    files = lambda: list(root.glob("units/*/checkpoints/[0-9]*"))
    until(process, files)
    process.send_signal(signal.SIGINT)
    code, said = finish(process)
    assert code == 75 and "SIGINT: workers have saved" in said, said
    assert not workers(root)
    first = files()[0].parent.parent
    assert not (first / "evals.json").exists()
    code, said = finish(start("stopped", "--separate", "--workers", "2"))
    assert code == 0 and "6/6 units" in said, said
    sessions = rundir.run_json(str(first))["sessions"]
    assert len([start for s in sessions for start in s["starts"]]) == 2
