"""Where the workers of a sweep run.

A worker is `rm-jax worker`, a process that trains one group of units, see
`worker.words`; what it says goes to the end of `worker.log_file`.
"""

import signal
from collections.abc import Callable
from typing import Protocol

from rm_jax.launch.local import Local
from rm_jax.launch.worker import Group


class Backend(Protocol):
    """Starts workers and tells how they ended."""

    workers: int  # at a time

    @property
    def free(self) -> bool:
        """Whether another worker may start."""

    @property
    def busy(self) -> bool:
        """Whether a worker runs."""

    def start(self, group: Group) -> None:
        """Starts a worker."""

    def ended(self, within: float) -> list[tuple[Group, int]]:
        """Groups whose worker ended, and its exit code; none within so many seconds."""

    def send(self, number: signal.Signals) -> None:
        """A signal for every worker: SIGTERM to save and end, SIGKILL to end."""


# Name -> what makes one of (root of the sweep, workers at a time or 0 for its default).
BACKENDS: dict[str, Callable[[str, int], Backend]] = {"local": Local}
