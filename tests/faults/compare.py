"""What must be the same, bit by bit, however often a run was disturbed."""

import hashlib
import json
import math
import os
import pathlib
import re

import jax
import numpy as np

from rm_jax.checkpoint import Checkpoints
from rm_jax.manifest import nested

FILES = ("metrics.jsonl", "evals.json", "config.json", "contract.json", "arch.json")
FOLDERS = ("predictions", "tokenizer", "example_losses")
# Names of files that only exist while another is written.
SCRATCH = re.compile(
    r"(^|/)\.|\.tmp(/|$)|\.orbax-checkpoint-tmp|\.saving(/|$)|\.deleted(/|$)|\.__lock"
)


def facts(run: str, tokens: str) -> dict[str, str]:
    """Name -> digest of everything that a disturbed run must have in common.

    Args:
      run: the run directory.
      tokens: the folder of token caches.
    """
    run, tokens = pathlib.Path(run), pathlib.Path(tokens)
    found = {name: _digest(run / name) for name in FILES}
    for folder in FOLDERS:
        found |= _files(run, folder)
    found |= {f"tokens/{name}": d for name, d in _files(tokens, "").items()}
    found |= _checkpoints(str(run / "checkpoints"))
    found["timing.jsonl"] = _sane(run / "timing.jsonl")
    report = run / "report.html"
    found["report.html"] = str(report.exists() and "</html>" in report.read_text())
    return found


def differences(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """Names of what is not the same."""
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def sizes(*folders: str) -> dict[str, int]:
    """Path -> bytes of every file."""
    files = (p for folder in folders for p in pathlib.Path(folder).rglob("*"))
    return {str(p): p.stat().st_size for p in files if p.is_file()}


def leftovers(*folders: str) -> list[str]:
    """Scratch files and folders that nothing will ever read again."""
    return sorted(
        name
        for folder in folders
        for path in pathlib.Path(folder).rglob("*")
        if SCRATCH.search(name := os.path.relpath(path, folder))
    )


def _digest(path: pathlib.Path) -> str:
    if not path.exists():
        return "missing"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(above: pathlib.Path, folder: str) -> dict[str, str]:
    names = [str(p.relative_to(above)) for p in (above / folder).rglob("*")]
    whole = [name for name in names if not SCRATCH.search(name)]
    return {n: _digest(above / n) for n in whole if (above / n).is_file()}


def _checkpoints(folder: str) -> dict[str, str]:
    """The steps, what each says of itself, and every bit of the last, read back."""
    checkpoints = Checkpoints(folder)
    found = {"checkpoints": str(checkpoints.steps())}
    for step in checkpoints.steps():
        manifest = checkpoints.manifest(step)
        text = json.dumps([manifest.arrays, manifest.metrics, manifest.meta])
        found[f"checkpoints/{step}"] = hashlib.sha256(text.encode()).hexdigest()
    shape = lambda v: jax.ShapeDtypeStruct(v["shape"], v["dtype"])
    wanted = nested({k: shape(v) for k, v in manifest.arrays.items()})
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(checkpoints.restore(wanted, manifest.step)[0]):
        digest.update(np.asarray(leaf).tobytes())
    return found | {"state": digest.hexdigest()}


def _sane(path: pathlib.Path) -> str:
    """Whether every line has times that can be: "sane" or the line."""
    seen = 0
    for line in path.read_text().splitlines():
        values = json.loads(line)
        good = all(isinstance(v, int | float) for v in values.values())
        if not good or not all(0 <= v < math.inf for v in values.values()):
            return line
        seen += "seconds" in values
    return "sane" if seen else "no line has seconds"
