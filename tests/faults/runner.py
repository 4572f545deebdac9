"""Runs `rm-jax` again and again, each in a fork that has everything imported already.

Started with the shim in LD_PRELOAD. Reads a JSON object a line, answers with one:

  {"argv": [...], "output": FILE, "arm": {...}}  ->  {"code": 0, "seconds": 2.5}

`code` is the exit code, -9 of a kill, null of a run that took longer than LIMIT.
"""

import json
import os
import signal
import sys
import time

LIMIT = 60  # seconds; a run takes about 3


def serve() -> dict:
    """Answers requests; returns, in a fork, the request to be run there."""
    signal.signal(signal.SIGALRM, _late)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            return request
        code = _wait(pid)
        seconds = time.monotonic() - started
        print(json.dumps({"code": code, "seconds": seconds}), flush=True)
    sys.exit()


def _late(*_) -> None:
    raise TimeoutError


def _wait(pid: int) -> int | None:
    try:
        signal.alarm(LIMIT)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None
    finally:
        signal.alarm(0)


def become(request: dict, library: str) -> None:
    """Makes this fork the run of a request, up to its first line."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.argv = request["argv"]
    shim.arm(library, **request["arm"])


if __name__ == "__main__":
    library = os.environ.pop("LD_PRELOAD")
    import gc

    import matplotlib.figure  # noqa: F401  each import here is one less in every fork
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.stats  # noqa: F401
    import shim
    import tensorboardX  # noqa: F401
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

    import rm_jax.data.world
    import rm_jax.main
    import rm_jax.report.html
    import rm_jax.train  # noqa: F401

    gc.freeze()  # a fork then leaves these pages as they are
    become(serve(), library)
    rm_jax.main.console()
