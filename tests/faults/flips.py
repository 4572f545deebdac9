"""Flips every bit of a checkpoint, cuts its files at every length: is it seen?

    python tests/faults/flips.py              all of a small checkpoint; 10 minutes
    python tests/faults/flips.py --sample 300 so many, evenly spread over every file

What is read back from a damaged checkpoint is `detected` (DamagedCheckpoint, which
makes a run fall back to the step before it), or `harmless` (equal to the bit), or bad:
other values without a word, another exception, or no end. Every file is also emptied,
removed, and made a folder.
"""

import argparse
import collections
import concurrent.futures
import faulthandler
import logging
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from points import sample

from rm_jax.checkpoint import Checkpoints, CheckpointWriter
from rm_jax.manifest import DamagedCheckpoint, named, nested

LIMIT = 60  # seconds after which a read counts as hanging


class Damage(NamedTuple):
    """What is done to a file: flip a bit, cut to a length, remove, or make a folder."""

    file: str
    how: str
    at: int = 0


class Result(NamedTuple):
    """What came of it: detected, harmless or bad, and of bad what."""

    damage: Damage
    outcome: str
    why: str


def small_checkpoint(folder: str) -> None:
    """Step 1 of three small arrays of three types: 4 KB in 11 files.

    One is 1 KB of noise, which tensorstore neither compresses nor keeps inside its
    own checked nodes: only our digests protect it.
    """
    state = {
        "a": jax.random.bits(jax.random.key(0), (256,), jnp.uint32),
        "b": jnp.ones((2, 2), jnp.bfloat16),
        "n": jnp.int32(7),
    }
    with CheckpointWriter(
        folder, keep_last=1, keep_best=0, best_metrics=(), best_mode="max"
    ) as checkpoints:
        checkpoints.save(1, state, {"meta": 1}, {"accuracy": 0.5})


def files(folder: str) -> dict[str, int]:
    """Path below the folder -> bytes, of every file."""
    found = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.stat().st_size for p in found}


def damages(folder: str, n: int) -> Iterator[Damage]:
    """Everything that is to be done; n of the flips and of the cuts, 0 is all."""
    sizes = files(folder)
    each = -(-n // len(sizes)) if n else 0  # of every file alike, large or small
    for file, size in sizes.items():
        yield from (Damage(file, "flip", bit) for bit in sample(range(8 * size), each))
        yield from (Damage(file, "cut", length) for length in sample(range(size), each))
        yield from (Damage(file, how) for how in ("remove", "folder"))


def inflict(path: pathlib.Path, damage: Damage, data: bytes) -> None:
    """Damages the file that holds `data`."""
    if damage.how == "flip":
        hurt = bytearray(data)
        hurt[damage.at // 8] ^= 1 << damage.at % 8
        path.write_bytes(hurt)
    elif damage.how == "cut":
        path.write_bytes(data[: damage.at])
    else:
        path.unlink()
        if damage.how == "folder":
            path.mkdir()


def bits(tree: Any) -> list[tuple]:
    """Name, shape, type and bytes of every array."""
    leaves = {name: np.asarray(x) for name, x in named(tree)[0].items()}
    return [(n, x.shape, str(x.dtype), x.tobytes()) for n, x in leaves.items()]


class Patient:
    """A checkpoint that is damaged and mended, again and again.

    Args:
      folder: of checkpoints; the last step is taken.
    """

    def __init__(self, folder: str):
        self.folder = pathlib.Path(folder)
        self.checkpoints = Checkpoints(folder)
        self.step = self.checkpoints.latest()
        arrays = self.checkpoints.manifest(self.step).arrays
        shape = lambda v: jax.ShapeDtypeStruct(v["shape"], v["dtype"])
        self.abstract = nested({k: shape(v) for k, v in arrays.items()})
        self.good = self._read()

    def _read(self) -> Any:
        state, meta, _ = self.checkpoints.restore(self.abstract, self.step)
        return bits(state), meta, self.checkpoints.manifest(self.step).metrics

    def try_one(self, damage: Damage) -> Result:
        """Damages, reads, mends."""
        path = self.folder / damage.file
        data = path.read_bytes()
        inflict(path, damage, data)
        faulthandler.dump_traceback_later(LIMIT, exit=True)  # then the parent sees it
        try:
            same = self._read() == self.good
            return Result(
                damage, "harmless" if same else "bad", "" if same else "silent"
            )
        except DamagedCheckpoint:
            return Result(damage, "detected", "")
        except BaseException as error:  # noqa: B036  whatever it is, it is reported
            return Result(damage, "bad", f"{type(error).__name__}: {error}")
        finally:
            faulthandler.cancel_dump_traceback_later()
            if path.is_dir():
                path.rmdir()
            path.write_bytes(data)


def part(folder: str, which: list[Damage]) -> list[Result]:
    """Tries them on a copy of the folder of checkpoints, in a process of its own."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None  # Orbax's event loop, closed amid a read
    with tempfile.TemporaryDirectory(prefix="rm_jax.flips.") as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        patient = Patient(copy)
        return [patient.try_one(damage) for damage in which]


def examine(folder: str, n: int, workers: int) -> list[Result]:
    """Tries everything, or a sample, on a folder of checkpoints.

    Raises:
      BrokenProcessPool: a read crashed, or took longer than LIMIT: stderr says where.
    """
    todo = list(damages(folder, n))
    blocks = [todo[i : i + 500] for i in range(0, len(todo), 500)]
    spawn = multiprocessing.get_context("spawn")  # a fork of jax could hang
    results: list[Result] = []
    started = time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        for found in pool.map(part, [folder] * len(blocks), blocks):
            results += found
            seconds = time.monotonic() - started
            print(f"{len(results)} of {len(todo)} damages, {seconds:.0f} s", flush=True)
    return results


def figure(results: list[Result]) -> dict[str, int]:
    """The numbers to report."""
    counts = collections.Counter((r.damage.how, r.outcome) for r in results)
    names = {
        "flip": "flips",
        "cut": "truncations",
        "remove": "other",
        "folder": "other",
    }
    numbers: collections.Counter = collections.Counter()
    for (how, outcome), n in counts.items():
        numbers[names[how]] += n
        if outcome != "bad":
            numbers[f"{names[how]} {outcome}"] += n
    numbers["bad"] = sum(r.outcome == "bad" for r in results)
    return dict(numbers)


def report(results: list[Result]) -> dict[str, int]:
    """Prints what is bad, by name, and returns the figure."""
    for result in results:
        if result.outcome == "bad":
            print(f"BAD {result.damage}: {result.why:.300}", flush=True)
    return figure(results)


def main() -> int:
    """Prints the figure; 0 where nothing is bad."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=0, help="flips; 0 is all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run", default="", help="a run directory to take instead")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rm_jax.flips.") as folder:
        if args.run:
            folder = os.path.join(args.run, "checkpoints")
        else:
            small_checkpoint(folder)
        numbers = report(examine(folder, args.sample, args.workers))
    print(", ".join(f"{n} {name}" for name, n in numbers.items()))
    return int(numbers["bad"] > 0)


if __name__ == "__main__":
    sys.exit(main())
