"""A sweep: units of an experiment trained by workers, until every rule has a verdict.

code = rm_jax.launch.sweep.sweep("experiments/x.py", "runs/x")

What is finished is never trained again, what was begun goes on where it was saved: the
same command continues a sweep, whatever ended it.
"""

import contextlib
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from rm_jax import experiment as experiment_module
from rm_jax import losses, schemas, store
from rm_jax.config import ConfigError
from rm_jax.evals import reducers
from rm_jax.launch import claims, listing, plan, units
from rm_jax.launch.backends import BACKENDS, Backend
from rm_jax.launch.plan import Plan
from rm_jax.launch.worker import WRONG, Group, log_file, tail
from rm_jax.models import heads
from rm_jax.report import root as roots

PROGRESS = 60  # seconds without an end, then a line on what runs
STARTS = 3  # of a group that fails; preemptions do not count
PREEMPTED = (75, -signal.SIGTERM)  # exit codes; the second is of one still starting


def sweep(
    address: str,
    root: str,
    *,
    backend: str = "local",
    workers: int = 0,
    separate: bool = False,
    dry_run: bool = False,
    stream: TextIO = sys.stdout,
) -> int:
    """Trains every unit of an experiment that is not finished, then judges its claims.

    Args:
      address: of the experiment, as for `experiment.load`.
      root: folder of the sweep; an existing one is continued.
      backend: where workers run, one of `backends.BACKENDS`.
      workers: at a time; 0 is as many as fit, see `local.Local`.
      separate: every unit is a program of its own.
      dry_run: only say what would be done, with the command of every unit, which
        otherwise goes to ROOT/plan.txt; writes nothing.
      stream: where progress goes.

    Returns:
      an exit code: 0; 1 where a unit failed or a rule could not be applied; 75 where a
      signal stopped it: the same command continues.

    Raises:
      ConfigError: a part of the experiment or a unit that cannot run.
      ValueError: an unknown backend, or a root that cannot be used.
      ImportError: pandas, which the rules get their table by, is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"--backend {backend!r}; known: {sorted(BACKENDS)}")
    roots.pandas()
    say = lambda line: print(line, file=stream, flush=True)
    experiment = experiment_module.load(address)
    planned = plan.make(experiment, root, separate)
    _check_names(planned)
    if not dry_run:
        planned = plan.write(experiment, root, separate)
    pool = BACKENDS[backend](root, workers)
    say(f"question: {experiment.question}")
    for line in (listing.commands if dry_run else listing.programs)(planned, root):
        say(line)
    for line in listing.totals(experiment, planned, root, pool.workers):
        say(line)
    if dry_run:
        return 0
    say(f"the command of each unit: {listing.write(planned, root)}")
    running = _Sweep(root, planned, pool, say)
    with _signals(running):
        running.run()
    if running.stopped:
        say(f"{running.stopped}: workers have saved; the same command continues")
        return 75
    lines, sound = claims.judge(root, experiment.rules)
    for line in [*running.failures(), *lines]:
        say(line)
    return 0 if sound and not running.failed else 1


def _check_names(planned: Plan) -> None:
    """Refuses an unknown loss, knob, head or reducer before anything runs."""
    for unit in planned.units:
        try:
            losses.choose(unit.config.loss.to_dict())
            heads.find(unit.config.model.head.name)
            reducers.parse(unit.config.members.reducer)
        except ValueError as error:
            raise ConfigError(f"unit {unit}: {error}") from error


class _Sweep:
    """A sweep under way.

    Attributes:
      stopped: name of the signal that stops it, "" while there is none.
      failed: units without figures, by the group they are in.
      barred: units that are not started -> the failed unit that they need.
    """

    def __init__(self, root: str, planned: Plan, pool: Backend, say: Any):
        self.stopped = ""
        self.failed: dict[Group, list[str]] = {}
        self.barred: dict[str, str] = {}
        self._root, self._pool, self._say = root, pool, say
        self._units = {unit.name: unit for unit in planned.units}
        self._queue = deque(listing.unfinished(planned, root))
        self._open = {name for group in self._queue for name in group}
        self._failures: Counter[Group] = Counter()
        self._begun: dict[Group, float] = {}
        self._running: list[Group] = []
        self._start, self._here = time.monotonic(), 0  # units finished since then
        self._left = sum(map(len, self._queue))
        self._before = len(self._units) - self._left  # whole groups

    def run(self) -> None:
        """Returns when every group is finished or has failed, or after a signal."""
        try:
            while self._pool.busy or (self._queue and not self.stopped):
                while self._pool.free and not self.stopped and (g := self._ready()):
                    self._begin(g)
                if not self._pool.busy:
                    continue
                ended = self._pool.ended(PROGRESS)
                for group, code in ended:
                    self._end(group, code)
                if not ended:
                    self._progress()
        finally:  # only after an error is there one left
            self._pool.send(signal.SIGTERM)

    def stop(self, number: int) -> None:
        """Asks the workers to save and end; no other is started."""
        self.stopped = signal.Signals(number).name
        self._pool.send(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the workers at once."""
        self._pool.send(signal.SIGKILL)

    def failures(self) -> Iterator[str]:
        """What failed, with the end of the log."""
        for group, names in self.failed.items():
            log = log_file(self._root, group)
            for name in names:
                yield f"FAILED {self._units[name]}: see {log}"
            yield from (f"  | {line}" for line in tail(self._root, group))
        for name, need in self.barred.items():
            yield f"NOT STARTED {self._units[name]}: needs {need}, which failed"

    def _ready(self) -> Group | None:
        """Takes the first group out of the queue that needs nothing unfinished.

        Those that need what failed go, too. Without a worker there is a ready one as
        long as the queue is not empty: no unit needs itself, however far round.
        """
        lost = {name: name for names in self.failed.values() for name in names}
        for group in list(self._queue):
            needed = {need for name in group for need in self._units[name].needs}
            if gone := sorted(needed & (lost | self.barred).keys()):
                self._bar(group, (lost | self.barred)[gone[0]])
            elif not needed & self._open:
                self._queue.remove(group)
                return group
        return None

    def _bar(self, group: Group, need: str) -> None:
        """Gives up a group that needs a unit that failed."""
        self._queue.remove(group)
        self._open -= {*group}
        self._left -= len(group)
        for name in group:
            self.barred[name] = need
            self._say(f"NOT STARTED {self._units[name]}: needs {need}, which failed")

    def _begin(self, group: Group) -> None:
        self._begun[group] = time.monotonic()
        which = group[0] if len(group) == 1 else f"{len(group)} units, {group[0]} ..."
        self._say(f"started {which}: log in {log_file(self._root, group)}")
        self._running.append(group)
        self._pool.start(group)
        if self.stopped:  # while it started
            self._pool.send(signal.SIGTERM)

    def _progress(self) -> None:
        """The last line of each worker that runs."""
        for group in self._running:
            if lines := tail(self._root, group, 1):
                self._say(f"{group[0]}: {lines[0]}")

    def _end(self, group: Group, code: int) -> None:
        """Of a worker: says what it finished, and what becomes of the rest."""
        self._running.remove(group)
        lacking = [n for n in group if not units.finished(self._root, n)]
        if not lacking:
            self._open -= {*group}
            self._left -= len(group)
            return self._report(group)
        if self.stopped:
            return None
        if code in PREEMPTED:
            self._say(f"preempted {group[0]}: starts again")
            return self._queue.append(group)
        self._failures[group] += 1
        last = (tail(self._root, group, 1) or ["it said nothing"])[0]
        why = f"exit code {code}, {last}"
        if code != WRONG and self._failures[group] < STARTS:
            self._say(f"failed {group[0]}, starts again: {why}")
            return self._queue.append(group)
        self._open -= {*group}
        self._left -= len(group)
        self._report([name for name in group if name not in lacking])
        self.failed[group] = lacking
        for name in lacking:
            self._say(f"FAILED {self._units[name]}: {why}")
            value = {"error": why, "log": log_file(self._root, group)}
            value = schemas.stamped("failed.json", value)
            store.write_json(units.failure_file(self._root, name), value)
        return None

    def _report(self, names: Sequence[str]) -> None:
        """One line a finished unit, and one on the time."""
        for name in names:
            self._say(f"finished {self._units[name]}: {_accuracy(self._root, name)}")
        if names:
            self._here += len(names)
            now, done = time.monotonic(), self._before + self._here
            took = now - min(self._begun[g] for g in self._begun if names[0] in g)
            left = (now - self._start) / self._here * self._left
            self._say(
                f"{done}/{len(self._units)} units finished; these {len(names)} in "
                f"{took:.0f} s; about {_span(left)} left"
            )


def _accuracy(root: str, name: str) -> str:
    """Accuracy of each set of a finished unit, as text."""
    path = store.join(units.folder(root, name), "evals.json")
    sets = schemas.checked("evals.json", store.read_json(path), path)["sets"]
    found = {key: figures.get("accuracy") for key, figures in sets.items()}
    shown = [
        f"{key}/accuracy {value:.4f}"
        for key, value in found.items()
        if isinstance(value, float)
    ]
    return ", ".join(shown) or "trained"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


@contextlib.contextmanager
def _signals(running: _Sweep) -> Iterator[None]:
    """SIGTERM and Ctrl-C let the workers save; Ctrl-C once more ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        if running.stopped and number == signal.SIGINT:
            running.kill()
            raise KeyboardInterrupt
        running.stop(number)

    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
