"""Memory does not grow with the data set, but for what is documented an example."""

import os
import subprocess
import sys

import pytest

# Peak of RssAnon, what a process holds for itself, while it does something to a data
# set of n examples. Pages of mapped files are not in it: the system can take them back.
METER = """
import os, sys, threading
import numpy as np

done, peak = threading.Event(), 0

def anon():
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith("RssAnon")) / 1e3

def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anon())

folder, n, stub = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.path.insert(0, stub)
from conftest import IdEncoder
from rm_jax.data import cache, pack
from rm_jax.data.audit import audit
from rm_jax.data.loader import Loader
from rm_jax.data.schema import Message, Record

def records():
    for i in range(n):
        said = f"{i % (n - 9)}", "b"  # nine duplicates, far from what they copy
        yield Record(
            f"r{i}", "s", (Message("user", said[0]),),
            tuple((Message("assistant", text),) for text in said), (0, 1),
            meta={"prompt": [1, 2], "responses": [[3], [4, 5]], "keep": [2, 2],
                  "ends": [[], []]},
        )

def prepare():
    def write(scratch):
        audited = audit(records, {"duplicate": "drop"}, scratch)
        assert audited.report.counts["duplicate"] == 9
        return cache.tokenised(audited.records(), IdEncoder(), scratch, {}, {})

    assert len(cache.create(folder, write)) == n - 9

def plan():
    loader = Loader(cache.open_cache(folder), pack.shapes((16,), 4096, 4), 1000)
    for step in range(2 * n // 1000):  # two epochs
        items = loader.items_at(step)
        if step % 20 == 0:
            loader.batch_at(step)

before = anon()
threading.Thread(target=watch, daemon=True).start()
{"prepare": prepare, "plan": plan}[sys.argv[4]]()
done.set()
print(max(peak, anon()) - before)
"""
SMALL, LARGE = 100_000, 300_000
ORDER = 24  # bytes an example: a source's indices and the permutations of two epochs


def peak(folder, n, what) -> float:
    """MB that the process took."""
    stub = os.path.dirname(__file__)
    return float(
        subprocess.run(
            [sys.executable, "-c", METER, str(folder), str(n), stub, what],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    )


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data_set(tmp_path):
    grown = {}
    for what in ("prepare", "plan"):
        small, large = (peak(tmp_path / f"{n}", n, what) for n in (SMALL, LARGE))
        grown[what] = large - small
    # 2 MB is more than two runs of one size differ by. The arrays that are written have
    # 130 bytes an example: 26 MB lie between the two sizes.
    assert grown["prepare"] < 2
    assert grown["plan"] < ORDER * (LARGE - SMALL) / 1e6 + 2
