"""Pictures of an uncertainty: what it is worth where the model is wrong, and in choice.

>>> best_of_n({"best_of_1/gold": 0.0, "best_of_4/gold": 1.0, "members/nll": 0.6})
{'the model': {1: 0.0, 4: 1.0}}
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from rm_jax import evals
from rm_jax.evals import uncertainty
from rm_jax.evals.accuracy import credit
from rm_jax.evals.table import untied
from rm_jax.report import names, plots, runs
from rm_jax.report.plots import Picture

# What a figure of the best of n is of -> its line.
CHOOSERS = {
    "": "the model",
    "members": "one member alone",
    "reducer/mean": "mean",
    "reducer/min": "min",
    "reducer/mean_minus_var": "mean_minus_var",
}


class Risk(NamedTuple):
    """Error of the least doubtful pairs against their share.

    Attributes:
      lines: what doubts -> (coverage, error).
      flat: the error of all pairs, which a doubt without any use has everywhere.
    """

    lines: dict[str, tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]]
    flat: float

    def area(self, line: str) -> float:
        """Mean error over all coverages (AURC); as uncertainty/aurc."""
        coverage, error = self.lines[line]
        return float(np.sum(np.diff(coverage, prepend=0) * error))


STD, MARGIN, ORACLE = "std of the margin", "small |margin|", "oracle"


def pictures(run: runs.Run, found: Mapping[str, Any]) -> Iterator[Picture]:
    """Those of every set with an uncertainty: by its predictions and by its figures."""
    for name, values in found.items():
        if "uncertainty/score_std" not in values:
            continue
        if name in run.prediction_names and (own := risk(run.predictions(name))):
            yield _risk(name, own)
        yield from of_choice(name, values)


def of_choice(name: str, values: Mapping[str, Any]) -> Iterator[Picture]:
    """Gold of the best of n, where a set has the figures."""
    if lines := best_of_n(values):
        most = max(lines["the model"])
        ends = (f"{k} {v[most]:.3f}" for k, v in lines.items() if most in v)
        caption = (
            f"{name}: true utility of the response that is chosen among n; 1 is a "
            f"blind choice. Of {most}: {', '.join(ends)}."
        )
        figure = plots.best_of_n(f"Best of n, {name}", lines)
        yield Picture(plots.to_svg(figure, caption), caption)


def best_of_n(values: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Line -> n -> gold; {} where the model has none."""
    out: dict[str, dict[int, float]] = {}
    for of, label in CHOOSERS.items():
        for key, value in values.items():
            kind, figure = names.kind(key)
            if kind == of and (n := names.best_of(figure)):
                out.setdefault(label, {})[n] = value
    return out if "the model" in out else {}


def risk(predictions: Any) -> Risk | None:
    """None of predictions without an uncertainty, without pairs, or not finite."""
    doubted = {"members", "covariance"} & set(predictions.column_names)
    if not doubted or not np.isfinite(runs.floats(predictions, "score")).all():
        return None
    table = evals.from_arrow(predictions)
    found = untied(evals.pairs(table))
    if not len(found.delta):
        return None
    error = 1 - credit(found.delta)
    doubts = {
        STD: uncertainty.margin_std(table, found),
        MARGIN: -np.abs(found.delta),
        ORACLE: error,
    }
    curve = lambda doubt: uncertainty.risk_coverage(doubt, error, found.weight)
    lines = {label: curve(doubt) for label, doubt in doubts.items()}
    return Risk(lines, float(np.average(error, weights=found.weight)))


def _risk(name: str, found: Risk) -> Picture:
    caption = (
        f"{name}: error of the surest pairs, by how many of them are kept, from "
        f"{plots.KEPT:.0%} on. Mean over "
        f"all shares (AURC): pairs of small std first {found.area(STD):.3f}, pairs of "
        f"large |margin| first, which needs no uncertainty, {found.area(MARGIN):.3f}, "
        f"in any order {found.flat:.3f}, wrong pairs last {found.area(ORACLE):.3f}."
    )
    figure = plots.risk_coverage(f"Error by coverage, {name}", found.lines, found.flat)
    return Picture(plots.to_svg(figure, caption), caption)
