"""Locks of this machine's kernel, which takes them back however their holder ends."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def held(path: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock of a local file, which is made, inside the block.

    Args:
      path: of the file; its folder is there.
      waiting: called once where another process holds it, before waiting for that.

    Raises:
      OSError: the file cannot be made, or its disk has no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
