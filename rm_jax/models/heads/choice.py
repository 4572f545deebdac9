"""Heads by name, and which of them a config describes."""

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rm_jax.models.arch import ArchConfig
from rm_jax.models.heads.bottleneck import BOTTLENECK
from rm_jax.models.heads.gated import GATED
from rm_jax.models.heads.head import Head
from rm_jax.models.heads.implicit import IMPLICIT
from rm_jax.models.heads.lengths import EXPERT, ODIN
from rm_jax.models.heads.pair import PAIR
from rm_jax.models.heads.ratings import ATTRIBUTES, GAUSSIAN, QUANTILES
from rm_jax.models.heads.scalar import AFFINE, LINEAR, MLP
from rm_jax.models.heads.steps import STEPS
from rm_jax.models.stepwise import check_reduce

HEADS: dict[str, Head] = {
    "linear": LINEAR,
    "affine": AFFINE,
    "mlp": MLP,
    "attributes": ATTRIBUTES,
    "gated": GATED,
    "quantiles": QUANTILES,
    "gaussian": GAUSSIAN,
    "odin": ODIN,
    "length_expert": EXPERT,
    "bottleneck": BOTTLENECK,
    "pair": PAIR,
    "steps": STEPS,
    "implicit": IMPLICIT,
}


def find(name: str) -> Head:
    """The head of this name, or of "package.module:HEAD".

    Raises:
      ValueError: an unknown name, with the known ones.
    """
    if name in HEADS:
        return HEADS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"config.model.head.name = {name!r}; known: {sorted(HEADS)}, or "
            "package.module:HEAD"
        )
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (Exception, SystemExit) as e:  # importing runs a module
        raise ValueError(
            f"config.model.head.name = {name!r}: cannot import {module!r}: "
            f"{type(e).__name__}: {e}; is its folder installed or on PYTHONPATH?"
        ) from e
    if not isinstance(found, Head):
        raise ValueError(
            f"config.model.head.name = {name!r} is {found!r:.80}: want an "
            "rm_jax.models.heads.Head"
        )
    return found


def choose(
    config_head: Mapping[str, Any], attributes: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Name and knobs of the head that `config.model.head` describes.

    Args:
      config_head: {"name": ..., "init": ..., knob: value, ...}; knobs left out have
        their defaults.
      attributes: names of the ratings of the training data.

    Raises:
      ValueError: as `check`; a head of attributes for data without ratings.
    """
    check(config_head)
    values = dict(config_head)
    name = values.pop("name")
    del values["init"]
    head = find(name)
    if head.of_attributes and not attributes:
        others = sorted(n for n, h in HEADS.items() if not h.of_attributes)
        raise ValueError(
            f"config.model.head.name = {name!r} predicts ratings, and the training "
            "data have none: name their columns in config.data.columns, or choose "
            f"another head of {others}"
        )
    return name, {**head.knobs, **values}


def check(config_head: Mapping[str, Any]) -> Head:
    """The head that `config.model.head` describes; needs no data.

    Raises:
      ValueError: an unknown name or knob, with the known ones; a value of another type
        than the default; a start that the head cannot have.
    """
    values = dict(config_head)
    name, init = values.pop("name"), values.pop("init")
    head = find(name)
    for knob, value in values.items():
        _check_knob(name, knob, value)
    if init == "zero" and not head.zero:
        raise ValueError(
            f"config.model.head.init = 'zero': the head {name} has parts that differ "
            "only by how they start: choose 'normal'"
        )
    if "reduce" in head.knobs:
        check_reduce(values.get("reduce", head.knobs["reduce"]))
    return head


def _check_knob(name: str, knob: str, value: Any) -> None:
    head, where = find(name), f"config.model.head.{knob}"
    if knob not in head.knobs:
        raise ValueError(f"{where}: head {name} has the knobs {dict(head.knobs)}")
    default, limits = head.knobs[knob], head.limits.get(knob)
    if knob in head.one_each and hasattr(value, "items"):
        for attribute in value:
            _check(f"{where}[{attribute!r}]", value[attribute], default, limits)
    else:
        _check(where, value, default, limits)


def _check(
    where: str, value: Any, default: Any, limits: tuple[float, float] | None
) -> None:
    """A knob has the type of its default; whole numbers count something, so from 1."""
    limit = ""
    if isinstance(default, tuple):
        ok = isinstance(value, tuple | list) and all(_counts(n) for n in value)
    elif isinstance(default, Mapping):
        ok = hasattr(value, "values") and all(
            isinstance(v, int | float) and math.isfinite(v) for v in value.values()
        )
    elif isinstance(default, float):
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        if limits:
            limit = f", from {limits[0]:g} to {limits[1]:g}"
            ok = ok and limits[0] <= value <= limits[1]
        else:
            limit = ", from 0 to below 1" if default < 1 else ", above 0"
            ok = ok and (0 <= value < 1 if default < 1 else 0 < value < math.inf)
    elif isinstance(default, int):
        ok = _counts(value)
    else:
        ok = isinstance(value, type(default))
    if not ok:
        raise ValueError(
            f"{where} = {value!r:.80}: want a value like {default!r}{limit}"
        )


def _counts(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 2**20


def shapes(arch: ArchConfig, slots: int = 2) -> dict[str, tuple[int, ...]]:
    """What the head of a model gives beside the scores -> its shape after [e k].

    Args:
      arch: of the model.
      slots: of a row; a response has at most that many steps.
    """
    head = find(arch.head)
    of_step = lambda name: (slots,) if name in head.steps else ()
    return {name: of_step(name) + shape(arch) for name, shape in head.outputs.items()}
