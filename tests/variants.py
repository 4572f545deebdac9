"""More runs out of one that was trained: with other parameters, or with members."""

import shutil

import jax
import numpy as np

from rm_jax import config as config_module
from rm_jax import members, rundir, schemas, store
from rm_jax.checkpoint import Checkpoints, CheckpointWriter


def vary(run, to, seed, scale=1.0):
    """A copy whose parameters are random but for 1 - scale of the run's own."""
    rng = np.random.default_rng(seed)

    def other(x):
        x = np.asarray(x)
        draw = rng.standard_normal(x.shape).astype(x.dtype) * max(x.std(), 0.1)
        return (1 - scale) * x + scale * draw

    part = jax.tree.map(other, _params(run))
    return _copy(run, to, part, {})


def stack(runs, share, to):
    """A run whose members are the runs; what they share is the first one's."""
    found = members.stack([_params(run) for run in runs], share)
    return _copy(runs[0], to, found, {"count": len(runs), "share": share})


def together(runs, folder):
    """Copies whose checkpoints are one, as of runs that were trained in one program."""
    found = members.stack([_params(run) for run in runs], "none")
    _copy(runs[0], folder / ".together/x", found, {})
    for i, run in enumerate(runs):
        to = folder / run.name
        shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoints"))
        value = {"folder": ".together/x", "member": i, "runs": [r.name for r in runs]}
        path = str(to / "member.json")
        store.write_sealed(path, schemas.stamped("member.json", value))
        yield to


def changed(run, to, change):
    """A copy with another config: `change(config)`."""
    shutil.copytree(run, to)
    config = config_module.load(str(run))
    change(config)
    (to / "config.json").write_text(rundir.config_text(config))
    return to


def _params(run):
    return Checkpoints(f"{run}/checkpoints").restore_part("ema")[0]


def _copy(run, to, params, of_members):
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoints"))
    there = Checkpoints(f"{run}/checkpoints")
    meta = there.manifest(there.latest()).meta | {"members": of_members or None}
    params = jax.tree.map(jax.numpy.asarray, params)
    with CheckpointWriter(
        f"{to}/checkpoints", keep_last=1, keep_best=0, best_metrics=(), best_mode="min"
    ) as writer:
        writer.save(there.latest(), {"params": params, "ema": params}, meta, {})
    return to
