"""kill -9 at a random step, three times, then a restart: the run nobody disturbed."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from rm_jax.checkpoint import Checkpoints

STEPS = 60
KNOBS = {
    "data.world.train": 200,
    "data.world.valid": 40,
    "data.world.test": 40,
    "contract.max_length": 128,
    "contract.max_response": 96,
    "batch.examples": 8,
    "batch.row_lengths": "(128,)",
    "batch.chunk_tokens": 1024,
    "model.d_model": 16,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.n_kv_heads": 1,
    "model.d_ff": 32,
    "model.dropout": 0.1,
    "train.ema": 0.9,
    "train.duration": f"{STEPS} steps",
    "train.log_every": "3 steps",  # no two in step: saves fall amid lines of the log
    "train.eval_every": "20 steps",
    "train.save_every": "4 steps",
    "train.report": False,
}


@pytest.fixture
def start(tmp_path):
    """Starts a training of the run directory `name`; compiled programs are shared."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    knobs = KNOBS | {"data.cache_dir": tmp_path / "tokens"}
    knobs = [f"--config.{key}={value}" for key, value in knobs.items()]

    def start(name):
        command = [sys.executable, "-m", "rm_jax", "train", "--config", "rm_jax:base"]
        command += ["--workdir", str(tmp_path / name), *knobs]
        return subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True
        )

    return start


def last_step(folder):
    """Of the last checkpoint, 0 where there is none."""
    return Checkpoints(str(folder / "checkpoints")).latest() or 0


def read(folder, name):
    return (folder / name).read_bytes()


@pytest.mark.slow
def test_three_kills_leave_the_bits_of_an_undisturbed_run(start, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    done = start("straight")
    _, said = done.communicate()
    assert done.returncode == 0, said
    seed = time.time_ns()
    print(f"seed {seed}")
    rng = random.Random(seed)
    seen = [0]
    for _ in range(3):  # each after a save or more, which may be some late
        at = seen[-1] + rng.randint(1, 12)
        process = start("killed")
        while process.poll() is None and last_step(killed) < at:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)  # amid a step, a save or a line
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
        seen.append(last_step(killed))
    done = start("killed")
    _, said = done.communicate()
    assert done.returncode == 0, said
    assert f"at step {seen[-1]} of {STEPS}" in said
    assert 0 < seen[1] < seen[2] < seen[3] < STEPS, seen
    for name in ("metrics.jsonl", "evals.json", "predictions/test.parquet"):
        assert read(killed, name) == read(straight, name), (name, seen)
    a, b = (Checkpoints(str(folder / "checkpoints")) for folder in (killed, straight))
    assert a.manifest(STEPS).arrays == b.manifest(STEPS).arrays, seen
    assert a.manifest(STEPS).metrics == b.manifest(STEPS).metrics
