"""The numbers of training steps, from the devices to the log, one step late."""

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rm_jax.data.loader import StepBatch
from rm_jax.data.pack import Shape
from rm_jax.example_losses import ExampleLosses
from rm_jax.flops import peak_flops
from rm_jax.goodput import Ledger
from rm_jax.progress import Progress
from rm_jax.writer import RunWriter


class TrainingError(RuntimeError):
    """Training cannot go on: names the step and why."""


class StepLog:
    """Means over the steps since the last line, written one step behind the devices.

    Args:
      config: of the run.
      writer: takes the lines.
      progress: shows them.
      ledger: of the time of this process.
      losses: takes the losses of the examples.
      flops: model FLOPs of a step.
      every: steps between lines.
      start: steps done before this process.
      total: steps of the whole run.
      window: what has not been written yet; it goes into the checkpoint, so that a
        continued run writes the same line.
    """

    LATEST = ("learning_rate", "skips", "skips_in_row")  # not averaged
    COUNTED = ("examples", "pairs", "tokens", "size")  # of a StepBatch

    def __init__(
        self,
        config: Any,
        writer: RunWriter,
        progress: Progress,
        ledger: Ledger,
        losses: ExampleLosses,
        flops: Callable[[StepBatch], float],
        *,
        every: int,
        start: int,
        total: int,
        window: dict[str, list[float]],
    ):
        self.config, self.writer, self.progress = config, writer, progress
        self.ledger, self.losses, self.flops = ledger, losses, flops
        self.every, self.start, self.total, self.window = every, start, total, window
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
        self.losses.add(step, [labels.ids for _, labels in batch.chunks], each)
        values = self._average(values)
        for name in self.COUNTED:
            self.done[name] += getattr(batch, name)
            self.whole[name] += getattr(batch, name)
        self.done["flops"] += self.flops(batch)
        self.done["chunks"] += len(batch.chunks)
        if step % self.every == 0:
            self._write(step, values)
        _refuse(self.config, step, values, self.total)

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
        self.writer.write_timing(step, timing)
        return timing

    def close(self, step: int) -> None:
        """Times the steps that no line has yet; their means wait in the checkpoint."""
        if step > self.timed:
            self.write_timing(step)

    def layout(self, programs: int) -> str:
        """How the examples of this process's steps were laid out."""
        n = self.whole
        return (
            f"packing: {n['tokens'] / n['examples']:.0f} tokens an example, "
            f"{1 - n['tokens'] / n['size']:.1%} padding, {programs} programs"
        )

    def _average(self, values: dict[str, Any]) -> dict[str, float]:
        """Adds a step to the window; returns its numbers but for those of sources."""
        sums = {k: values.pop(k) for k in [k for k in values if "/" in k]}
        values = {k: float(v) for k, v in values.items()}
        for name, value in values.items():
            total, n = self.window.get(name, (0.0, 0))
            self.window[name] = [total + value, n + 1]
        for name, (value, count) in sums.items():  # of sources: a step may have none
            total, n = self.window.get(name, (0.0, 0.0))
            self.window[name] = [total + float(value), n + float(count)]
        return values

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        means = {name: total / n for name, (total, n) in self.window.items() if n}
        means |= {name: values[name] for name in self.LATEST}
        self.window.clear()
        self.writer.write_metrics(step, {f"train/{k}": v for k, v in means.items()})
        rate = self.write_timing(step)["pairs_per_s"]
        shown = {"loss": means["loss"], "accuracy": means["accuracy"]}
        self.progress.update(step, shown | {"pairs/s": rate})

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
        self.writer.write_event(step, "compiled_late", programs=new, shapes=names)


def _refuse(config: Any, step: int, values: Mapping[str, float], total: int) -> None:
    """Stops a run whose loss is not finite, by policy; its checkpoints are sound."""
    finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
    stop_now = config.train.on_nonfinite == "stop" and not finite
    # A run that is shorter than max_skips and skips every step learns nothing, either.
    limit = 1 if stop_now else min(config.train.max_skips, total)
    if values["skips_in_row"] >= limit:
        raise TrainingError(
            f"step {step}: the loss is {values['loss']}, its gradient norm "
            f"{values['grad_norm']}; {values['skips_in_row']:.0f} steps in a row were "
            f"skipped (config.train.on_nonfinite = {config.train.on_nonfinite!r}, "
            f"at most {limit} may be): lower the learning rate, or "
            f"look at the rows with `rm-jax inspect RUN --step {step - 1}`"
        )
