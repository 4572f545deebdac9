"""Confidence intervals of weighted means: whole prompts are resampled, not pairs."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95
DRAWS = 1000


class Sample(NamedTuple):
    """Values whose weighted mean is a figure, and the cluster each belongs to.

    Attributes:
      values: one a pair or an example.
      weights: > 0.
      clusters: hash of the prompt.
    """

    values: Float[np.ndarray, "n"]
    weights: Float[np.ndarray, "n"]
    clusters: Int[np.ndarray, "n"]

    def mean(self) -> float:
        """Σ w·x / Σ w; NaN without values."""
        if not len(self.values):
            return float("nan")
        return float(np.average(self.values, weights=self.weights))


def intervals(
    samples: Mapping[str, Sample], seed: int, draws: int = DRAWS
) -> dict[str, tuple[float, float]]:
    """95 % intervals of several means by the clustered percentile bootstrap.

    C clusters are drawn with replacement from the C there are, once for all samples;
    each mean is Σ w·x / Σ w over the clusters drawn. Where every value of a sample is 0
    (or every one is 1) the bootstrap would say "no doubt at all": there the bound is
    the exact binomial one for c clusters, 1 - .025^(1/c) (or .025^(1/c)).

    Args:
      samples: name -> values; an empty sample gets (NaN, NaN), as does one of a single
        cluster.
      seed: of the draws.
      draws: number of bootstrap draws.

    Returns:
      name -> (low, high).

    Reference: Cameron, Gelbach and Miller 2008, "Bootstrap-based improvements for
    inference with clustered errors" (pairs cluster bootstrap); Clopper, Pearson 1934.
    """
    full = [s.clusters for s in samples.values() if len(s.values)]
    if not full:
        return {name: (float("nan"), float("nan")) for name in samples}
    universe = np.unique(np.concatenate(full))
    sums = [_cluster_sums(s, universe) for s in samples.values()]
    drawn = _resample(np.concatenate(sums, axis=1), seed, draws)
    out = {}
    for i, (name, sample) in enumerate(samples.items()):
        out[name] = _bounds(sample, drawn[:, 2 * i], drawn[:, 2 * i + 1])
    return out


def together(
    samples: Mapping[str, Sample], seed: int, draws: int = DRAWS
) -> dict[str, tuple[float, float]]:
    """95 % intervals of several means that all hold at once; of values in [-1, 1].

    mean ± max(q·s, 1 - .025^(1/c)), s the standard deviation of the mean over the draws
    of `intervals` and q the .95 quantile over draws of the largest |draw - mean| / s of
    all samples. The second is the most that c prompts which show nothing leave open.

    Args:
      samples: name -> values; one of fewer than two clusters gets (NaN, NaN).
      seed: of the draws.
      draws: number of bootstrap draws.

    Returns:
      name -> (low, high).

    Reference: Romano and Wolf 2005, "Exact and approximate stepdown methods for
    multiple hypothesis testing" (the largest studentised statistic); Clopper and
    Pearson 1934.
    """
    clusters = {name: len(np.unique(s.clusters)) for name, s in samples.items()}
    known = {name: s for name, s in samples.items() if clusters[name] > 1}
    out = {name: (float("nan"), float("nan")) for name in samples}
    if not known:
        return out
    universe = np.unique(np.concatenate([s.clusters for s in known.values()]))
    sums = [_cluster_sums(s, universe) for s in known.values()]
    drawn = _resample(np.concatenate(sums, axis=1), seed, draws)
    means = np.array([s.mean() for s in known.values()])
    # A draw may miss every cluster of a small sample: it says nothing about its mean.
    off = drawn[:, ::2] / np.where(drawn[:, 1::2] > 0, drawn[:, 1::2], np.nan) - means
    spread = np.nanstd(off, axis=0)
    largest = np.nanmax(np.abs(off) / np.where(spread > 0, spread, np.inf), axis=1)
    half = np.nanquantile(largest, LEVEL) * spread
    for name, mean, own in zip(known, means, half, strict=True):
        own = max(own, 1 - ((1 - LEVEL) / 2) ** (1 / clusters[name]))
        out[name] = float(mean - own), float(mean + own)
    return out


def _cluster_sums(sample: Sample, universe: Int[np.ndarray, "c"]) -> np.ndarray:
    place = np.searchsorted(universe, sample.clusters)
    top = np.bincount(place, sample.weights * sample.values, len(universe))
    return np.stack([top, np.bincount(place, sample.weights, len(universe))], axis=1)


def _resample(
    sums: Float[np.ndarray, "c m"], seed: int, draws: int
) -> Float[np.ndarray, "d m"]:
    rng = np.random.default_rng(seed)
    c = len(sums)
    out = np.empty((draws, sums.shape[1]))
    for d in range(draws):
        times = np.bincount(rng.integers(c, size=c, dtype=np.int32), minlength=c)
        out[d] = times.astype(np.float64) @ sums
    return out


def _bounds(
    sample: Sample, top: Float[np.ndarray, "d"], bottom: Float[np.ndarray, "d"]
) -> tuple[float, float]:
    c = len(np.unique(sample.clusters))
    tail = (1 - LEVEL) / 2
    if c and (sample.values == 1).all():
        return tail ** (1 / c), 1.0
    if c and (sample.values == 0).all():
        return 0.0, 1 - tail ** (1 / c)
    if c < 2:
        return float("nan"), float("nan")
    # A draw may miss every cluster of a small sample: it says nothing about its mean.
    means = top[bottom > 0] / bottom[bottom > 0]
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
