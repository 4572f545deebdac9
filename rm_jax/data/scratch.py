"""Folders that are filled before they get their name, and those that a kill has left.

A builder holds a shared lock of the folder above; the machine's kernel takes it back
when the process ends, however it ends. A builder that can have the lock to itself alone
knows that no other process of this machine builds there: then every scratch folder that
this machine has left is stale, and is removed. The locks of a shared disk may end at
each machine, so a scratch folder has the machine's name in its own, and those of others
are left to them. Local disks only: a token cache is memory-mapped, so never at a URL.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import socket
import uuid
from collections.abc import Iterator


@contextlib.contextmanager
def scratch_folder(final: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder beside `final`, to fill and to rename; deleted if it is still there.

    First it deletes stale ones: of this machine, while no other process builds here.

    Raises:
      OSError: it cannot be made.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with _building(final.parent):
        folder = final.with_name(f"{final.name}{_mark()}{uuid.uuid4().hex[:8]}.tmp")
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _building(root: pathlib.Path) -> Iterator[None]:
    """Holds the lock of the builders; whoever has it alone cleans up first."""
    handle = os.open(root, os.O_RDONLY)
    try:
        with contextlib.suppress(
            OSError
        ):  # others build here, or no locks on this disk
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for stale in root.glob(f"*{_mark()}????????.tmp"):
                shutil.rmtree(stale, ignore_errors=True)
        with contextlib.suppress(OSError):  # no locks: then nobody here cleans up
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _mark() -> str:
    """The machine's name, as part of a file's name."""
    return f".{re.sub(r'[^A-Za-z0-9-]', '-', socket.gethostname())[:64]}."
