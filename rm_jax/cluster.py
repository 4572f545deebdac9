"""Several processes as one run: join, agree, take turns. One process needs none of it.

Every process runs the same program on its own devices and reads everything; only the
first one writes what is not sharded: logs, predictions, reports, manifests.
"""

import contextlib
import hashlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from rm_jax import backend

# Seconds without a heartbeat; then jax ends the others, without Python: its last lines
# are "Terminating process because the JAX distributed service detected fatal errors"
# and a stack. Where process 0 ends, that comes at once.
DEAD_AFTER = 30
JOIN_WITHIN = 300  # seconds in which all processes must have started
# What jax's errors say where a connection to another process has broken or is silent.
LOST = ("Gloo ", "coordination service", "remote process exited")  # the last of NCCL
ASK_EVERY = 1  # seconds between two questions for the host of the coordinator


def _several(text: str) -> bool:
    if not text.isdecimal():
        raise ValueError("want a whole number")
    return int(text) > 1


# Set where a launcher started several processes; jax knows how to read the rest.
LAUNCHERS = {
    "SLURM_NTASKS": lambda v: _several(v) and "SLURM_STEP_NODELIST" in os.environ,
    "OMPI_COMM_WORLD_SIZE": _several,
    "TPU_WORKER_HOSTNAMES": lambda v: "," in v,
    "MEGASCALE_NUM_SLICES": _several,
}


def join(
    coordinator: str = "", processes: int = 0, process: int = -1, detect: bool = False
) -> None:
    """Joins the other processes of a run; call it before any device is used.

    Without arguments it joins where the environment says that a launcher started
    several processes (LAUNCHERS); else this process is the whole run.

    Args:
      coordinator: HOST:PORT of the first process.
      processes: how many there are.
      process: which one this is, from 0.
      detect: ask jax for a TPU pod, SLURM, Open MPI or Kubernetes, and fail where there
        is none.

    Raises:
      ValueError: some of the three are missing or out of range, or a variable of
        LAUNCHERS is no number.
      OSError: the host of the coordinator is still not known after JOIN_WITHIN.
      RuntimeError: the others do not answer, or nothing was detected.
    """
    given = bool(coordinator), processes > 0, process >= 0
    if any(given):
        if not all(given) or process >= processes or ":" not in coordinator:
            raise ValueError(
                f"--coordinator {coordinator!r} --processes {processes} --process "
                f"{process}: want all three: HOST:PORT, N and 0 ... N - 1"
            )
        _check_address(coordinator)
        _say(
            f"waiting for {processes} processes at {coordinator}, at most "
            f"{JOIN_WITHIN} s"
        )
        backend.initialize(DEAD_AFTER, JOIN_WITHIN, coordinator, processes, process)
    elif (name := _launcher()) or detect:
        try:
            backend.initialize(DEAD_AFTER, JOIN_WITHIN)
        except (ValueError, KeyError) as error:
            asked = f"{name}={os.environ[name]}" if name else "--distributed"
            unset = f", or unset {name} to run alone" if name else ""
            raise RuntimeError(
                f"{asked}, but no TPU pod, SLURM job, MPI or Kubernetes found: "
                f"{error}: give --coordinator HOST:PORT --processes N --process I"
                f"{unset}"
            ) from error
    # The first collective makes their connections, and waits half a minute for the
    # others, no more: they meet now, before one of them builds a token cache for hours.
    wait("joined")


def _launcher() -> str:
    """The variable by which a launcher says that there are several; "" of none."""
    for name, test in LAUNCHERS.items():
        try:
            if name in os.environ and test(os.environ[name]):
                return name
        except ValueError as error:
            raise ValueError(
                f"{name}={os.environ[name]!r} in the environment: {error}; unset it to "
                "run alone"
            ) from None
    return ""


def _check_address(address: str) -> None:
    """Refuses an address at which jax would wait for minutes, then abort.

    Returns when its host is known.
    """
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")  # IPv6
    if (
        not host
        or "/" in host
        or (":" in host and not bracketed)
        or not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535)
    ):
        raise ValueError(
            f"--coordinator {address!r}: want HOST:PORT, without a scheme, a port from "
            "1 to 65535"
        )
    end, why = time.monotonic() + JOIN_WITHIN, ""
    while True:  # the name of a pod may come after the pod, in Kubernetes
        try:
            socket.getaddrinfo(host.strip("[]"), int(port))
            return
        except (OSError, UnicodeError) as error:
            said, why = why, getattr(error, "strerror", None) or str(error)
            where = f"--coordinator {address}: host {host!r}: {why}"
            if isinstance(error, UnicodeError) or time.monotonic() >= end:
                raise OSError(where) from error
        if not said:
            _say(f"{where}; asking again for at most {JOIN_WITHIN} s")
        time.sleep(ASK_EVERY)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def first() -> bool:
    """Whether this process writes what is not sharded."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Returns when every process is here; `name` is the same in all of them."""
    if jax.process_count() > 1:
        backend.barrier(f"rm_jax {name}")


def agree(facts: Mapping[str, str]) -> None:
    """Returns when every process is here, with the same facts as the first.

    Args:
      facts: name -> what must be the same everywhere; the names are.

    Raises:
      ValueError: naming the facts and the processes whose are others.
    """
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(text.encode()).digest()[:8] for text in facts.values()]
    all_of = backend.gather(np.frombuffer(b"".join(digests), np.uint32).reshape(-1, 2))
    other = (all_of != all_of[:1]).any(axis=2)  # [processes, facts]
    if other.any():
        names = [name for name, bad in zip(facts, other.any(0), strict=True) if bad]
        raise ValueError(
            f"processes {np.flatnonzero(other.any(1)).tolist()} have another "
            f"{', another '.join(names)} than process 0: start all of them with the "
            "same command, code and data"
        )


def everywhere(ok: bool) -> bool:
    """Whether it is so in every process; all of them ask."""
    return ok if jax.process_count() == 1 else bool(backend.gather(ok).all())


@contextlib.contextmanager
def loss_named() -> Iterator[None]:
    """Inside it an error of jax that means the end of another process says so.

    Raises:
      RuntimeError: instead of the error of a collective whose connection has broken.
    """
    try:
        yield
    except RuntimeError as error:  # of the runtime, of Orbax
        if jax.process_count() == 1 or not any(word in str(error) for word in LOST):
            raise
        raise RuntimeError(
            "another process of the run ended or cannot be reached: start all of them "
            f"again, the run goes on from its last save ({error!s:.200})"
        ) from error


@contextlib.contextmanager
def in_turn(name: str) -> Iterator[None]:
    """The block runs in the first process, then in all others at once."""
    if not first():
        wait(name)
    yield
    if first():
        wait(name)


class Stop:
    """Whether a signal asks to save and end; the same answer in every process.

    Attributes:
      reason: name of the signal, "" while there is none.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._polls = itertools.count()

    def asked(self) -> bool:
        """Called equally often in every process: in every turn and block of examples.

        With several processes jax catches SIGTERM in any of them and picks the poll at
        which all are told.
        """
        if jax.process_count() > 1 and backend.preempted(next(self._polls)):
            self.reason = "SIGTERM"
        return bool(self.reason)


@contextlib.contextmanager
def signals() -> Iterator[Stop]:
    """A Stop that SIGTERM and Ctrl-C set; the handlers of before come back at the end.

    The first signal says what comes. Ctrl-C after it raises KeyboardInterrupt as usual.
    """
    stop = Stop()
    alone = jax.process_count() == 1  # else jax catches SIGTERM for all of them
    if not alone or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: Any) -> None:
        if stop.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not stop.reason:
            again = "once more" if number == signal.SIGINT else "Ctrl-C"
            line = f"{signal.Signals(number).name}: saving; {again} ends without\n"
            os.write(2, line.encode())  # sys.stderr may be amid a write of its own
        stop.reason = signal.Signals(number).name

    try:
        for number in before:
            signal.signal(number, handle)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
