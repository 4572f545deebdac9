"""Lets a run of 40 steps fail or die at every write, rename, delete; restarts it.

    python tests/faults/sweep.py              everything; most of an hour on two cores
    python tests/faults/sweep.py --sample 60  a quick look, evenly spread

Every call that changes a file of the run directory or of the token cache is a point: of
ours, and of Orbax, tensorstore, pyarrow and the tokenizers. An undisturbed run lists
them. At each the run is killed before the call; a write is also cut in half and then
killed; after a rename power is lost, and with it all that was not synced; the call
fails once (EIO); and from it on the disk stays full (ENOSPC) or cannot be written
(EROFS). Then the same command runs again, undisturbed, and must leave what
a run leaves that nothing happened to: parameters, optimiser, metrics, evaluations and
predictions, equal to the bit. A run that met an error may survive it, or end with one
line that names a path.

A point is (call, path, n-th time), so threads that take turns differently do not move
it; what is random in a path is a `*`. A point that is not reached is a failure, too.
Then flips.py damages every bit of a small checkpoint, and some of the run's own. The
last line is the figure; the exit code is 0 where nothing is wrong.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import os
import queue
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import compare
import flips
import rig as rigs
import shim
from points import Fault, fits, sample, unlogged
from rig import Rig

KILLS = ("kill", "half", "lost")
MODES = (*KILLS, "eio", "full", "read_only")


class Outcome(NamedTuple):
    """What came of a fault; every text is empty where all is well.

    Attributes:
      name: of the fault.
      mode: of the fault.
      reached: whether it came about.
      wrong: what differs after the restart.
      unclear: what is wrong with the error message.
      left: scratch files that stay for ever.
      seconds: both runs took.
    """

    name: str
    mode: str
    reached: bool
    wrong: str
    unclear: str
    left: list[str]
    seconds: float


class Plan(NamedTuple):
    """What can be done to a run in a rig, and what it leaves if nothing is."""

    faults: list[Fault]
    wanted: dict[str, str]


def disturb(rig: Rig, wanted: dict[str, str], faults: Sequence[Fault]) -> Outcome:
    """A run with each fault in turn; then one without; compared."""
    rig.clear()
    reached, unclear, seconds, name = True, "", 0.0, []
    for one in faults:
        run = rig.run(one)
        reached = reached and rigs.hit(run.calls)
        seconds += run.seconds
        name.append(f"{one.mode} {one.point.name()}")
        if one.mode in KILLS:
            unclear = unclear or ("" if run.code == -9 else f"exit code {run.code}")
        else:
            unclear = unclear or rigs.unclear(run, rig.folder)
        if unclear:
            unclear += f"; it said: {run.said[-600:]}"
    again = rig.run()
    wrong = _wrong(rig, again, wanted)
    left = [fits(f"/{n}") for n in compare.leftovers(rig.run_dir, rig.tokens)]
    return Outcome(
        " then ".join(name), faults[0].mode, reached, wrong, unclear if reached else "",
        left, seconds + again.seconds,
    )  # fmt: skip


def _wrong(rig: Rig, run: rigs.Run, wanted: dict[str, str]) -> str:
    if run.code != 0:
        return f"the restart ends with {run.code}: {run.said[-400:]}"
    try:
        return ", ".join(compare.differences(rig.facts(), wanted))
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def explore(rig: Rig, only: str, mode: str) -> Plan:
    """Runs undisturbed, twice: all points, and what must come out every time."""
    found = []
    for _ in range(2):
        rig.clear()
        run = rig.run()
        if run.code != 0:
            raise RuntimeError(f"the undisturbed run ends with {run.code}: {run.said}")
        found.append((run, rig.facts()))
    (first, wanted), (second, again) = found
    if wrong := compare.differences(wanted, again):
        raise RuntimeError(f"two undisturbed runs differ: {wrong}")
    if unseen := unlogged(second.calls, compare.sizes(rig.run_dir, rig.tokens)):
        raise RuntimeError(f"the shim has not seen all that was written to {unseen}")
    only = only.replace("JOINED", "|".join(rig.joined()) or "JOINED")
    faults = [
        fault
        for fault in rig.faults(first)
        if re.search(only, fault.point.pattern) and re.search(mode, fault.mode)
    ]
    return Plan(faults, wanted)


def doubles(
    rig: Rig, faults: Sequence[Fault], first: int, second: int
) -> list[tuple[Fault, Fault]]:
    """Kills and then, in the restart, kills again: a sample of the pairs."""
    pairs = []
    kills = [fault for fault in faults if fault.mode in KILLS]
    for fault in sample(kills, first) if first else ():
        rig.clear()
        rig.run(fault)
        again = [f for f in rig.faults(rig.run()) if f.mode in KILLS]
        pairs += [(fault, other) for other in sample(again, second)]
    return pairs


def sweep(folder: str, args: argparse.Namespace) -> list[Outcome]:
    """Every fault of every variant, by so many workers at a time."""
    library = shim.compile_to(folder)
    outcomes: list[Outcome] = []
    for variant, knobs in rigs.VARIANTS.items():
        if args.variant not in ("", variant):
            continue
        with contextlib.ExitStack() as stack:
            workers = []
            for n in range(args.workers):
                at = f"{folder}/{variant}{n}"
                rig = Rig(at, library, rigs.compile_cache(), knobs)
                workers.append(stack.enter_context(rig))
            outcomes += _variant(variant, workers, args)
    return outcomes


def _variant(
    variant: str, workers: Sequence[Rig], args: argparse.Namespace
) -> list[Outcome]:
    plans = {
        rig: explore(rig, args.only or rigs.ONLY[variant], args.mode) for rig in workers
    }
    rig, faults = workers[0], plans[workers[0]].faults
    count = len({fault.point for fault in faults})
    print(f"{variant}: {count} points, {len(faults)} faults", flush=True)
    work = [(fault,) for fault in sample(faults, args.sample)]
    if variant == "plain":
        work += doubles(rig, faults, args.doubles, args.doubles)
    free: queue.Queue[Rig] = queue.Queue()
    for rig in workers:
        free.put(rig)
    started = time.monotonic()

    def one(faults: tuple[Fault, ...]) -> Outcome:
        rig = free.get()
        try:
            return disturb(rig, plans[rig].wanted, faults)
        finally:
            free.put(rig)

    done = []
    with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
        for outcome in pool.map(one, work):
            done.append(outcome)
            _say(outcome, len(done), len(work), time.monotonic() - started)
    return done


def _say(outcome: Outcome, n: int, total: int, seconds: float) -> None:
    if outcome.wrong:
        print(f"DIFFERENCE {outcome.name}: {outcome.wrong}", flush=True)
    if outcome.unclear:
        print(f"UNCLEAR {outcome.name}: {outcome.unclear}", flush=True)
    if not outcome.reached:
        print(f"NOT REACHED {outcome.name}", flush=True)
    if n % 20 == 0 or n == total:
        print(f"{n} of {total}, {seconds:.0f} s", flush=True)


def figure(outcomes: list[Outcome]) -> dict[str, int]:
    """The numbers to report."""
    modes = collections.Counter(o.mode for o in outcomes if o.reached)
    single = [o for o in outcomes if " then " not in o.name]
    return {
        "points": len({o.name.partition(" ")[2] for o in single}),
        "faults": len(outcomes),
        **{mode: modes[mode] for mode in MODES},
        "not reached": sum(not o.reached for o in outcomes),
        "unclear errors": sum(bool(o.unclear) for o in outcomes),
        "with scratch files left": sum(bool(o.left) for o in outcomes),
        "differences": sum(bool(o.wrong) for o in outcomes),
    }


def main() -> int:
    """Prints the figure; 0 where nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=0, help="faults; 0 is all")
    parser.add_argument("--doubles", type=int, default=5, help="n x n kills twice")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="points whose path fits this regex")
    parser.add_argument("--mode", default="", help=f"a regex of {', '.join(MODES)}")
    parser.add_argument("--variant", default="", choices=("", *rigs.VARIANTS))
    args = parser.parse_args()
    if why := shim.missing():
        print(f"cannot inject faults: {why}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="rm_jax.faults.") as folder:
        folder = os.path.realpath(folder)
        outcomes = sweep(folder, args)
        results = [] if args.only or args.mode else _flips(folder, args)
    left = collections.Counter(name for o in outcomes for name in o.left)
    for name, n in left.most_common(20):
        print(f"left for ever, {n} times: {name}")
    numbers = figure(outcomes) | flips.report(results)
    print(", ".join(f"{n} {name}" for name, n in numbers.items()))
    bad = any(o.wrong or o.unclear or not o.reached for o in outcomes)
    return int(bad or numbers["bad"] > 0)


def _flips(folder: str, args: argparse.Namespace) -> list[flips.Result]:
    """Bits and lengths of a small checkpoint, all; of the run's own, some."""
    small, own = f"{folder}/small", f"{folder}/plain0/run/checkpoints"
    flips.small_checkpoint(small)
    found = flips.examine(small, args.sample, args.workers)
    if os.path.isdir(own):
        found += flips.examine(own, min(args.sample or 1100, 1100), args.workers)
    return found


if __name__ == "__main__":
    sys.exit(main())
