"""The numbers of training steps, from the devices to the log, one step late."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rm_jax.data.loader import StepBatch
from rm_jax.data.pack import Shape
from rm_jax.example_losses import ExampleLosses
from rm_jax.flops import peak_flops
from rm_jax.goodput import Ledger
from rm_jax.progress import Progress
from rm_jax.writer import RunWriter


class TrainingError(RuntimeError):
    """Training cannot go on: names the step and why."""


Window = dict[str, list[float]]  # name -> [total, how many]


class Outlet(NamedTuple):
    """Where the numbers of one run go.

    Attributes:
      workdir: of the run.
      writer: takes its lines.
      losses: takes the losses of its examples.
    """

    workdir: str
    writer: RunWriter
    losses: ExampleLosses


class StepLog:
    """Means over the steps since the last line, written one step behind the devices.

    Args:
      config: of the run, or of the first of those that train together.
      outlets: one a run.
      progress: shows the numbers.
      ledger: of the time of this process.
      flops: model FLOPs of a step, of one member.
      every: steps between lines.
      start: steps done before this process.
      total: steps of the whole run.
      windows: of each run what has not been written yet; it goes into the checkpoint,
        so that a continued run writes the same line.
      stopped: workdirs of runs that stopped before.
    """

    LATEST = ("learning_rate", "skips", "skips_in_row")  # not averaged
    COUNTED = ("examples", "pairs", "tokens", "size")  # of a StepBatch

    def __init__(
        self,
        config: Any,
        outlets: Sequence[Outlet],
        progress: Progress,
        ledger: Ledger,
        flops: Callable[[StepBatch], float],
        *,
        every: int,
        start: int,
        total: int,
        windows: Sequence[Window],
        stopped: Mapping[str, str],
    ):
        self.config, self.outlets, self.progress = config, outlets, progress
        self.ledger, self.flops, self.stopped = ledger, flops, dict(stopped)
        self.every, self.start, self.total = every, start, total
        self.windows = windows
        self.pending: tuple[int, Mapping[str, Any], StepBatch] | None = None
        self.done, self.whole = collections.Counter(), collections.Counter()
        self.timed = start  # the step that timing.jsonl has reached
        self.once: dict[str, float] = {}  # goes into the next line of it
        self.peak = peak_flops([d.device_kind for d in jax.devices()])
        self.programs, self.shapes = ledger.programs("steps"), set[Shape]()

    def add(self, step: int, values: Mapping[str, Any], batch: StepBatch) -> None:
        """Takes a step that is still being computed; writes the one before."""
        self._watch_compiles(step, batch)
        self.flush()
        self.pending = (step, values, batch)
        if step == self.start + 1:  # the only one that the host waits for at once
            jax.block_until_ready(values)
            seconds, compiling = self.ledger.since_start()
            self.once = {"time_to_first_step": seconds, "compiling_before": compiling}

    def flush(self) -> None:
        """Waits for the newest step and takes its numbers."""
        if self.pending is None:
            return
        (step, values, batch), self.pending = self.pending, None
        values = jax.device_get(values)
        each = values.pop("example_losses", [])
        ids = [labels.ids for _, labels in batch.chunks]
        for name in self.COUNTED:
            self.done[name] += getattr(batch, name)
            self.whole[name] += getattr(batch, name)
        self.done["flops"] += self.flops(batch)
        self.done["chunks"] += len(batch.chunks)
        of_runs = [values] if len(self.outlets) == 1 else _parted(values)
        latest = []
        for r, own in enumerate(of_runs):
            pick = (lambda x, r=r: x[r]) if len(of_runs) > 1 else (lambda x: x)
            self.outlets[r].losses.add(step, [*map(pick, ids)], [*map(pick, each)])
            latest.append(_average(self.windows[r], own))
        if step % self.every == 0:
            self._write(step, latest)
        for outlet, own in zip(self.outlets, latest, strict=True):
            self._refuse(outlet, step, own)

    def write_timing(self, step: int) -> dict[str, float]:
        """Writes the line of timing.jsonl for the steps since the last one."""
        timing = {"from": self.timed, **self.once, **self.ledger.take()}
        steps = step - self.timed
        self.timed, self.once = step, {}
        done, self.done = self.done, collections.Counter()
        # Rates are those of steps: of the time that they took, or waited for a batch.
        seconds = timing.get("time/steps", 0.0) + timing.get("time/waiting", 0.0)
        flops = done["flops"] / seconds
        timing |= {
            "seconds": seconds,
            **{f"{name}_per_s": done[name] / seconds for name in self.COUNTED},
            "padding": 1 - done["tokens"] / done["size"],
            "chunks": done["chunks"] / steps,
            "model_flops_per_s": flops,
        }
        if self.peak is not None:
            timing["mfu"] = flops / self.peak
        for outlet in self.outlets:
            outlet.writer.write_timing(step, timing)
        return timing

    def close(self, step: int) -> None:
        """Times the steps that no line has yet; their means wait in the checkpoint."""
        if step > self.timed:
            self.write_timing(step)

    def layout(self, programs: int, unit: str = "tokens") -> str:
        """How the examples of this process's steps were laid out."""
        n = self.whole
        return (
            f"packing: {n['tokens'] / n['examples']:.0f} {unit} an example, "
            f"{1 - n['tokens'] / n['size']:.1%} padding, {programs} programs"
        )

    def _write(self, step: int, latest: Sequence[Mapping[str, float]]) -> None:
        shown = []
        for outlet, window, own in zip(self.outlets, self.windows, latest, strict=True):
            means = {name: total / n for name, (total, n) in window.items() if n}
            means |= {name: own[name] for name in self.LATEST}
            window.clear()
            named = {f"train/{k}": v for k, v in means.items()}
            if outlet.workdir not in self.stopped:
                outlet.writer.write_metrics(step, named)
                shown.append(means)
        rate = self.write_timing(step)["pairs_per_s"]
        mean = lambda name: sum(means[name] for means in shown) / max(len(shown), 1)
        shown_now = {name: mean(name) for name in ("loss", "accuracy")}
        self.progress.update(step, shown_now | {"pairs/s": rate})

    def _watch_compiles(self, step: int, batch: StepBatch) -> None:
        """Says so when a step after the first one had to wait for a compilation."""
        new = self.ledger.programs("steps") - self.programs
        self.programs += new
        shapes = sorted(set(batch.shapes) - self.shapes)
        self.shapes.update(shapes)
        if not new or step == self.start + 1:
            return
        names = [f"{shape.rows} x {shape.length}" for shape in shapes]
        why = (
            f"its first chunk of {', '.join(names)}" if names else "no new chunk shape"
        )
        self.progress.say(f"step {step}: {new} programs compiled late, for {why}")
        for outlet in self.outlets:
            outlet.writer.write_event(step, "compiled_late", programs=new, shapes=names)

    def _refuse(self, outlet: Outlet, step: int, values: Mapping[str, float]) -> None:
        """Stops a run whose loss is not finite, by policy; its checkpoints are sound.

        Of runs that train together the others go on; what is left of it is not logged.
        """
        why = _refusal(self.config, step, values, self.total)
        if not why or outlet.workdir in self.stopped:
            return
        self.stopped[outlet.workdir] = why
        if len(self.stopped) == len(self.outlets):
            raise TrainingError(why)
        self.progress.say(f"{outlet.workdir} stops: {why}")
        outlet.writer.write_event(step, "stopped", why=why)


def _refusal(config: Any, step: int, values: Mapping[str, float], total: int) -> str:
    """Why a run may not go on; "" where it may."""
    finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
    stop_now = config.train.on_nonfinite == "stop" and not finite
    # A run that is shorter than max_skips and skips every step learns nothing, either.
    limit = 1 if stop_now else min(config.train.max_skips, total)
    if values["skips_in_row"] < limit:
        return ""
    return (
        f"step {step}: the loss is {values['loss']}, its gradient norm "
        f"{values['grad_norm']}; {values['skips_in_row']:.0f} steps in a row were "
        f"skipped (config.train.on_nonfinite = {config.train.on_nonfinite!r}, "
        f"at most {limit} may be): lower the learning rate, or "
        f"look at the rows with `rm-jax inspect RUN --step {step - 1}`"
    )


def _parted(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The numbers of each run of those that train together."""
    n = len(values["loss"])
    return [{name: value[i] for name, value in values.items()} for i in range(n)]


def _average(window: Window, values: Mapping[str, Any]) -> dict[str, float]:
    """Adds a step to the window; returns its numbers but for those of sources."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if "/" in name:  # (sum, count) of a source: a step may have none of it
            count = np.reshape(value, (-1, 2)).sum(0)
            _add(window, name, *map(float, count))
        else:
            numbers |= _of_members(name, np.asarray(value))
    for name, value in numbers.items():
        _add(window, name, value, 1)
    return numbers


def _add(window: Window, name: str, value: float, count: float) -> None:
    total, n = window.get(name, (0.0, 0))
    window[name] = [total + value, n + count]


def _of_members(name: str, value: np.ndarray) -> dict[str, float]:
    """A number of an ensemble: the mean, of counts the largest; some of each member."""
    if value.ndim == 0:
        return {name: float(value)}
    whole = value.max() if name.startswith("skips") else value.mean()
    each = enumerate(value) if name in ("loss", "accuracy") else ()
    return {name: float(whole), **{f"{name}_of_{i}": float(v) for i, v in each}}
