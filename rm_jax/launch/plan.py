"""ROOT/sweep.json: what a sweep consists of, kept from its first start on.

The groups stay as they are once written, because units that share a checkpoint can only
be continued together; units that the experiment has more of by now make new groups.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rm_jax import needs, rundir, schemas, store
from rm_jax.experiment import Experiment
from rm_jax.launch import locks, units

FILE = "sweep.json"
LOCKS, LOGS = "locks", "logs"


class Plan(NamedTuple):
    """Units and how they train.

    Attributes:
      units: in the order of the experiment.
      groups: names of those that train together, of every unit.
    """

    units: tuple[units.Unit, ...]
    groups: tuple[tuple[str, ...], ...]


def make(experiment: Experiment, root: str, separate: bool = False) -> Plan:
    """The plan of an experiment, with the groups that the root has; writes nothing.

    Args:
      experiment: of `experiment.load`.
      root: a local folder, which may not be there yet.
      separate: every unit trains alone.

    Raises:
      ConfigError: a unit that cannot run.
      ValueError: a root with other files, of another experiment, or with groups where
        none are wanted.
    """
    _check_free(root)
    found = units.resolve(experiment)
    old = _groups(root, found)
    if separate and (large := [group for group in old if len(group) > 1]):
        raise ValueError(
            f"--separate: units of {root} train together already, {large[0]}: choose "
            "another --root"
        )
    known = {name for group in old for name in group}
    new = units.groups([u for u in found if u.name not in known], separate)
    return Plan(tuple(found), tuple(map(tuple, [*old, *new])))


def write(experiment: Experiment, root: str, separate: bool = False) -> Plan:
    """`make`, written to the root; one sweep at a time, so that their groups agree."""
    _check_free(root)
    for name in (LOCKS, LOGS, "units"):
        store.makedirs(store.join(root, name))
    with locks.held(store.join(root, LOCKS, FILE)):
        plan = make(experiment, root, separate)
        value = {
            "experiment": experiment.address,
            "sha256": experiment.sha256,
            "question": experiment.question,
            "seeds": list(experiment.seeds),
            "expected": dict(experiment.expected),
            "claims": [
                {"name": rule.name, "claim": rule.claim, "source": rule.source}
                for rule in experiment.rules
            ],
            "units": _units(experiment, plan),
            "groups": plan.groups,
        }
        store.write_sealed(store.join(root, FILE), schemas.stamped(FILE, value))
        for unit in plan.units:
            _write_config(unit, root)
    return plan


def read(root: str) -> dict[str, Any]:
    """The content of ROOT/sweep.json.

    Raises:
      ValueError: there is none, it is damaged or of a newer rm_jax.
    """
    path = store.join(root, FILE)
    if not store.exists(path):
        raise ValueError(
            f"{root} holds no sweep: it has no {FILE}; rm-jax sweep makes one"
        )
    return schemas.checked(FILE, store.read_json(path), path)


def _units(experiment: Experiment, plan: Plan) -> list[dict[str, Any]]:
    """What sweep.json says of the units."""
    raw = [*experiment.units, *experiment.null]  # in the order of the plan
    changes = [needs.shown(one, experiment.seeds) for one in raw]
    texts = {
        json.dumps([_plain(own), unit.null])
        for own, unit in zip(changes, plan.units, strict=True)
    }
    if len(texts) < len(raw):  # some differ in nothing but seeds of units they need
        changes = [unit.changes for unit in plan.units]
    rows = []
    for unit, own in zip(plan.units, changes, strict=True):
        row = {"name": unit.name, "changes": _plain(own), "null": unit.null}
        rows.append(row | ({"after": dict(unit.after)} if unit.after else {}))
    return rows


def _write_config(unit: units.Unit, root: str) -> None:
    """Writes unit.json; once more where the root was moved before the unit began."""
    folder, path = units.folder(root, unit.name), units.config_file(root, unit.name)
    store.makedirs(folder)
    text = rundir.config_text(units.placed(unit, root))
    begun = store.exists(store.join(folder, "config.json"))
    if not store.exists(path) or (not begun and store.read_text(path) != text):
        store.write_text(path, text)


def _groups(root: str, found: Sequence[units.Unit]) -> list[list[str]]:
    """The groups of a root; none of one that is new."""
    if not store.exists(store.join(root, FILE)):
        return []
    old = read(root)
    names = {unit.name for unit in found}
    if lost := [unit for unit in old["units"] if unit["name"] not in names]:
        raise ValueError(
            f"{root} holds {len(lost)} of {len(old['units'])} units that the "
            f"experiment does not have (any more), such as {lost[0]['name']} "
            f"{lost[0]['changes']}: bring them back, or choose another --root"
        )
    return old["groups"]


def _check_free(root: str) -> None:
    """Refuses a folder that holds something else."""
    if store.is_url(root):
        raise ValueError(
            f"--root {root}: a sweep keeps locks and logs there: want a local folder"
        )
    files = store.listdir(root) if store.exists(root) else []
    ours = (FILE, f".{FILE}.", LOCKS, LOGS, "units")
    if FILE not in files and (other := [f for f in files if not f.startswith(ours)]):
        raise ValueError(
            f"--root {root} holds no sweep, but {other[:3]}: choose another"
        )


def _plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it: a ConfigDict is an object, a tuple a list."""
    as_dict = lambda value: value.to_dict()
    return json.loads(json.dumps(changes, default=as_dict))
