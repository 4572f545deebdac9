"""Roots of sweeps, written by hand: the files that a report reads, nothing trained."""

import itertools
import json

import numpy as np

from rm_jax import schemas, store
from rm_jax.writer import to_json

SEEDS = ("init_seed",)
STEPS = (2, 4)


def figures(accuracy, nll=0.6):
    """What evals.json holds of a set, the parts that are no numbers too."""
    return {
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.05,
        "accuracy_high": accuracy + 0.05,
        "nll": nll,
        "n_pairs": 18.0,
        "alarms": ["human: too good"],
        "reliability": [["NaN", "NaN", 0], [0.2, 0.1, 5]],
        "margin_histogram": {"edges": [-1.0, 0.0, 1.0], "counts": [3, 15]},
        "swap": {"max_difference": 0.0, "flipped_share": 0.0},
        "probes": {"length": {"model_bias": 0.25, "n": 30}},
    }


def config(changes):
    """The part of a resolved config that a report looks at."""
    base = {
        "name": "made",
        "init_seed": 0,
        "data_seed": 0,
        "loss": {"name": "bt"},
        "data": {"label_noise": 0.0, "train": "world:"},
        "optim": {"learning_rate": 1e-3},
        "batch": {"examples": 8},
        "train": {"duration": "4 steps"},
    }
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = base
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return base


def product(**values):
    """Changes of units: every combination; a double underscore is a dot."""
    keys = [key.replace("__", ".") for key in values]
    return [
        dict(zip(keys, v, strict=True)) for v in itertools.product(*values.values())
    ]


def write_root(root, units, *, seeds=SEEDS, null=(), expected=None, done=None):
    """Writes a root; `done(changes, null)` gives (accuracy, nll), None if not begun."""
    store.makedirs(str(root))
    listed = []
    for of_null, changes in [*((False, u) for u in units), *((True, u) for u in null)]:
        name = f"u{len(listed):02}"
        listed.append({"name": name, "changes": changes, "null": of_null})
        values = done(changes, of_null)
        if values is not None:
            write_unit(root / "units" / name, changes, *values)
    sweep = {
        "experiment": "experiments/made.py",
        "sha256": "0" * 64,
        "question": "Does the loss matter?",
        "seeds": list(seeds),
        "expected": expected or {},
        "units": listed,
    }
    store.write_sealed(str(root / "sweep.json"), schemas.stamped("sweep.json", sweep))
    return root


def write_unit(path, changes, accuracy, nll, finished=True):
    """A unit: half of its steps, or all and a final evaluation."""
    path.mkdir(parents=True)
    whole = {"schema_version": 1, **config(changes)}
    for name in ("unit.json", "config.json"):
        store.write_sealed(str(path / name), whole)
    info = schemas.stamped("run.json", {"data": {"train": {"examples": 64}}})
    store.write_sealed(str(path / "run.json"), info)
    steps = STEPS if finished else STEPS[:1]
    lines = []
    for step in steps:
        share = step / STEPS[-1]
        lines.append({"step": step, "train/skips": 1.0, "train/nll": 0.7})
        lines.append(
            {
                "step": step,
                "eval/valid/accuracy": accuracy * share,
                "eval/valid/nll": nll + 0.1 * (1 - share),
                "eval/test/accuracy": accuracy * share,
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    torn = "" if finished else '{"step": 3, "train/ski'
    (path / "metrics.jsonl").write_text(text + torn)
    timing = [{"step": step, "seconds": 1.5} for step in steps]
    (path / "timing.jsonl").write_text("".join(json.dumps(t) + "\n" for t in timing))
    event = {"step": 2, "event": "alarm", "name": "valid", "message": "ties: 9"}
    (path / "events.jsonl").write_text(json.dumps(event) + "\n")
    if finished:
        sets = {"valid": figures(accuracy, nll), "test": figures(accuracy - 0.02)}
        write_evals(path / "evals.json", sets)


def write_evals(path, sets, step=STEPS[-1], **more):
    """evals.json, or the file of a benchmark."""
    store.makedirs(str(path.parent))
    value = schemas.stamped("evals.json", {"step": step, "sets": sets, **more})
    store.write_sealed(str(path), to_json(value))


def write_failed(path, error):
    """failed.json of a unit, as `rm_jax.sweep` writes it."""
    log = str(path.parent.parent / "logs" / f"{path.name}.log")
    value = schemas.stamped("failed.json", {"error": error, "log": log})
    store.write_json(str(path / "failed.json"), value)


def write_verdicts(root, *rules):
    """verdicts.json, of the units that have finished."""
    units = sorted(path.parent.name for path in root.glob("units/*/evals.json"))
    value = {"units": units, "rules": list(rules)}
    value = schemas.stamped("verdicts.json", value)
    store.write_sealed(str(root / "verdicts.json"), to_json(value))


def rule(name, holds, *, null=False, estimate=0.01, low=-0.01, high=0.03):
    """A rule with a verdict."""
    return {
        "name": name,
        "claim": f"{name} helps",
        "source": "a paper, table 2",
        "null": null,
        "holds": holds,
        "estimate": estimate,
        "low": low,
        "high": high,
        "text": f"{estimate} in 3 pairs",
    }


def noisy(effects, spread=0.01, seed=0):
    """`done` of units: accuracy .7, what the loss adds, and noise of its own."""
    rng = np.random.default_rng(seed)

    def done(changes, null):
        accuracy = 0.7 + spread * rng.standard_normal()
        if not null:
            accuracy += effects.get(changes.get("loss.name"), 0.0)
        return accuracy, 1.3 - accuracy

    return done
