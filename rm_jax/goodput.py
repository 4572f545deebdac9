"""Where the time of a run goes: into its steps, or into all that lies around them.

>>> done = {"step": 4, "from": 0, "time/steps": 6.0, "time/startup": 2.0}
>>> again = {"step": 4, "from": 2, "time/steps": 2.0}
>>> summary([done, again]).goodput  # of 10 s: 8 in steps, 3 of them done twice
0.5
"""

import datetime
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rm_jax.compiles import Compiled, compiled

# What time goes to. `waiting` is the host's, for the loader: the devices may still be
# busy with the step before, so it is the most that they can have stood still.
KINDS = ("startup", "compile", "steps", "waiting", "evaluation", "saving")


class Ledger:
    """Splits the seconds of this process by KINDS; each second belongs to one.

    Args:
      clock: seconds, rising; tests put their own.
      compiling: what has been compiled; its seconds are `compile`, whenever they fell.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        compiling: Callable[[], Compiled] = compiled,
    ):
        self._clock, self._compiling = clock, compiling
        self._kind = "startup"
        self._began = self._last = clock()
        self._first = self._taken = self._seen = compiling()
        self._spent: Counter[str] = Counter()
        self._programs: Counter[str] = Counter()

    def enter(self, kind: str) -> None:
        """From now on, time is of this kind."""
        self._credit()
        self._kind = kind

    def take(self) -> dict[str, float]:
        """What a line of timing.jsonl says of the time since the one before.

        "time/KIND" in seconds, kinds without any left out; `goodput`, the share of
        steps in it; `compiles`, programs made ready, `cache_hits` of them from a cache.
        """
        self._credit()
        spent, self._spent = self._spent, Counter()
        before, self._taken = self._taken, self._seen
        return {f"time/{kind}": spent[kind] for kind in KINDS if spent[kind]} | {
            "goodput": spent["steps"] / max(sum(spent.values()), 1e-9),
            "compiles": self._seen.programs - before.programs,
            "cache_hits": self._seen.hits - before.hits,
        }

    def since_start(self) -> tuple[float, float]:
        """Seconds since the ledger was opened; of these, those spent compiling."""
        self._credit()
        return self._last - self._began, self._seen.seconds - self._first.seconds

    def programs(self, kind: str) -> int:
        """Programs made ready so far in the time of one kind."""
        self._credit()
        return self._programs[kind]

    def _credit(self) -> None:
        now, seen = self._clock(), self._compiling()
        passed = now - self._last
        compiling = min(passed, max(0.0, seen.seconds - self._seen.seconds))
        self._spent["compile"] += compiling
        self._spent[self._kind] += passed - compiling
        self._programs[self._kind] += seen.programs - self._seen.programs
        self._last, self._seen = now, seen


class Summary(NamedTuple):
    """The time of a whole run, over all its starts.

    Attributes:
      seconds: KIND -> seconds.
      redone: seconds of steps that a restart had to do again.
      flops: model FLOPs of the steps.
      mfu: model FLOPs / what the devices could have done in their steps; None where
        their peak is not known.
    """

    seconds: dict[str, float]
    redone: float
    flops: float
    mfu: float | None

    @property
    def total(self) -> float:
        """Seconds in which a process of the run was there."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the time in steps that were not done again."""
        return (self.seconds["steps"] - self.redone) / max(self.total, 1e-9)

    def shares(self) -> dict[str, float]:
        """ "run/KIND", "run/redone" and "run/goodput" -> share of the total."""
        parts = self.seconds | {"redone": self.redone}
        shares = {f"run/{k}": s / max(self.total, 1e-9) for k, s in parts.items()}
        return shares | {"run/goodput": self.goodput}

    def line(self) -> str:
        """For reading, at the end of a run."""
        took = datetime.timedelta(seconds=round(self.total))
        parts = self.seconds | {"steps done again": self.redone}
        share = lambda s: f"{s / max(self.total, 1e-9):.1%}"
        text = f"time {took}: goodput {self.goodput:.1%}; " + ", ".join(
            f"{kind} {share(s)}" for kind, s in parts.items()
        )
        busy = self.seconds["steps"] + self.seconds["waiting"]
        if self.flops and busy:
            text += f"; {self.flops / busy:.3g} model FLOP/s"
        return text if self.mfu is None else f"{text}, MFU {self.mfu:.1%}"


def summary(lines: Sequence[Mapping[str, float]]) -> Summary:
    """Adds up the lines of timing.jsonl, which survive restarts.

    A line covers the steps after `from` up to `step`. A later line that begins before
    an earlier one ends says that those steps were done again. What was not written yet
    when a process was killed is not in it, nor is the time between two processes.

    Args:
      lines: in the order they were written.
    """
    seconds = {k: sum(n.get(f"time/{k}", 0.0) for n in lines) for k in KINDS}
    redone, restart = 0.0, float("inf")
    for line in reversed(lines):
        begin, end = line.get("from", line["step"]), line["step"]
        again = end - max(begin, restart)
        if again > 0:
            redone += line.get("time/steps", 0.0) * again / (end - begin)
        restart = min(restart, begin)
    known = [n for n in lines if "mfu" in n]
    weight = sum(n["seconds"] for n in known)
    flops = sum(n.get("model_flops_per_s", 0.0) * n.get("seconds", 0.0) for n in lines)
    mfu = sum(n["mfu"] * n["seconds"] for n in known) / weight if weight else None
    return Summary(seconds, redone, flops, mfu)
