"""A trace of some steps, for TensorBoard's profile plug-in or xprof, on request."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax

from rm_jax import store
from rm_jax.config import ConfigError
from rm_jax.limits import parse_span


class Profiler(contextlib.AbstractContextManager):
    """Traces steps START ... STOP - 1, counted from 0, into workdir/profile.

    With them goes what falls between them: evaluations, saves. A run that is continued
    amid them traces those that are left.

    Args:
      span: "START:STOP"; "" traces nothing.
      workdir: the run directory; for a URL the trace is made here and then copied.
      total: steps of the whole run.
      active: False on every process but the first.
      say: prints a line: a trace that cannot be written is said, and the run goes on.

    Raises:
      ConfigError: the run ends before STOP, or a file is in the way of the trace.
    """

    def __init__(
        self,
        span: str,
        workdir: str,
        total: int,
        active: bool = True,
        say: Callable[[str], None] = lambda line: None,
    ):
        self._say = say
        self._span = parse_span(span) if active else range(0)
        if span and parse_span(span).stop > total:
            raise ConfigError(
                f"config.train.profile = {span!r}: the run ends at step {total}"
            )
        self._folder = store.join(workdir, "profile")
        if self._span and store.exists(self._folder) and not store.is_dir(self._folder):
            raise ConfigError(
                f"{self._folder} is a file, config.train.profile = {span!r} wants a "
                "folder of this name: move the file away"
            )
        self._local = ""  # where the trace is being written, "" while there is none

    def turn(self, step: int, state: Any) -> None:
        """Called before each step, with the state so far: starts or ends the trace."""
        if not self._local and step in self._span:
            url = store.is_url(self._folder)
            self._local = tempfile.mkdtemp(prefix="rm_jax.") if url else self._folder
            with self._warned():
                jax.profiler.start_trace(self._local)
        elif self._local and step not in self._span:
            jax.block_until_ready(state)  # else the last steps are not in it yet
            self._end()

    def __exit__(self, *_: object) -> None:
        if self._local:
            self._end()

    def _end(self) -> None:
        local, self._local, self._span = self._local, "", range(0)
        with self._warned():
            jax.profiler.stop_trace()
            if local != self._folder:
                store.upload(local, self._folder)
        if local != self._folder:
            shutil.rmtree(local, ignore_errors=True)

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        """Says why there is no trace; there will be none in this process any more."""
        try:
            yield
        except Exception as error:
            self._local, self._span = "", range(0)
            why = " ".join(str(error).split())
            self._say(f"WARNING no trace in {self._folder}: {why:.300}")
