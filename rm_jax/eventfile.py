"""TensorBoard's event files, written by whoever calls.

tensorboardX's own SummaryWriter writes in a thread. A disk that is full ends the thread
with a traceback, and the next `add_scalar` waits for it without end.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

FLUSH = 10.0  # seconds that a number may wait to be seen
_UP = 1e-12 * 1.1 ** np.arange(774)  # TensorFlow's bins, to 1e20 on both sides
BINS = np.concatenate([-_UP[::-1], [0.0], _UP])


class EventFile:
    """A new event file in a folder.

    Args:
      folder: where TensorBoard looks; it must exist.
      purge_step: TensorBoard hides what older files hold of this step and later.

    Raises:
      ImportError: no tensorboardX. Here and in every method OSError: the file cannot be
        written; the message names the folder and says why.
    """

    def __init__(self, folder: str, purge_step: int):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._folder, self._summary, self._event = folder, summary, event_pb2.Event
        with self._named():
            path = os.path.join(folder, "events")
            # The package's names have seconds only: two starts in one would share one.
            suffix = f".{time.time_ns():020d}"
            self._file = event_file_writer.EventsWriter(path, suffix)
        self._flushed = time.monotonic()
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(purge_step, session_log=start)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Adds a number."""
        self._add(step, summary=self._summary.scalar(name, value))

    def add_histogram(
        self, name: str, values: Float[np.ndarray, "n"], step: int
    ) -> None:
        """Adds the histogram of finite values."""
        found = self._summary.histogram(name, values, BINS)
        self._add(step, summary=found)

    def flush(self) -> None:
        """Returns when all of it is on disk."""
        with self._named():
            self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes."""
        with self._named():
            self._file.close()

    def _add(self, step: int, **what: Any) -> None:
        event = self._event(step=step, wall_time=time.time(), **what)
        with self._named():
            self._file.write_event(event)
        if time.monotonic() - self._flushed > FLUSH:
            self.flush()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or error
            raise type(error)(f"{self._folder}: cannot write: {why}") from error
