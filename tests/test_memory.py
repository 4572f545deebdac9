"""Host memory stays flat over a long run."""

import json
import os
import subprocess
import sys

import pytest

# One process of its own, on one device: prints its memory after so many steps.
PROGRAM = """
import importlib, json, sys
import rm_jax

module, seen = importlib.import_module("rm_jax.train"), {}
real = module.run_step

def counted(*args):
    n = seen["n"] = seen.get("n", 0) + 1
    if n in (200, 1100, 2000):
        import gc
        gc.collect()
        status = open("/proc/self/status").read()
        seen[n] = int(status.split("VmRSS:")[1].split()[0]) / 1024
    return real(*args)

module.run_step = counted
config = rm_jax.config.load(sys.argv[1])
rm_jax.train(config, sys.argv[2])
print(json.dumps([seen[n] for n in (200, 1100, 2000)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_memory_is_flat_over_2000_steps(make, tmp_path):
    config = make(
        train__duration="2001 steps",
        train__log_every="20 steps",
        train__eval_every="400 steps",
        train__save_every="200 steps",
        train__keep_last=1,
        train__example_losses=True,
        train__tensorboard=True,
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    command = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    early, middle, late = json.loads(done.stdout.splitlines()[-1])
    assert late - early < 5 and late - middle < 3, (early, middle, late)  # MB
