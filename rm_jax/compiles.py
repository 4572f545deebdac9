"""What jax compiles: how many programs, for how long, and how many a cache spared.

>>> before = compiled()
>>> compiled().programs - before.programs
0
"""

import os
from typing import NamedTuple

import jax

from rm_jax import backend, store

BACKEND = "/jax/core/compile/backend_compile_duration"  # built, or read from the cache
STAGES = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    BACKEND,
)
HIT = "/jax/compilation_cache/cache_hits"


class Compiled(NamedTuple):
    """Everything compiled in this process since the first call of `compiled`.

    Attributes:
      programs: made ready to run, from the cache or not.
      hits: of these, read from the persistent cache.
      seconds: spent tracing, lowering, compiling and reading the cache.
    """

    programs: int
    hits: int
    seconds: float


def compiled() -> Compiled:
    """The counts so far; differences between two calls are what is of interest."""
    if not _listener.on:
        _listener.on = True
        jax.monitoring.register_event_time_span_listener(_listener.span)
        jax.monitoring.register_event_listener(_listener.event)
    return Compiled(_listener.programs, _listener.hits, _listener.seconds)


class _Listener:
    """One for the process, never taken off: jax tells it of every compilation."""

    def __init__(self) -> None:
        self.on, self.programs, self.hits, self.seconds = False, 0, 0, 0.0
        self._spans: list[tuple[float, float]] = []

    def event(self, name: str, **_: object) -> None:
        self.hits += name == HIT

    def span(self, name: str, start: float, end: float, **_: object) -> None:
        if name not in STAGES:
            return
        self.programs += name == BACKEND
        # A traced function traces those it calls, and they end first: what lies inside
        # this span has been counted and is taken off again.
        while self._spans and self._spans[-1][0] >= start:
            a, b = self._spans.pop()
            self.seconds -= b - a
        self._spans.append((start, max(start, end)))
        self.seconds += max(0.0, end - start)
        del self._spans[:-100]


_listener = _Listener()
_ours = ""  # the folder that `use_cache` set, "" before


def use_cache(folder: str) -> str:
    """Keeps compiled programs in a folder, so that the next process need not compile.

    A folder that jax was given otherwise (JAX_COMPILATION_CACHE_DIR) stays. jax keeps
    what it was told for the life of the process.

    Args:
      folder: local, ~ is the home, or a URL; "" sets none.

    Returns:
      The folder in use, "" for none.
    """
    global _ours
    given = jax.config.jax_compilation_cache_dir or ""
    if given != _ours:
        return given
    if folder and not store.is_url(folder):
        folder = os.path.abspath(os.path.expanduser(folder))
    if folder != _ours:
        backend.set_compile_cache(folder)
        _ours = folder
    return folder
