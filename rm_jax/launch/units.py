"""Units of a sweep: their configs, names and commands; which can train together.

A unit's name is a hash of its config, without what no figure depends on. So it is the
same in every start of a sweep, and its folder, ROOT/units/NAME, is a run directory like
any other. Where a config names the run of another unit it says "ROOT/units/NAME", with
these four letters, wherever the root is; `placed` has the real one.
"""

import copy
import functools
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from rm_jax import config as config_module
from rm_jax import hyper, needs, schemas, store, together
from rm_jax.config import ConfigError, flatten
from rm_jax.experiment import Experiment

# Where caches are and what is shown: all of it may change when a run is continued.
UNNAMED = (
    "data.cache_dir", "batch.prefetch", "train.compile_cache", "train.report",
    "train.tensorboard", "train.wandb", "train.trackio", "train.profile",
)  # fmt: skip


class Unit(NamedTuple):
    """A unit with its whole config.

    Attributes:
      name: `name_of` the config.
      config: validated.
      changes: of the base config; runs of other units as "after NAME".
      null: whether it is of the world in which the claims are false.
      after: key of the changes -> names of the units that its value needs.
    """

    name: str
    config: FrozenConfigDict
    changes: hyper.Unit
    null: bool
    after: Mapping[str, tuple[str, ...]]

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the units that are finished before this one starts."""
        names = (name for names in self.after.values() for name in names)
        return tuple(dict.fromkeys(names))

    def __str__(self) -> str:
        changes = (f"{key}={value}" for key, value in self.changes.items())
        return " ".join([self.name, *changes, *["(null world)"] * self.null])


def resolve(experiment: Experiment) -> list[Unit]:
    """The units of an experiment, those of the null world last.

    Raises:
      ConfigError: a unit with an unknown key or a value out of range, one that needs a
        unit that is not there, or two units of one config; names them.
    """
    listed = [("sweep", unit) for unit in experiment.units]
    listed += [("null", unit) for unit in experiment.null]
    name = _namer(experiment.base)
    units: dict[str, Unit] = {}
    for source, changes in listed:
        try:
            unit = _unit(experiment.base, changes, source == "null", name)
        except ValueError as error:
            seen = needs.shown(changes, ())
            raise ConfigError(f"unit {seen} of {source}(): {error}") from error
        if unit.name in units:
            raise ConfigError(
                f"units {units[unit.name].changes} and {changes} have one config: a "
                "value is the base's own, or the two worlds do not differ"
            )
        units[unit.name] = unit
    for source, changes in listed:
        _check_needs(source, changes, units, name)
    return list(units.values())


def _namer(base: ConfigDict) -> Callable[[hyper.Unit], str]:
    """Gives the name of the unit of some changes; of each it is computed once."""
    known: dict[str, str] = {}

    def name(changes: hyper.Unit) -> str:
        key = needs.after(changes)
        if key not in known:
            known[key] = name_of(_changed(base, changes, name))
        return known[key]

    return name


def _unit(
    base: ConfigDict,
    changes: hyper.Unit,
    null: bool,
    name: Callable[[hyper.Unit], str],
) -> Unit:
    config = _changed(base, changes, name)
    after: dict[str, tuple[str, ...]] = {}

    def say(key: str, other: hyper.Unit, path: str) -> str:
        after[key] = tuple(dict.fromkeys([*after.get(key, ()), name(other)]))
        return needs.said(name(other), path)

    seen = {
        key: needs.replaced(value, functools.partial(say, key))
        for key, value in changes.items()
    }
    return Unit(name_of(config), config, seen, null, after)


def _changed(
    base: ConfigDict, changes: hyper.Unit, name: Callable[[hyper.Unit], str]
) -> FrozenConfigDict:
    config = copy.deepcopy(base)
    place = lambda other, path: store.join(_place(name(other)), path).rstrip("/")
    for key, value in changes.items():
        config_module.override(config, key, needs.replaced(value, place))
    return config_module.validate(config)


def _check_needs(
    source: str,
    changes: hyper.Unit,
    units: Mapping[str, Unit],
    name: Callable[[hyper.Unit], str],
) -> None:
    """Refuses a unit that needs one which the experiment does not have."""

    def check(other: hyper.Unit, path: str) -> str:
        unit = units.get(name(other))
        if unit is None or (unit.null and source == "sweep"):
            known = "sweep()" if source == "sweep" else "sweep() or null()"
            raise ConfigError(
                f"unit {needs.shown(changes, ())} of {source}() is after "
                f"{needs.shown(other, ())}, which is no unit of {known}: give exactly "
                "its changes"
            )
        return ""

    needs.replaced(changes, check)


def _place(name: str) -> str:
    """What a config has for the run of another unit."""
    return f"ROOT/units/{name}"


def placed(unit: Unit, root: str) -> ConfigDict:
    """The config of a unit with the real runs of those that it needs."""

    def place(text: str) -> str:
        for name in unit.needs:
            text = text.replace(_place(name), store.absolute(folder(root, name)))
        return text

    return ConfigDict(needs.mapped(unit.config.to_dict(), place))


def name_of(config: Any) -> str:
    """The name of the unit of a config: 10 hex digits of the SHA-256 of its values.

    Those in UNNAMED are left out: a sweep goes on with another cache or tracker.
    """
    values = flatten(json.loads(json.dumps(config.to_dict())))
    kept = {key: value for key, value in values.items() if key not in UNNAMED}
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def groups(units: Sequence[Unit], separate: bool = False) -> list[list[str]]:
    """Names of the units that train together, in the order of the units.

    A group is all units that differ only in what `together.varies` allows, and need the
    same units. Ensembles, and runs that start from another's state, train alone.

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
    return json.dumps([left, unit.needs], sort_keys=True)


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
