"""The numbers of training steps, from the devices to the log, one step late."""

import collections
import math
import time
from collections.abc import Mapping
from typing import Any

import jax

from rm_jax.data.loader import StepBatch
from rm_jax.progress import Progress
from rm_jax.writer import RunWriter


class TrainingError(RuntimeError):
    """Training cannot go on: names the step and why."""


class StepLog:
    """Means over the steps since the last line, written one step behind the devices.

    `window` is what has not been written yet; it goes into the checkpoint, so that a
    continued run writes the same line.
    """

    LATEST = ("learning_rate", "skips", "skips_in_row")  # not averaged

    def __init__(
        self,
        config: Any,
        writer: RunWriter,
        progress: Progress,
        every: int,
        window: dict[str, list[float]],
        total: int,
    ):
        self.config, self.writer, self.progress = config, writer, progress
        self.every, self.total = every, total
        self.window, self.pending = window, None
        self.clock = time.monotonic()
        self.done, self.whole = collections.Counter(), collections.Counter()

    def add(self, step: int, values: Mapping[str, Any], batch: StepBatch) -> None:
        """Takes a step that is still being computed; writes the one before."""
        self.flush()
        self.pending = (step, values, batch)

    def flush(self) -> None:
        """Waits for the newest step and takes its numbers."""
        if self.pending is None:
            return
        (step, values, batch), self.pending = self.pending, None
        values = jax.device_get(values)
        sums = {k: values.pop(k) for k in [k for k in values if "/" in k]}
        values = {k: float(v) for k, v in values.items()}
        for name in ("examples", "pairs", "tokens", "size"):
            self.done[name] += getattr(batch, name)
            self.whole[name] += getattr(batch, name)
        for name, value in values.items():
            total, n = self.window.get(name, (0.0, 0))
            self.window[name] = [total + value, n + 1]
        for name, (value, count) in sums.items():  # of sources: a step may have none
            total, n = self.window.get(name, (0.0, 0.0))
            self.window[name] = [total + float(value), n + float(count)]
        if step % self.every == 0:
            self._write(step, values, batch)
        _refuse(self.config, step, values, self.total)

    def layout(self, programs: int) -> str:
        """How the examples of this process's steps were laid out."""
        n = self.whole
        return (
            f"packing: {n['tokens'] / n['examples']:.0f} tokens an example, "
            f"{1 - n['tokens'] / n['size']:.1%} padding, {programs} programs"
        )

    def _write(self, step: int, values: dict[str, float], batch: StepBatch) -> None:
        means = {name: total / n for name, (total, n) in self.window.items() if n}
        means |= {name: values[name] for name in self.LATEST}
        self.window.clear()
        self.writer.write_metrics(step, {f"train/{k}": v for k, v in means.items()})
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        timing = {
            "seconds": seconds,
            **{f"{name}_per_s": n / seconds for name, n in self.done.items()},
            "padding": 1 - self.done["tokens"] / self.done["size"],
            "chunks": len(batch.chunks),
        }
        self.writer.write_timing(step, timing)
        self.done.clear()
        shown = {"loss": means["loss"], "accuracy": means["accuracy"]}
        self.progress.update(step, shown | {"pairs/s": timing["pairs_per_s"]})


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
