"""Host memory stays flat over a long run."""

import json
import os
import subprocess
import sys

import pytest

# One process of its own, on one device: prints its memory after so many steps.
# What malloc keeps of freed blocks is handed back first, and pages of mapped files do
# not count: neither is a leak.
PROGRAM = """
import ctypes, gc, importlib, json, sys
import rm_jax

module, seen = importlib.import_module("rm_jax.train"), {}
real = module.run_step

def counted(*args):
    n = seen["n"] = seen.get("n", 0) + 1
    if n in (200, 1100, 2000):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        status = open("/proc/self/status").read()
        seen[n] = int(status.split("RssAnon:")[1].split()[0]) / 1024
    return real(*args)

module.run_step = counted
config = rm_jax.config.load(sys.argv[1])
rm_jax.train(config, sys.argv[2])
print(json.dumps([seen[n] for n in (200, 1100, 2000)]))
"""


NOTHING = {"data__eval": "{}", "train__keep_best": 0, "train__save_every": "3000 steps"}
EVERYTHING = {
    "train__eval_every": "100 steps",  # all that a run does, it has done by step 200
    "train__save_every": "100 steps",
    "train__example_losses": True,
    "train__tensorboard": True,
}


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
@pytest.mark.parametrize("knobs, most", [(NOTHING, 2), (EVERYTHING, 10)])
def test_memory_is_flat_over_2000_steps(make, tmp_path, knobs, most):
    """In MB. Of what is done every 100 steps, saves keep a third of one MB each."""
    config = make(
        train__duration="2001 steps",
        train__log_every="20 steps",
        train__keep_last=1,
        **knobs,
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    command = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    early, middle, late = json.loads(done.stdout.splitlines()[-1])
    assert abs(late - early) < most, (early, middle, late)
