"""From the command to the first step, with everything cached that can be."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_first_step_comes_within_ten_seconds(root, tmp_path):
    """Of the quickstart: seconds from its start, without those of compiling."""
    environment = os.environ.copy()
    for name in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "rm_jax", "train", "--config"]
    command += [str(root / "configs" / "quickstart.py")]
    command += [f"--config.data.cache_dir={tmp_path}/tokens"]
    command += [f"--config.train.compile_cache={tmp_path}/compiled"]
    command += ["--config.train.duration=2 steps", "--config.train.report=False"]
    for name in ("cold", "warm"):
        run = tmp_path / name
        subprocess.run([*command, "--workdir", str(run)], check=True, env=environment)
        lines = [json.loads(line) for line in (run / "timing.jsonl").open()]
    took = lines[0]["time_to_first_step"] - lines[0]["compiling_before"]
    assert took < 10, lines[0]
    assert lines[0]["cache_hits"] == lines[0]["compiles"] > 0, lines[0]
