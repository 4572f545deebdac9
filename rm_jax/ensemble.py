"""Configs of the members of an ensemble, and their numbers side by side (no jax)."""

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

# What member i adds i to.
SEEDS = ("init_seed", "dropout_seed")


def configs(config: Any) -> tuple[Any, ...]:
    """The run that each member of an ensemble is; the config itself of a plain run."""
    count, own_order = config.members.count, config.members.own_order
    if count == 1:
        return (config,)
    return tuple(_member(config, i, own_order) for i in range(count))


def _member(config: Any, i: int, own_order: bool) -> Any:
    c = ml_collections.ConfigDict(config.to_dict())
    for name in SEEDS:
        c[name] += i
    c.data_seed += i * own_order
    c.data.bootstrap_seed += i
    return c


def stacked(values: Sequence[Any]) -> Any:
    """Nested dicts and NamedTuples of numbers as one, each leaf [m]."""
    first = values[0]
    if isinstance(first, dict):
        return {k: stacked([v[k] for v in values]) for k in first}
    if isinstance(first, tuple):
        return type(first)(*map(stacked, zip(*values, strict=True)))
    return np.stack([np.asarray(v) for v in values])
