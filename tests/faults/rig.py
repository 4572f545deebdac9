"""A run of 40 steps that can be disturbed again and again, at a few seconds each."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import compare
import points
from points import Call, Fault

from rm_jax.data.schema import record_to_dict
from rm_jax.data.world import make_world

WORLD = {"train": 64, "valid": 12, "test": 1}
KNOBS = {
    **{f"data.world.{split}": n for split, n in WORLD.items()},
    "contract.max_length": 128,
    "contract.max_response": 96,
    "batch.examples": 8,
    "batch.row_lengths": "(128,)",
    "batch.chunk_tokens": 1024,
    "model.d_model": 16,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.n_kv_heads": 1,
    "model.d_ff": 32,
    "model.dropout": 0.1,
    "train.ema": 0.9,
    "train.duration": "40 steps",
    "train.log_every": "7 steps",  # no two in step: saves fall amid lines of the log
    "train.eval_every": "28 steps",
    "train.save_every": "14 steps",
    "train.report": False,
    "train.tensorboard": False,
    "data.train": "world:#train",
    "data.eval": '{{"valid": "jsonl:{data}/valid.jsonl"}}',
}
# What the plain run has not: a trained tokenizer, a mixture, TensorBoard, the report,
# the losses of the examples.
EXTRAS = {
    "train.duration": "14 steps",
    "train.eval_every": "7 steps",
    "train.save_every": "7 steps",
    "train.report": True,
    "train.tensorboard": True,
    "train.example_losses": True,
    "contract.tokenizer": "bpe:300",
    "data.train": '{{"a": {{"spec": "jsonl:{data}/train.jsonl", "weight": 1.0}},'
    ' "b": {{"spec": "jsonl:{data}/valid.jsonl", "weight": 0.5}}}}',
}
VARIANTS = {"plain": {}, "extras": EXTRAS}
# Points of a variant that are swept: what the plain run has as well is left out.
ONLY = {
    "plain": "",
    "extras": "/tokenizers|/tensorboard|/report|/example_losses|/JOINED",
}
ERRORS = {"eio": errno.EIO, "full": errno.ENOSPC, "read_only": errno.EROFS}
ACTIONS = {
    "eio": "once",
    "lost": "kill",
}  # of the shim, where a mode is called otherwise


class Run(NamedTuple):
    """A run that has ended.

    Attributes:
      code: its exit code, -9 after a kill, None where it had to be killed for time.
      said: what it printed.
      calls: what it did to its files.
      seconds: it took.
    """

    code: int | None
    said: str
    calls: list[Call]
    seconds: float


class Rig(contextlib.AbstractContextManager):
    """Starts runs in one folder: `run/`, `tokens/` and, not watched, `data/`.

    Args:
      folder: made when missing.
      library: of `shim.compile_to`.
      compiled: folder of the compile cache, shared by all rigs.
      knobs: over KNOBS.
    """

    def __init__(
        self, folder: str, library: str, compiled: str, knobs: Mapping[str, Any]
    ):
        self.folder = str(pathlib.Path(folder).resolve())
        self.run_dir, self.tokens = f"{self.folder}/run", f"{self.folder}/tokens"
        os.makedirs(f"{self.folder}/data", exist_ok=True)
        for split in ("train", "valid"):
            rows = map(record_to_dict, make_world(WORLD).records(split))
            text = "".join(json.dumps(row) + "\n" for row in rows)
            pathlib.Path(self.folder, "data", f"{split}.jsonl").write_text(text)
        knobs = KNOBS | {"data.cache_dir": self.tokens} | dict(knobs)
        self.argv = ["rm-jax", "train", "--config", "rm_jax:base"]
        self.argv += ["--workdir", self.run_dir]
        for name, value in knobs.items():
            if isinstance(value, str):
                value = value.format(data=f"{self.folder}/data")
            self.argv.append(f"--config.{name}={value}")
        self._process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).with_name("runner.py"))],
            env=environment(compiled) | {"LD_PRELOAD": library},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()

    def clear(self) -> None:
        """Removes what runs have left."""
        for path in (self.run_dir, self.tokens):
            shutil.rmtree(path, ignore_errors=True)

    def run(self, fault: Fault | None = None) -> Run:
        """Runs the command to its end, which the fault may bring about."""
        log, output = f"{self.folder}/calls.log", f"{self.folder}/output.txt"
        pathlib.Path(log).unlink(missing_ok=True)
        arm = {"folders": [self.run_dir, self.tokens], "log": log}
        if fault:
            (call, pattern, n, _), mode = fault
            arm |= {"call": call, "pattern": self.folder + pattern, "n": n}
            arm |= {"action": ACTIONS.get(mode, mode), "error": ERRORS.get(mode, 0)}
        request = {"argv": self.argv, "output": output, "arm": arm}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        said = pathlib.Path(output).read_text(errors="replace")
        calls = points.read_log(pathlib.Path(log).read_text())
        if fault and fault.mode == "lost":
            for path, size in points.unsynced(calls).items():
                if os.path.exists(path):
                    os.truncate(path, size)
        return Run(answer["code"], said, calls, answer["seconds"])

    def faults(self, run: Run) -> list[Fault]:
        """All that can be done to a run like this one."""
        return points.faults_of(points.points_of(run.calls, self.folder))

    def joined(self) -> list[str]:
        """Names of the token caches that were joined of others."""
        metas = pathlib.Path(self.tokens).glob("*/meta.json")
        return [p.parent.name for p in metas if json.loads(p.read_text())["sources"]]

    def facts(self) -> dict[str, str]:
        """What this run must have in common with others."""
        return compare.facts(self.run_dir, self.tokens)


def environment(compiled: str) -> dict[str, str]:
    """Of a run: one device, one thread of numpy, programs compiled once for all."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "OPENBLAS_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
    }


def compile_cache() -> str:
    """Folder of compiled programs, that of the tests."""
    default = os.path.join(tempfile.gettempdir(), "rm_jax_compile_cache")
    return os.environ.get("RM_JAX_TEST_CACHE", default)


def unclear(run: Run, folder: str) -> str:
    """What is wrong with how a run ended that met an error; "" where nothing is.

    It may survive. Else it says one line, which names a path, and no traceback.
    """
    if run.code == 0:
        return ""
    if run.code is None:
        return "hangs"
    if run.code != 1:
        return f"exit code {run.code}"
    lines = [line for line in run.said.splitlines() if line.startswith("rm-jax: ")]
    if "Traceback" in run.said:
        return "a traceback"
    if len(lines) != 1:
        return f"{len(lines)} error lines"
    return "" if folder in lines[0] else f"names no path: {lines[0]:.200}"


def hit(calls: Sequence[Call]) -> bool:
    """Whether the fault came about."""
    return any(call.flag in "KHF" for call in calls)
