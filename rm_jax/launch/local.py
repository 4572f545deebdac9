"""Workers that are processes of this machine.

When the sweep ends in whatever way, kill -9 included, the kernel sends its workers
SIGTERM (on Linux): they save and end.

Without an accelerator every worker has cores of its own, as many as any other: XLA
makes a thread a core, and two pools on the same cores slow each other down.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from rm_jax.launch.worker import Group, log_file, words

POLL = 0.2  # seconds between looks at the processes
ACCELERATORS = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class Local:
    """Workers that are processes of this machine.

    Args:
      root: of the sweep, a local folder.
      workers: processes at a time; 0 is one a core and at most 4, or one in all where
        the machine has an accelerator.
    """

    def __init__(self, root: str, workers: int):
        self._root = root
        cores = sorted(_cores())
        most = 1 if _accelerator() else min(len(cores), 4)
        self.workers = workers or most
        shares = [cores[i :: self.workers] for i in range(self.workers)]
        pinned = self.workers > 1 and all(shares) and not _accelerator()
        self._cores = shares if pinned else [cores] * self.workers
        self._running: dict[int, tuple[Group, subprocess.Popen]] = {}

    @property
    def free(self) -> bool:
        """Whether another worker may start."""
        return len(self._running) < self.workers

    @property
    def busy(self) -> bool:
        """Whether a worker runs."""
        return bool(self._running)

    def start(self, group: Group) -> None:
        """Starts a worker; what it says goes to the end of `log_file`."""
        slot = min(set(range(self.workers)) - self._running.keys())
        with open(log_file(self._root, group), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "rm_jax", *words(self._root, group)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the sweep, which passes it on
                preexec_fn=_child(os.getpid(), self._cores[slot]),
            )
        self._running[slot] = group, process

    def ended(self, within: float) -> list[tuple[Group, int]]:
        """Groups whose worker ended, and its exit code; none within so many seconds."""
        until = time.monotonic() + within
        while self._running and time.monotonic() < until:
            codes = {slot: p.poll() for slot, (_, p) in self._running.items()}
            if done := [slot for slot, code in codes.items() if code is not None]:
                return [(self._running.pop(slot)[0], codes[slot]) for slot in done]
            time.sleep(POLL)
        return []

    def send(self, number: signal.Signals) -> None:
        """A signal for every worker: SIGTERM to save and end, SIGKILL to end."""
        for _, process in self._running.values():
            process.send_signal(number)


def _child(parent: int, cores: Sequence[int]) -> Callable[[], None]:
    """What a worker does before its program: ends with its parent, keeps to cores."""
    linux = sys.platform == "linux"
    libc = ctypes.CDLL(None) if linux else None

    def prepare() -> None:
        if libc:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            os.sched_setaffinity(0, cores)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(75)

    return prepare


def _cores() -> set[int]:
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _accelerator() -> bool:
    """Whether jax will compute on one, as far as it can be known without jax."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    return wanted != "cpu" and any(map(os.path.exists, ACCELERATORS))
