"""The preloaded library of shim.c: built where it can be, armed inside a run."""

import ctypes
import os
import pathlib
import shutil
import subprocess
import sys

# What happens at a point, as numbered in shim.c.
ACTIONS = {"nothing": 0, "kill": 1, "half": 2, "once": 3, "full": 4, "read_only": 5}


def missing() -> str:
    """Why calls cannot be made to fail here; "" where they can."""
    if not sys.platform.startswith("linux"):
        return f"needs Linux, this is {sys.platform}"
    return "" if compiler() else "needs a C compiler: cc, gcc or clang"


def compiler() -> str | None:
    """Path of the C compiler."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def compile_to(folder: str | os.PathLike) -> str:
    """Compiles shim.c into the folder; returns the library's path."""
    source = pathlib.Path(__file__).with_name("shim.c")
    library = os.path.join(folder, "faults.so")
    flags = ["-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library]
    subprocess.run([compiler(), *flags, str(source), "-ldl", "-lpthread"], check=True)
    return library


def arm(
    library: str,
    folders: list[str],
    log: str,
    call: str = "",
    pattern: str = "",
    n: int = 0,
    action: str = "nothing",
    error: int = 0,
) -> None:
    """From now on calls on paths under `folders` are logged, and one goes wrong.

    Args:
      library: of `compile_to`, in LD_PRELOAD of this process.
      folders: what is watched, absolute.
      log: a file outside of them; a line a call.
      call, pattern, n: the n-th `call` on a path that fits `pattern` (fnmatch).
      action: of ACTIONS.
      error: errno of a call that fails.
    """
    text = [":".join(folders), log, call, pattern]
    ctypes.CDLL(library).faults_arm(
        *map(os.fsencode, text), ctypes.c_long(n), ACTIONS[action], error
    )
