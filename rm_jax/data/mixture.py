"""What a config's data section names: the sources of training and of each eval set.

A set has one source, called "", or is a mixture of several with names. In a mixture an
eval SPEC "#valid" means that split of every source.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rm_jax import store
from rm_jax.data import sources
from rm_jax.data.formats import MAPPED
from rm_jax.data.hub import HUB_PATH

# set -> source -> SPEC; the set "train" is among them
Specs = dict[str, dict[str, str]]


class Part(NamedTuple):
    """One source of the training set.

    Attributes:
      spec: where its records come from, as the config has it.
      amount: its weight or count; 1 where it is the only one.
      columns: field -> column, for the formats that take them.
    """

    spec: str
    amount: float
    columns: dict[str, str]


def parts_of(data: Mapping[str, Any]) -> dict[str, Part]:
    """Name -> source of the training set; the only source of no mixture is ""."""
    train, columns = data["train"], dict(data["columns"].items())
    if isinstance(train, str):
        return {"": Part(train, 1.0, columns)}
    return {
        name: Part(
            part["spec"],
            part["count"] if "count" in part else part["weight"],
            dict(part["columns"].items()) if "columns" in part else columns,
        )
        for name, part in train.items()
    }


def takes_columns(spec: str) -> bool:
    """Whether the format of a SPEC takes a column map."""
    return spec.partition(":")[0] in MAPPED


@contextlib.contextmanager
def named(set: str, source: str) -> Iterator[None]:
    """What is wrong with a source inside is raised with the knob that names it.

    Args:
      set: "train", or the name of an evaluation set.
      source: of a mixture; "" where there is only one.
    """
    where = "config.data.train" if set == "train" else f"config.data.eval.{set}"
    if source:
        where = f"config.data.train.{source}" + (f" in {where}" * (set != "train"))
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError) as error:
        known = (ValueError, FileNotFoundError, ImportError)
        kind = next(kind for kind in known if isinstance(error, kind))
        raise kind(f"{where}: {error}") from error


def is_counted(data: Mapping[str, Any]) -> bool:
    """Whether the sources are given by counts."""
    train = data["train"]
    return not isinstance(train, str) and all("count" in p for p in train.values())


def specs_of(data: Mapping[str, Any]) -> Specs:
    """The SPEC of every source of the training set and of each evaluation set.

    An evaluation SPEC "#valid" is a split of every training source. Where an evaluation
    set is a split of a training source, by "#valid" or by its whole SPEC, training
    without a split means "#train" of it: no held-out prompt is trained on.

    Raises:
      ValueError: an evaluation set called "train", "#split" beside a training SPEC
        that names a split itself, columns that no source takes, or a SPEC that is
        none; names the knob.
    """
    parts, evals = parts_of(data), dict(data["eval"].items())
    if "train" in evals:
        raise ValueError("config.data.eval has a set called 'train': rename it")
    parsed = {name: _parsed("train", name, part.spec) for name, part in parts.items()}
    _check_columns(data)
    own = {n: s for n, s in evals.items() if s.startswith("#")}
    for name, spec in parsed.items():
        if own and sources.resolve(spec).split not in ("", "train"):
            where = f"config.data.train.{name}" if name else "config.data.train"
            raise ValueError(
                f"{where} = {parts[name].spec!r} names a split, so config.data.eval = "
                f"{own} cannot be splits of it: give them a SPEC of their own"
            )
    split = lambda spec, name: str(spec._replace(split=name))
    found = {
        name: {source: split(of, spec[1:]) for source, of in parsed.items()}
        if name in own
        else {"": spec}
        for name, spec in evals.items()
    }
    held = [_parsed(n, of, spec) for n in found for of, spec in found[n].items()]
    places = {_place(spec) for spec in held if spec.split not in ("", "train")}
    train = {
        name: split(of, of.split or "train")
        if _place(of) in places
        else parts[name].spec
        for name, of in parsed.items()
    }
    return {"train": train, **found}


def _parsed(set: str, source: str, spec: str) -> sources.Spec:
    with named(set, source):
        parsed = sources.parse_spec(spec)
        sources.resolve(parsed)  # an unknown preset
        return parsed


def _check_columns(data: Mapping[str, Any]) -> None:
    """Refuses columns that would not be used."""
    train, shared = data["train"], dict(data["columns"].items())
    mixture = {"": {"spec": train}} if isinstance(train, str) else dict(train.items())
    for name, part in mixture.items():
        own = dict(part["columns"].items()) if "columns" in part else {}
        if own and not takes_columns(part["spec"]):
            raise ValueError(
                f"config.data.train.{name}.columns = {own}: {part['spec']!r} takes no "
                f"columns: the formats that do are {MAPPED}"
            )
    users = [p["spec"] for p in mixture.values() if "columns" not in p]
    users += [spec for spec in data["eval"].values() if not spec.startswith("#")]
    if shared and not any(map(takes_columns, users)):
        raise ValueError(
            f"config.data.columns = {shared}: none of {users} takes columns: the "
            f"formats that do are {MAPPED}"
        )


class WorldSet(NamedTuple):
    """A set that is of a synthetic world.

    Attributes:
      split: of it; "" is all of it.
      knobs: of `make_world`.
    """

    split: str
    knobs: dict[str, Any]


def world_of(specs: Mapping[str, str], knobs: Mapping[str, Any]) -> WorldSet | None:
    """The world that a set is of; None of any other set, and of a mixture.

    Args:
      specs: source -> SPEC of the set.
      knobs: of config.data.world.
    """
    found = [sources.parse_spec(spec) for spec in specs.values()]
    if [spec.format for spec in found] != ["world"]:
        return None
    own = sources.world_knobs(found[0])
    return WorldSet(found[0].split, {**dict(knobs.items()), **own})


def _place(spec: sources.Spec) -> str:
    """Where the rows of a SPEC lie, whatever format, revision or preset reads them."""
    if spec.format == "world":
        return spec.format  # whatever its knobs: no two splits share a prompt
    path = sources.resolve(spec).path
    there = not store.is_url(path) and os.path.exists(path)
    hub = HUB_PATH.fullmatch(path)
    if there or not hub:
        return os.path.realpath(path) if there else path
    return hub["id"]  # one config or folder may hold the rows of another
