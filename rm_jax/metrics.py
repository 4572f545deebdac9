"""Metric states that leave the device as (sum, count), merge, and are divided once.

>>> first, second = Mean(3.0, 4.0), Mean(1.0, 1.0)
>>> divide({"accuracy": merge([{"accuracy": first}, {"accuracy": second}])["accuracy"]})
{'accuracy': 0.8}
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Mean(NamedTuple):
    """A weighted mean in two parts: Σ w·x and Σ w. A pytree, of any array library."""

    sum: Any
    count: Any

    def __add__(self, other: "Mean") -> "Mean":  # type: ignore[override]
        return Mean(self.sum + other.sum, self.count + other.count)


def mean_of(values: Any, weights: Any) -> Mean:
    """The state of some values: Σ w·x over the entries with w > 0, and Σ w.

    Args:
      values: array (numpy or jax), any shape; whatever stands where the weight is 0,
        NaN included, does not count.
      weights: array of the same shape, >= 0.

    Raises:
      ValueError: the shapes differ (broadcasting would count entries twice).
    """
    if values.shape != weights.shape:
        raise ValueError(
            f"values {values.shape} and weights {weights.shape} differ in shape: "
            "broadcast the weights first"
        )
    xp = values.__array_namespace__()
    kept = xp.where(weights > 0, values, xp.zeros_like(values))
    return Mean(xp.sum(kept * weights), xp.sum(weights))


def merge(states: Iterable[Mapping[str, Mean]]) -> dict[str, Mean]:
    """Adds states name by name; a name missing in some counts nothing there."""
    total: dict[str, Mean] = {}
    for state in states:
        for name, mean in state.items():
            total[name] = total[name] + mean if name in total else mean
    return total


def divide(states: Mapping[str, Mean]) -> dict[str, float]:
    """Σ w·x / Σ w for each name, as floats; NaN where nothing was counted."""
    return {
        name: float(mean.sum) / float(mean.count) if float(mean.count) else math.nan
        for name, mean in states.items()
    }
