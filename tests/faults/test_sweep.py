"""A sample of the sweep and of the flips; `python tests/faults/sweep.py` does all."""

import re
import subprocess
import sys

import pytest
import shim


@pytest.mark.slow
@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing())
def test_a_sample_of_all_faults_leaves_no_difference(root):
    command = [sys.executable, "tests/faults/sweep.py", "--sample", "16"]
    done = subprocess.run(
        [*command, "--doubles", "1"], cwd=root, stdout=subprocess.PIPE, text=True
    )
    last = done.stdout.splitlines()[-1]
    numbers = {name: int(n) for n, name in re.findall(r"(\d+) ([a-z _]+)", last)}
    assert done.returncode == 0, done.stdout
    assert numbers["faults"] >= 33 and numbers["kill"] >= 5 and numbers["flips"] >= 20
    for name in ("differences", "unclear errors", "not reached", "bad"):
        assert numbers[name] == 0
