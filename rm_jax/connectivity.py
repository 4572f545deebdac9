"""Linear mode connectivity: whether the weights of models can be averaged.

They can where no model on the line between two of them is worse than the line between
their accuracies,

    gap(λ) = acc((1 - λ) a + λ b) - (1 - λ) acc(a) - λ acc(b) >= -tolerance.

Models fine-tuned from the same pretraining usually are so connected, others are not.

A gap is measured on some pairs, so it has an interval, and a line is "BROKEN" where the
whole interval of its least gap is below -tolerance, "holds" where the whole is above,
else "undecided". All intervals of a check, of every line, every λ and the mean of all
weights, hold at once with 95 % (`intervals.together`): it is one test, however many
models there are.

Simulated for members whose weights do average: BROKEN in 0 to .5 % of the checks, at 40
to 5,000 pairs (by the gap alone 60 % at 40, 30 % at 500). The price, for two models and
a tolerance of .005: "holds" in a third of the checks of 2,000 pairs and three quarters
of those of 5,000; a true loss of .02 is BROKEN in half and three quarters.

Reference: Ramé 2024 (2401.12187), Observation 1; Frankle 2020 (1912.05671).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rm_jax.evals.intervals import Sample, together

LAMBDAS = (0.25, 0.5, 0.75)

Params = Any


class Model(NamedTuple):
    """One model to be averaged: "RUN", or "RUN member i"."""

    name: str
    params: Params


class Gap(NamedTuple):
    """Accuracy of averaged weights less the average of the accuracies.

    Attributes:
      gap: below 0 is a barrier.
      low, high: its 95 % interval; NaN of a single prompt.
    """

    gap: float
    low: float
    high: float

    def verdict(self, tolerance: float) -> str:
        """ "BROKEN", "holds" or "undecided"."""
        if self.high < -tolerance:
            return "BROKEN"
        return "holds" if self.low > -tolerance else "undecided"


class Line(NamedTuple):
    """Accuracies along the line between two models.

    Attributes:
      a: name of the model at λ = 0.
      b: name of the model at λ = 1.
      accuracy: λ -> accuracy of (1 - λ) a + λ b.
      least: the least gap of all λ; its bounds are the least of theirs.
    """

    a: str
    b: str
    accuracy: dict[float, float]
    least: Gap


class Connectivity(NamedTuple):
    """The check before an average.

    Attributes:
      lines: of each two models; none where the models are linear heads on one trunk,
        whose average scores the mean of their scores, whatever they are.
      average: accuracy of the mean of all weights.
      members: mean accuracy of the models.
      of_average: average - members.
      n: pairs of responses that an accuracy is of.
      tolerance: accuracy that may be lost.
    """

    lines: list[Line]
    average: float
    members: float
    of_average: Gap
    n: int
    tolerance: float

    def broken(self) -> list[Line]:
        """The lines along which accuracy is lost."""
        return [x for x in self.lines if x.least.verdict(self.tolerance) == "BROKEN"]

    def verdict(self) -> str:
        """Of all lines and the average: "BROKEN" if one is, "holds" if all do.

        "exact" where there are no lines.
        """
        gaps = [*(line.least for line in self.lines), self.of_average]
        found = {gap.verdict(self.tolerance) for gap in gaps}
        if not self.lines:
            return "exact"
        known = ("BROKEN", "undecided", "holds")
        return next(verdict for verdict in known if verdict in found)

    def to_json(self) -> dict[str, Any]:
        """What lmc.json says."""
        known = lambda gap: {
            **{k: None if math.isnan(x) else x for k, x in gap._asdict().items()},
            "n": self.n,
        }
        lines = [
            {
                "a": line.a,
                "b": line.b,
                "accuracy": {f"{x:g}": y for x, y in line.accuracy.items()},
                **known(line.least),
                "verdict": line.least.verdict(self.tolerance),
            }
            for line in self.lines
        ]
        return {
            "lines": lines,
            "average": self.average,
            "members": self.members,
            **known(self.of_average),
            "tolerance": self.tolerance,
            "verdict": self.verdict(),
        }


def combine(params: Sequence[Params], weights: Sequence[float] | None = None) -> Params:
    """Σ weight · params, leaf by leaf in float64, in the leaves' own types.

    Args:
      params: trees of one structure.
      weights: that sum to 1; default equal ones.
    """
    share = np.full(len(params), 1 / len(params)) if weights is None else weights

    def leaf(*xs):
        total = sum(
            w * np.asarray(x, np.float64) for w, x in zip(share, xs, strict=True)
        )
        return jax.numpy.asarray(total.astype(xs[0].dtype))

    return jax.tree.map(leaf, *params)


def connectivity(
    found: Sequence[Model],
    measure: Callable[[Params], Sample],
    tolerance: float,
    linear_head: bool = False,
) -> Connectivity:
    """Measures every model, the line between each two, and the mean of all.

    Args:
      found: the models.
      measure: parameters -> credit of each pair, in [0, 1], of the same pairs always.
      tolerance: of the check.
      linear_head: whether scores are linear in the parameters named "head". Models
        that differ in these alone have no lines: the check would be of nothing.
    """
    alone = [measure(model.params) for model in found]
    mean = measure(combine([model.params for model in found]))
    of = {"mean": _less(mean, alone, [1 / len(found)] * len(found))}
    between, numbers = {}, itertools.combinations(range(len(found)), 2)
    for i, j in () if linear_head and _one_trunk(found) else numbers:
        for x in LAMBDAS:
            share, ends = [1 - x, x], [alone[i], alone[j]]
            own = measure(combine([found[i].params, found[j].params], share))
            between[i, j, x] = own.mean()
            of[f"{i} {j} {x}"] = _less(own, ends, share)
    bounds = together(of, seed=0)
    gaps = {name: Gap(of[name].mean(), *bounds[name]) for name in of}
    lines = []
    for i, j in dict.fromkeys(key[:2] for key in between):
        middle = {x: between[i, j, x] for x in LAMBDAS}
        accuracy = {0.0: alone[i].mean(), **middle, 1.0: alone[j].mean()}
        columns = zip(*(gaps[f"{i} {j} {x}"] for x in LAMBDAS), strict=True)
        lines.append(
            Line(found[i].name, found[j].name, accuracy, Gap(*map(min, columns)))
        )
    own = float(np.mean([one.mean() for one in alone]))
    n = len(mean.values)
    return Connectivity(lines, mean.mean(), own, gaps["mean"], n, tolerance)


def _less(own: Sample, others: Sequence[Sample], share: Sequence[float]) -> Sample:
    """A gap, pair by pair."""
    line = sum(x * one.values for x, one in zip(share, others, strict=True))
    return own._replace(values=own.values - line)


def _one_trunk(found: Sequence[Model]) -> bool:
    """Whether the models differ in the head alone."""
    trunk = lambda model: {k: v for k, v in model.params.items() if k != "head"}
    first = jax.tree.leaves(trunk(found[0]))
    return all(
        x is y or np.array_equal(x, y)
        for model in found[1:]
        for x, y in zip(first, jax.tree.leaves(trunk(model)), strict=True)
    )


def table_lines(check: Connectivity) -> Iterator[str]:
    """The check as text: one row a line between two models, then the average."""
    yield f"accuracy on {check.n} pairs, at λ on the line from a to b"
    if check.lines:
        head = " ".join(f"{x:>8g}" for x in (*LAMBDAS, 1))
        yield f"{'λ =':>8} 0 {head}   least - line, 95 %"
    else:
        yield (
            "linear heads on one trunk: the mean of the weights scores the mean of the "
            "scores; no line to check"
        )
    for line in check.lines:
        values = " ".join(f"{y:8.4f}" for y in line.accuracy.values())
        said = _said(line.least, check)
        yield f"  {values}   {said}  a = {line.a}, b = {line.b}"
    yield (
        f"mean of all weights: accuracy {check.average:.4f}, its members "
        f"{check.members:.4f} on average: {_said(check.of_average, check)}"
    )
    if check.verdict() == "BROKEN":
        yield (
            f"WARNING linear mode connectivity does not hold: {len(check.broken())} of "
            f"{len(check.lines)} lines lose more accuracy than {check.tolerance}, or "
            "the average does. These weights do not average, as those of different "
            "pretrainings do not: train the models from one config.model.init, or use "
            "them as members"
        )
    if check.verdict() == "undecided":
        yield (
            f"linear mode connectivity is undecided on {check.n} pairs: a loss of "
            f"{check.tolerance} is neither sure nor excluded; give --data with more "
            "pairs, or a larger --tolerance"
        )


def _said(gap: Gap, check: Connectivity) -> str:
    verdict = gap.verdict(check.tolerance) if check.lines else ""
    bounds = f"[{gap.low:+.4f}, {gap.high:+.4f}]"
    return f"{gap.gap:+.4f} {bounds} {verdict}".rstrip()
