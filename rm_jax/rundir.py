"""The run directory: claimed once, described by data, refused when the config changed.

config.json, contract.json, arch.json, run.json, tokenizer/, metrics.jsonl,
timing.jsonl, events.jsonl, checkpoints/, predictions/, evals.json, report.html.
Evaluation, serving, export and reports read only these, never a Python config.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from rm_jax import seal, store
from rm_jax.config import ConfigError, flatten, parse_duration

SCHEMA_VERSION = 1
# What may change when a run is continued: how long it is, and what is only seen.
MAY_CHANGE = (
    "name",
    "data.cache_dir",
    "batch.prefetch",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "train.tensorboard",
    "train.report",
)
GROWS = "train.duration"
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy",
    "datasets", "tensorflow-datasets", "ml-collections",
)  # fmt: skip


def config_text(config: Any) -> str:
    """The JSON of a config, sealed; `config.load` reads it back."""
    return json.dumps(seal.sealed(config.to_dict()), indent=1, sort_keys=True) + "\n"


def claim(workdir: str, config: Any) -> bool:
    """Whether the directory already holds this run; raises where it holds another.

    Nothing is written. `train.duration` may grow, MAY_CHANGE may change.

    Raises:
      ConfigError: a place that cannot be written to, a directory with other files, or a
        run whose config differs: names each key, its old and its new value.
    """
    path = store.join(workdir, "config.json")
    if not store.exists(path):
        found = store.listdir(workdir) if store.exists(workdir) else []
        _check_writable(workdir)
        # A run killed at its first file leaves that file under the name of a scratch.
        if [name for name in found if not name.startswith(".config.json.")]:
            raise ConfigError(
                f"{workdir} is not empty and holds no run: choose another --workdir"
            )
        return False
    old = flatten(store.read_json(path))
    new = flatten(seal.opened(json.loads(config_text(config))))
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and key not in MAY_CHANGE
        and not (key == GROWS and _grows(old[key], new[key]))
    ]
    if changed:
        raise ConfigError(
            f"{workdir} holds a run with another config: {'; '.join(changed)}: choose "
            "another --workdir, or go back to the old values"
        )
    return True


def _check_writable(workdir: str) -> None:
    """Refuses a place that cannot be written to, before hours of tokenising."""
    if store.is_url(workdir):
        return
    above = store.absolute(workdir)
    while not store.exists(above):
        above = os.path.dirname(above)
    if not os.access(above, os.W_OK | os.X_OK) or not store.is_dir(above):
        raise ConfigError(
            f"--workdir {workdir}: {above} is no folder that can be written to: choose "
            "another"
        )


def _grows(old: str, new: str) -> bool:
    a, b = parse_duration(old, GROWS), parse_duration(new, GROWS)
    return a.unit == b.unit and b.amount >= a.amount


def git(*args: str) -> str:
    """Output of a git command in this package's checkout; "" where there is none."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        done = subprocess.run(
            ["git", "-C", here, *args], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def provenance(config: Any, sets: Mapping[str, Any], more: Mapping[str, Any]) -> dict:
    """run.json: what made this run, so that it can be made again.

    Args:
      config: of the run.
      sets: name -> meta of each token set.
      more: anything else: model, mesh, tokenizer.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    devices = jax.devices()
    return {
        "schema_version": SCHEMA_VERSION,
        "argv": sys.argv,
        "commit": git("rev-parse", "HEAD").strip(),
        "dirty_diff": git("diff", "HEAD"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "environment": {
            k: v
            for k, v in os.environ.items()
            if k in ("XLA_FLAGS", "JAX_PLATFORMS", "LIBTPU_INIT_ARGS")
        },
        "seeds": {k: v for k, v in config.to_dict().items() if k.endswith("_seed")},
        "data": {
            name: {
                "source": meta["source"],
                "audit": meta["audit"],
                "counts": meta["counts"],
                "examples": meta["examples"],
                "tokens": meta["tokens"],
                "cache": meta["cache"],
            }
            for name, meta in sets.items()
        },
        **more,
    }
