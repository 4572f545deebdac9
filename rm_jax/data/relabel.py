"""What a run does to its training labels: noise, bootstrap weights.

Both are functions of the example's index in the set and of a seed, so that a step knows
them whatever came before, and two runs with one seed turn the same examples round.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rm_jax.types import Labels

BOOTSTRAPS = ("none", "poisson")
_NOISE, _BOOTSTRAP = 0x6E6F6973, 0x626F6F74  # streams of random numbers
# P(Poisson(1) <= n): beyond n = 12 there is nothing left in float64's first 10 digits.
_POISSON = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 13)]))


class Relabel(NamedTuple):
    """Changes of the training labels.

    Attributes:
      noise: share of the examples whose preference is turned round.
      noise_seed: which ones.
      bootstrap: "none", or "poisson": weights times Poisson(1), the bootstrap of an
        endless row of examples (Oza 2001).
      bootstrap_seed: which weights.
    """

    noise: float = 0.0
    noise_seed: int = 0
    bootstrap: str = "none"
    bootstrap_seed: int = 0


def of_config(data: Any) -> Relabel:
    """What config.data says."""
    return Relabel(
        data.label_noise, data.noise_seed, data.bootstrap, data.bootstrap_seed
    )


def relabel(labels: Labels, how: Relabel) -> Labels:
    """The labels as a run sees them.

    Where a preference is turned round, the ranks of an example are reversed and `soft`
    is 1 - soft; ratings, steps and the strength of the preference stay.
    """
    if how.noise:
        turned = uniform(labels.ids, how.noise_seed, _NOISE) < how.noise
        last = labels.ranks.max(axis=1, keepdims=True)
        back = np.where(labels.ranks < 0, labels.ranks, last - labels.ranks)
        labels = labels._replace(
            ranks=np.where(turned[:, None], back, labels.ranks),
            soft=np.where(turned, 1 - labels.soft, labels.soft),
        )
    if how.bootstrap == "poisson":
        u = uniform(labels.ids, how.bootstrap_seed, _BOOTSTRAP)
        times = np.searchsorted(_POISSON, u, side="right").astype(np.float32)
        labels = labels._replace(weight=labels.weight * times)
    return labels


def uniform(
    ids: Int[np.ndarray, "e"], seed: int, stream: int
) -> Float[np.ndarray, "e"]:
    """A number in [0, 1) for each index, by the SplitMix64 hash (Steele 2014)."""
    x = _mix(
        np.uint64(stream) + _mix(np.full(ids.shape, seed, np.int64).view(np.uint64))
    )
    x = _mix(x + ids.astype(np.int64).view(np.uint64))
    return (x >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
