"""Units of a sweep: their configs, names and commands; which can train together.

A unit's name is a hash of its whole config. So it is the same in every start of a
sweep, and its folder, ROOT/units/NAME, is a run directory like any other.
"""

import copy
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from rm_jax import config as config_module
from rm_jax import hyper, rundir, schemas, store, together
from rm_jax.config import ConfigError, flatten
from rm_jax.experiment import Experiment


class Unit(NamedTuple):
    """A unit with its whole config.

    Attributes:
      name: first 10 hex digits of the SHA-256 of the config's text.
      config: validated.
      changes: of the base config, as the experiment gives them.
      null: whether it is of the world in which the claims are false.
    """

    name: str
    config: FrozenConfigDict
    changes: hyper.Unit
    null: bool

    def __str__(self) -> str:
        changes = (f"{key}={value}" for key, value in self.changes.items())
        return " ".join([self.name, *changes, *["(null world)"] * self.null])


def resolve(experiment: Experiment) -> list[Unit]:
    """The units of an experiment, those of the null world last.

    Raises:
      ConfigError: a unit with an unknown key or a value out of range, or two units of
        one config; names them.
    """
    listed = [("sweep", unit) for unit in experiment.units]
    listed += [("null", unit) for unit in experiment.null]
    units: dict[str, Unit] = {}
    for source, changes in listed:
        try:
            config = _changed(experiment.base, changes)
        except ConfigError as error:
            raise ConfigError(f"unit {changes} of {source}(): {error}") from error
        unit = Unit(name_of(config), config, changes, source == "null")
        if unit.name in units:
            raise ConfigError(
                f"units {units[unit.name].changes} and {changes} have one config: a "
                "value is the base's own, or the two worlds do not differ"
            )
        units[unit.name] = unit
    return list(units.values())


def name_of(config: Any) -> str:
    """The name of the unit of a config."""
    text = rundir.config_text(config)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _changed(base: ConfigDict, changes: Mapping[str, Any]) -> FrozenConfigDict:
    config = copy.deepcopy(base)
    for key, value in changes.items():
        config_module.override(config, key, value)
    return config_module.validate(config)


def groups(units: Sequence[Unit], separate: bool = False) -> list[list[str]]:
    """Names of the units that train together, in the order of the units.

    A group is all units that differ only in what `together.varies` allows. Ensembles,
    and runs that start from another's state, train alone.

    Args:
      units: of a sweep.
      separate: every unit trains alone.
    """
    found: dict[str, list[str]] = {}
    for unit in units:
        alone = separate or unit.config.members.count > 1 or unit.config.train.resume
        found.setdefault(unit.name if alone else _program(unit), []).append(unit.name)
    return list(found.values())


def _program(unit: Unit) -> str:
    """Equal for units that can train together: the config without what may differ."""
    values = flatten(unit.config.to_dict())
    left = {
        key: "varies" if together.varies(key, value) else repr(value)
        for key, value in values.items()
    }
    return json.dumps(left, sort_keys=True)


def folder(root: str, name: str) -> str:
    """The run directory of a unit."""
    return store.join(root, "units", name)


def config_file(root: str, name: str) -> str:
    """The whole config of a unit; written before it starts."""
    return store.join(folder(root, name), "unit.json")


def failure_file(root: str, name: str) -> str:
    """Says why a unit failed, until it is started again."""
    return store.join(folder(root, name), "failed.json")


def command(root: str, name: str, alone: bool = True) -> str:
    """What trains a unit by itself, for a shell.

    One of a group shares its checkpoints: it can be trained by itself only elsewhere,
    in ROOT/alone/NAME.
    """
    workdir = folder(root, name) if alone else store.join(root, "alone", name)
    words = ["rm-jax", "train", "--config", config_file(root, name)]
    return shlex.join([*words, "--workdir", workdir])


def finished(root: str, name: str) -> bool:
    """Whether a unit has its final figures.

    They are written whole, after the last step; a damaged file is no figures.

    Raises:
      SchemaError: they are of a newer rm_jax.
    """
    path = store.join(folder(root, name), "evals.json")
    if not store.exists(path):
        return False
    try:
        value = store.read_json(path)
    except ValueError:
        return False
    schemas.checked("evals.json", value, path)
    return True
