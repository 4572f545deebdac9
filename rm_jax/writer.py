"""What a run writes while it trains: metrics, timing, events, and copies elsewhere.

>>> import tempfile
>>> with RunWriter(tempfile.mkdtemp(), step=-1) as writer:
...     writer.write_metrics(1, {"train/loss": 0.5})
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from rm_jax import schemas, store
from rm_jax import sinks as sinks_module
from rm_jax.lines import (
    Cut,
    lines_after,
    lines_between,
    read_lines,
    repair,
    step_before,
)
from rm_jax.sinks import SINKS, Opening, Sink

METRICS, TIMING, EVENTS = "metrics.jsonl", "timing.jsonl", "events.jsonl"


def to_json(value: Any, name: str = "value") -> Any:
    """The value as JSON: arrays become lists; NaN, inf, -inf become text.

    JSON has no NaN and null would hide one; `float` reads "NaN", "Infinity" and
    "-Infinity" back. A finite float keeps every bit (`repr` round trip).

    Args:
      value: None, bool, number, text, array, or mappings and sequences of these.
      name: what to call it in an error.

    Raises:
      ValueError: the value, or a part of it, is none of these.
    """
    if isinstance(value, Mapping):
        return {str(k): to_json(v, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v, f"{name}[{i}]") for i, v in enumerate(value)]
    if hasattr(value, "tolist"):  # numpy and jax arrays and scalars
        return to_json(np.asarray(value).tolist(), name)
    if value is None or isinstance(value, bool | int | str):
        return value
    if not isinstance(value, float):
        raise ValueError(f"{name} is a {type(value).__name__}, which is not JSON")
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


class RunWriter:
    """Writes metrics.jsonl, timing.jsonl and events.jsonl of a run, and to its sinks.

    Lines go to disk as they are written. metrics.jsonl holds deterministic values only,
    so that a run killed at any moment and continued leaves the same bytes as one that
    was not disturbed. For that the caller writes every line of step s, then calls
    `flush`, then saves the checkpoint of s; and writes no line of step s afterwards.

    A sink that has nothing of the run and cannot be opened ends this start, before a
    step. One that fails later, or cannot be opened again, is given up: the event
    "sink_failed", one line, and the run goes on, because all is in the files. The next
    start that opens it sends it the lines that it lacks.

    Args:
      workdir: the run directory, made when missing.
      step: the restored step, -1 when nothing was restored. Lines of metrics.jsonl of
        later steps and a half-written last line are removed; the other files are kept.
      active: False on every process but the first: nothing is written.
      evaluated: False where the evaluation of `step` will be written again.
      size: bytes that metrics.jsonl had when `step` was saved, None where nobody knows.
        If it now has others up to there, lines were lost: the event "metrics_differ",
        one line, and the run goes on.
      sinks: name in sinks.SINKS -> project (True of a sink without projects); what is
        False or "" is off.
      config: of the run, for sinks that show it.
      say: prints a line.

    Attributes:
      size: bytes of metrics.jsonl; 0 on every process but the first.

    Raises:
      ValueError: metrics.jsonl holds a line that is not one of ours.
      ImportError: a sink without its package; names the extra.
      RuntimeError: a sink that has nothing of the run cannot be opened.
      SchemaError: sinks.json is of a newer rm_jax.
    """

    def __init__(
        self,
        workdir: str,
        *,
        step: int,
        active: bool = True,
        evaluated: bool = True,
        size: int | None = None,
        sinks: Mapping[str, str | bool] = {},
        config: Mapping[str, Any] = {},
        say: Callable[[str], None] = lambda line: None,
    ):
        self._active, self._say, self.size = active, say, 0
        self._workdir = workdir
        self._sinks: dict[str, Sink] = {}
        if not active:
            return
        store.makedirs(workdir)
        self._path = {
            name: store.join(workdir, name) for name in (METRICS, TIMING, EVENTS)
        }
        self.size, cut = repair(self._path[METRICS], step, evaluated)
        repair(self._path[EVENTS])
        repair(self._path[TIMING])
        self._last = step
        timed = max((n["step"] for n in read_lines(self._path[TIMING])), default=-1)
        for name, project in sinks.items():
            if project:
                opening = Opening(workdir, step, str(project), config, {}, timed)
                self._open(name, opening, cut)
        if size not in (None, self.size):
            self._differs(size)

    def write_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line of deterministic numbers, {"step": n, name: number, ...}.

        Raises:
          ValueError: not a number, a metric called "step", or a step before the last.
        """
        values = _numbers(values)
        if not self._active:
            return
        if step < self._last:
            raise ValueError(
                f"metrics of step {step} come after those of step {self._last}: lines "
                "are written in the order of their steps, or a restart cannot cut them"
            )
        self._last = step = int(step)
        line = to_json(dict(sorted(values.items())), "metrics")
        size = self._append(METRICS, {"step": step} | line)
        self._each(lambda sink: sink.metrics(step, values))
        self.size += size  # now, because a sink that just failed lacks this line

    def write_timing(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line of wall-clock numbers; "seconds" are those since the last one."""
        values, step = _numbers(values), int(step)
        self._append(TIMING, {"step": step} | to_json(values, "timing"))
        self._each(lambda sink: sink.timing(step, values))

    def write_event(self, step: int, event: str, /, **fields: Any) -> None:
        """Adds a line {"step", "event", ...fields}: something that happened once.

        A field `step` stands for the step: what happened is about that one.
        """
        line = {"step": int(step), "event": event} | to_json(fields, event)
        self._append(EVENTS, line)

    def alarm(self, step: int, name: str, message: str) -> None:
        """Adds the event "alarm"; the report shows its message on top."""
        self.write_event(step, "alarm", name=name, message=message)

    def add_histogram(
        self, step: int, name: str, values: Float[np.ndarray, "..."]
    ) -> None:
        """Adds a histogram to TensorBoard; values that are no number are counted."""
        values = np.asarray(values, np.float64).ravel()
        self._each(lambda sink: sink.histogram(step, name, values))

    def flush(self) -> None:
        """Returns when every line can be read by another process."""
        self._each(lambda sink: sink.flush())

    def close(self, failed: bool = False) -> None:
        """Flushes and closes; `failed` where the run ends by an error."""
        self._each(lambda sink: sink.close(failed))
        self._sinks.clear()

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close(failed=error[0] is not None)

    def _append(self, name: str, line: Mapping[str, Any]) -> int:
        """Writes the line; how many bytes were added, with its end."""
        if not self._active:
            return 0
        text = json.dumps(line)  # ASCII
        store.append_lines(self._path[name], [text])
        return len(text) + 1

    def _differs(self, size: int) -> None:
        """Says that the log is not what it was when the checkpoint was saved."""
        path = self._path[METRICS]
        self.write_event(
            self._last, "metrics_differ", file=path, bytes=self.size, saved=size
        )
        self._say(
            f"WARNING {path} has {self.size} bytes up to step {self._last}, it had "
            f"{size} when that step was saved: lines are lost or changed; the run goes "
            "on without them"
        )

    def _open(self, name: str, opening: Opening, cut: list[Cut]) -> None:
        """Opens a sink, and sends it what it lacks of the lines that are left."""
        had, late = sinks_module.had(name, self._workdir), []
        if had < math.inf:
            at = step_before(self._path[METRICS], int(had), cut)
            opening = opening._replace(step=min(opening.step, at), timed=at)
            late = self._late(int(had), at)
        sent: dict[int, set[str]] = {}
        for line in cut:
            if line.end <= had:
                sent.setdefault(line.step, set()).update(line.names)
        if late:  # or a kill amid them would leave a sink that seems to have all
            sinks_module.note_had(name, self._workdir, had)
        try:
            sink = SINKS[name](opening._replace(sent=sent))
            for step, values, timing in late:
                (sink.timing if timing else sink.metrics)(step, values)
        except (ImportError, schemas.SchemaError):
            raise
        except Exception as error:
            whole = cut[-1].end if cut else self.size
            sinks_module.note_had(name, self._workdir, min(had, whole))
            if had == 0:
                raise RuntimeError(f"config.train.{name}: {error}") from error
            self._give_up(name, error)
            return
        sinks_module.note_had(name, self._workdir, math.inf)
        if late:
            self._say(f"{name} is sent the {len(late)} lines that it lacks")
        self._sinks[name] = sink

    def _late(self, size: int, at: int) -> list[tuple[int, dict[str, float], bool]]:
        """(step, values, whether of timing) after so many bytes and after step `at`."""
        found = [(*line, False) for line in lines_after(self._path[METRICS], size)]
        timing = lines_between(self._path[TIMING], at, self._last)
        found += [(*line, True) for line in timing]
        return sorted(found, key=lambda line: line[0])

    def _each(self, call: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                call(sink)
            except Exception as error:  # of the network, a disk, a service
                del self._sinks[name]
                sinks_module.note_had(name, self._workdir, self.size)
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        why = f"{type(error).__name__}: {error}"
        self.write_event(max(self._last, 0), "sink_failed", sink=name, why=why)
        self._say(f"WARNING {name} failed and gets nothing more: {why:.300}")


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Python numbers out of numbers and arrays of one number."""
    out = {}
    for name, value in values.items():
        if name == "step":
            raise ValueError("a metric cannot be called 'step': every line has a step")
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "iufV":  # V: bfloat16
            raise ValueError(f"metric {name!r} is {value!r:.80}: want one number")
        number = array.item()
        out[name] = number if array.dtype.kind in "iu" else float(number)
    return out
