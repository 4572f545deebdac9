"""What a run writes while it trains: metrics, timing, events, TensorBoard.

>>> import tempfile
>>> with RunWriter(tempfile.mkdtemp(), step=-1, tensorboard=False) as writer:
...     writer.write_metrics(1, {"train/loss": 0.5})
"""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from rm_jax import store
from rm_jax.eventfile import EventFile

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
    """Writes metrics.jsonl, timing.jsonl, events.jsonl and TensorBoard files of a run.

    Lines go to disk as they are written. metrics.jsonl holds deterministic values only,
    so that a run killed at any moment and continued leaves the same bytes as one that
    was not disturbed. For that the caller writes every line of step s, then calls
    `flush`, then saves the checkpoint of s; and writes no line of step s afterwards.

    Args:
      workdir: the run directory, made when missing.
      step: the restored step, -1 when nothing was restored. Lines of metrics.jsonl of
        later steps and a half-written last line are removed; the other files are kept.
      tensorboard: also write workdir/tensorboard; needs the extra `report`.
      active: False on every process but the first: nothing is written.
      evaluated: False where the evaluation of `step` will be written again.

    Raises:
      ValueError: metrics.jsonl holds a line that is not one of ours.
      ImportError: `tensorboard` without tensorboardX.
    """

    def __init__(
        self,
        workdir: str,
        *,
        step: int,
        tensorboard: bool,
        active: bool = True,
        evaluated: bool = True,
    ):
        self._sinks: tuple[_Sink, ...] = ()
        if active:
            self._sinks += (_Files(workdir, step, evaluated),)
        if active and tensorboard:
            self._sinks += (_TensorBoard(workdir, step),)

    def write_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line of deterministic numbers, {"step": n, name: number, ...}.

        Raises:
          ValueError: not a number, a metric called "step", or a step before the last.
        """
        values = _numbers(values)
        for sink in self._sinks:
            sink.metrics(step, values)

    def write_timing(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line of wall-clock numbers; "seconds" are those since the last one."""
        values = _numbers(values)
        for sink in self._sinks:
            sink.timing(step, values)

    def write_event(self, step: int, event: str, /, **fields: Any) -> None:
        """Adds a line {"step", "event", ...fields}: something that happened once.

        A field `step` stands for the step: what happened is about that one.
        """
        line = to_json(fields, event)
        for sink in self._sinks:
            sink.event(step, event, line)

    def alarm(self, step: int, name: str, message: str) -> None:
        """Adds the event "alarm"; the report shows its message on top."""
        self.write_event(step, "alarm", name=name, message=message)

    def add_histogram(
        self, step: int, name: str, values: Float[np.ndarray, "..."]
    ) -> None:
        """Adds a histogram to TensorBoard; values that are no number are counted."""
        values = np.asarray(values, np.float64).ravel()
        for sink in self._sinks:
            sink.histogram(step, name, values)

    def flush(self) -> None:
        """Returns when every line can be read by another process.

        TensorBoard's files are written by a thread and complete after `close`.
        """
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Flushes and closes."""
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


class _Sink:
    """Takes everything and does nothing; each sink overrides what it wants."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def timing(self, step: int, values: Mapping[str, float]) -> None: ...

    def event(self, step: int, event: str, fields: Mapping[str, Any]) -> None: ...

    def histogram(self, step: int, name: str, values: np.ndarray) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class _Files(_Sink):
    """The three .jsonl files; every line is on disk when the call returns."""

    def __init__(self, workdir: str, step: int, evaluated: bool):
        store.makedirs(workdir)
        self._path = {
            name: store.join(workdir, name) for name in (METRICS, TIMING, EVENTS)
        }
        for name, path in self._path.items():
            _repair(path, step if name == METRICS else math.inf, evaluated)
        self._last = step

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if step < self._last:
            raise ValueError(
                f"metrics of step {step} come after those of step {self._last}: lines "
                "are written in the order of their steps, or a restart cannot cut them"
            )
        self._last = step
        line = {"step": int(step)} | to_json(dict(sorted(values.items())), "metrics")
        store.append_lines(self._path[METRICS], [json.dumps(line)])

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        line = {"step": int(step)} | to_json(values, "timing")
        store.append_lines(self._path[TIMING], [json.dumps(line)])

    def event(self, step: int, event: str, fields: Mapping[str, Any]) -> None:
        line = {"step": int(step), "event": event} | dict(fields)
        store.append_lines(self._path[EVENTS], [json.dumps(line)])


class _TensorBoard(_Sink):
    """Scalars and histograms; TensorBoard hides what was logged past the restart."""

    def __init__(self, workdir: str, step: int):
        try:
            import tensorboardX  # noqa: F401  EventFile wants it
        except ImportError as error:
            raise ImportError(
                "config.train.tensorboard needs tensorboardX: pip install "
                "'rm_jax[report]', or --config.train.tensorboard=False"
            ) from error
        self._folder = store.join(workdir, "tensorboard")
        self._local = self._folder
        if store.is_url(workdir):  # event files only grow: they are copied when flushed
            self._local = tempfile.mkdtemp(prefix="rm_jax.tensorboard.")
        store.makedirs(self._local)
        self._writer = EventFile(self._local, step + 1)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        self.metrics(step, {f"timing/{name}": v for name, v in values.items()})

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        finite = values[np.isfinite(values)]
        if finite.size:
            self._writer.add_histogram(name, finite, step)
        if finite.size < values.size:
            self._writer.add_scalar(
                f"{name}/nonfinite", values.size - finite.size, step
            )

    def flush(self) -> None:
        self._writer.flush()
        self._copy()

    def close(self) -> None:
        self._writer.close()
        self._copy()
        if self._local != self._folder:
            shutil.rmtree(self._local, ignore_errors=True)

    def _copy(self) -> None:
        if self._local != self._folder:
            store.upload(self._local, self._folder)


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


def _repair(path: str, step: float, evaluated: bool) -> None:
    """Cuts the file after the lines of steps up to `step`; a torn last one goes too.

    Where the evaluation of `step` is still to come, a line of it goes as well.
    """
    if not store.exists(path):
        return
    text = store.read_text(path)
    end = 0
    for line in text[: text.rfind("\n") + 1].splitlines(keepends=True):
        at = _step(path, line)
        if at > step or (at == step and not evaluated and '"eval/' in line):
            break
        end += len(line)
    if end < len(text):
        store.truncate(path, len(text[:end].encode()))


def _step(path: str, line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{path}: this line is not an object with a step: {line!r:.80}; move the "
            "file away to start a new one"
        ) from None
