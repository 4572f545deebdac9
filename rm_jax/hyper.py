"""Lists of changes to a config: the units of a sweep, built from small parts.

A unit is a dict, dotted config key -> value; a sweep is a list of units.

>>> product([sweep("loss.name", ["bt", "hinge"]), sweep("init_seed", [0, 1])])[1]
{'loss.name': 'bt', 'init_seed': 1}
>>> zipit([sweep("optim.learning_rate", [1e-3, 1e-4]), fixed("batch.examples", 64)])[1]
{'optim.learning_rate': 0.0001, 'batch.examples': 64}

The names are those that configs of big_vision, scenic and uncertainty-baselines use.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

Unit = dict[str, Any]


def sweep(key: str, values: Iterable[Any]) -> list[Unit]:
    """One unit a value of a key.

    Raises:
      ValueError: no values, or the same one twice.
    """
    values = list(values)
    if not values:
        raise ValueError(f"sweep({key!r}, []): want at least one value")
    for n, value in enumerate(values):
        if any(type(value) is type(v) and value == v for v in values[:n]):
            raise ValueError(f"sweep({key!r}, ...): the value {value!r} is twice in it")
    return [{key: value} for value in values]


def fixed(key: str, value: Any, length: int = 1) -> list[Unit]:
    """The same value in `length` units."""
    if length < 1:
        raise ValueError(f"fixed({key!r}, ..., length={length}): want at least 1")
    return [{key: value} for _ in range(length)]


def product(sweeps: Iterable[Sequence[Unit]]) -> list[Unit]:
    """Every combination of a unit of each sweep; the last changes fastest.

    Raises:
      ValueError: two sweeps set the same key; names it.
    """
    return [_merged(units) for units in itertools.product(*sweeps)]


def zipit(sweeps: Iterable[Sequence[Unit]]) -> list[Unit]:
    """The first units of all sweeps together, then the second ones, and so on.

    A sweep of one unit goes with all of them.

    Raises:
      ValueError: sweeps of different lengths above 1, or that set the same key.
    """
    sweeps = [list(units) for units in sweeps]
    longest = max(map(len, sweeps), default=0)
    if wrong := [len(units) for units in sweeps if len(units) not in (1, longest)]:
        raise ValueError(
            f"zipit: sweeps of {longest} and {wrong[0]} units: want one length, or 1"
        )
    whole = [units * longest if len(units) == 1 else units for units in sweeps]
    return [_merged(units) for units in zip(*whole, strict=True)]


def chainit(sweeps: Iterable[Sequence[Unit]]) -> list[Unit]:
    """All units of the first sweep, then all of the second, and so on.

    Raises:
      ValueError: the same unit twice.
    """
    units = list(itertools.chain.from_iterable(sweeps))
    for n, unit in enumerate(units):
        if unit in units[:n]:
            raise ValueError(f"chainit: the unit {unit} is twice in it")
    return units


def _merged(units: Sequence[Unit]) -> Unit:
    out: Unit = {}
    for unit in units:
        for key in unit:
            if key in out:
                raise ValueError(
                    f"two sweeps set {key}: {out[key]!r} and {unit[key]!r}; want one"
                )
        out |= unit
    return out
