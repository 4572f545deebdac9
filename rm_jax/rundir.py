"""The run directory: claimed once, described by data, refused when the config changed.

config.json, contract.json, arch.json, run.json, tokenizer/, plugins/, metrics.jsonl,
timing.jsonl, events.jsonl, sinks.json, checkpoints/, predictions/, example_losses/,
profile/, evals.json, evals/, report.html.
Evaluation, serving, export and reports read only these, never a Python config.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from typing import Any

from rm_jax import objects, schemas, seal, store
from rm_jax.config import ConfigError, flatten, load, parse_duration

# What may change when a run is continued: how long it is, and what is only seen.
MAY_CHANGE = (
    "name",
    "data.cache_dir",
    "batch.prefetch",
    "members.reducer",
    "mesh.member",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "train.tensorboard",
    "train.wandb",
    "train.trackio",
    "train.report",
    "train.profile",
    "train.compile_cache",
)
GROWS = "train.duration"
# What may be there before a run: files of a sweep; a file whose writer was killed.
BEFORE = (".config.json.", "unit.json", ".unit.json.", "failed.json", ".failed.json.")
IN_RUN_JSON = ("contract_sha256", "data", "plugins", "sessions")  # what we read of it


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
    _check_name(workdir)
    path = store.join(workdir, "config.json")
    if not store.exists(path):
        found = store.listdir(workdir) if store.exists(workdir) else []
        _check_writable(workdir)
        if [name for name in found if not name.startswith(BEFORE)]:
            raise ConfigError(
                f"{workdir} is not empty and holds no run: choose another --workdir"
            )
        return False
    info = run_json(workdir)
    steps = store.join(workdir, "checkpoints")
    if not info and store.exists(steps) and any(map(str.isdigit, store.listdir(steps))):
        raise ConfigError(
            f"{workdir} has checkpoints and no run.json, which says with what data and "
            "code they were made: bring it back, or choose another --workdir"
        )
    schemas.check_lines(info, workdir)
    plain = lambda config: flatten(seal.opened(json.loads(config_text(config))))
    old = plain(load(path))  # with today's defaults for knobs that were not there yet
    new = plain(config)
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


def run_json(workdir: str) -> dict[str, Any]:
    """run.json; {} where the run was killed before it was written.

    Raises:
      SchemaError: it is of a newer rm_jax.
      ConfigError: it is of an average.
      ValueError: it lacks what a run is continued by; names the file.
    """
    path = store.join(workdir, "run.json")
    if not store.exists(path):
        return {}
    info = schemas.checked("run.json", store.read_json(path), path)
    if "average_of" in info:
        raise ConfigError(
            f"{workdir} holds an average of models, which no training goes on with: "
            f"choose another --workdir, and start from it by --config.model.init="
            f"{workdir}"
        )
    if missing := [key for key in IN_RUN_JSON if key not in info]:
        raise ValueError(f"{path} has no {missing}: bring the file of this run back")
    return info


def weights_sha256(run: str) -> str:
    """Of the weights whose features a run's head was trained on.

    Raises:
      ConfigError: run.json does not say.
    """
    weights = run_json(run).get("weights")
    if not weights:
        raise ConfigError(
            f"{run}: its run.json, which names the weights under its head, is gone or "
            "names none: bring the file of this run back"
        )
    return weights["sha256"]


def _check_writable(workdir: str) -> None:
    """Refuses a place that cannot be written to, before hours of tokenising."""
    if store.is_url(workdir):
        return
    above, missing = store.absolute(workdir), []
    while not os.path.lexists(above):  # a link to nothing is in the way, too
        missing.append(above)
        above = os.path.dirname(above)
    if not os.access(above, os.W_OK | os.X_OK) or not store.is_dir(above):
        why = f"{above} is no folder that can be written to"
    else:
        from rm_jax import cluster  # jax: only for those who claim a directory

        why = _cannot_make(reversed(missing)) if cluster.first() else ""
    if why:
        raise ConfigError(f"--workdir {workdir}: {why}: choose another")


def _cannot_make(folders: Iterable[str]) -> str:
    """Why folders cannot be made, "" where they can; they are made and removed."""
    with contextlib.ExitStack() as made:
        for folder in folders:
            try:
                os.mkdir(folder)
            except OSError as error:
                return f"cannot make {folder}: {error.strerror}"
            made.callback(os.rmdir, folder)
    return ""


def _check_name(workdir: str) -> None:
    """Refuses a name that run.json could not hold, or that would be another's."""
    if not workdir:
        raise ConfigError("--workdir '': want the name of a folder")
    try:
        workdir.encode()
        objects.check_url(workdir)
    except UnicodeEncodeError:
        raise ConfigError(f"--workdir {workdir!r}: the name is not UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"--workdir {error}") from None


def _grows(old: str, new: str) -> bool:
    a, b = parse_duration(old, GROWS), parse_duration(new, GROWS)
    return a.unit == b.unit and b.amount >= a.amount
