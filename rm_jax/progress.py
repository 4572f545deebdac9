"""Progress of a run: a bar on a terminal, a line now and then anywhere else.

>>> import sys
>>> with Progress(10, 0, sys.stdout) as progress:
...     progress.say("compiling")
...     progress.update(10, {"loss": 0.5})
compiling
step 10/10 (100%) | loss 0.500
"""

import time
from collections.abc import Callable, Mapping
from typing import TextIO


class Progress:
    """Shows step, ETA and the last numbers; use as a context manager.

    The ETA is (steps left) x (mean seconds a step since the first update), so that
    compilation, which comes before the first update, does not count.

    Args:
      total_steps: steps of the whole run.
      start_step: steps done before (a resumed run).
      stream: a bar if it is a terminal, else plain lines.
      active: False shows nothing at all.
      every: seconds between plain lines; the last step always has one.
      clock: seconds, rising; tests put their own.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        stream: TextIO,
        *,
        active: bool = True,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._clock = total_steps, clock
        self._first: tuple[int, float] | None = None
        self._values: dict[str, float] = {}
        if not active:
            self._view: _Silent = _Silent()
        elif stream.isatty():
            self._view = _Bar(total_steps, start_step, stream)
        else:
            self._view = _Lines(total_steps, stream, every, clock)

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Says that `step` steps are done.

        Args:
          step: steps done, those before the start included.
          values: name -> number to show from now on, e.g. {"loss": .6, "pairs/s": 140}.
        """
        self._values.update(values or {})
        now = self._clock()
        self._first = self._first or (step, now)
        parts = [f"{name} {_short(value)}" for name, value in self._values.items()]
        done, seconds = step - self._first[0], now - self._first[1]
        if done > 0 and step < self._total:
            parts.append(f"eta {_clock_text(seconds / done * (self._total - step))}")
        self._view.show(step, ", ".join(parts))

    def say(self, line: str) -> None:
        """Prints a line of its own, above the bar."""
        self._view.say(line)

    def close(self) -> None:
        """Leaves the bar as it is and goes to the next line."""
        self._view.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Silent:
    def show(self, step: int, status: str) -> None: ...

    def say(self, line: str) -> None: ...

    def close(self) -> None: ...


class _Bar(_Silent):
    def __init__(self, total: int, start: int, stream: TextIO):
        import tqdm

        self._stream = stream
        self._bar = tqdm.tqdm(
            total=total,
            initial=start,
            file=stream,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}",
        )

    def show(self, step: int, status: str) -> None:
        self._bar.set_postfix_str(status, refresh=False)
        self._bar.update(step - self._bar.n)

    def say(self, line: str) -> None:
        self._bar.write(line, file=self._stream)

    def close(self) -> None:
        self._bar.close()


class _Lines(_Silent):
    def __init__(
        self, total: int, stream: TextIO, every: float, clock: Callable[[], float]
    ):
        self._total, self._stream, self._every = total, stream, every
        self._clock, self._next = clock, clock() + every

    def show(self, step: int, status: str) -> None:
        if self._clock() < self._next and step < self._total:
            return
        self._next = self._clock() + self._every
        share = step / self._total if self._total else 1.0
        self.say(f"step {step}/{self._total} ({share:.0%}) | {status}")

    def say(self, line: str) -> None:
        # Flushed: such a stream is a pipe or a file that someone is watching.
        print(line, file=self._stream, flush=True)


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
