"""Figures of a sweep: differences, single units, curves. Style of `plots`.

>>> figure = forest("accuracy", {"hinge": (0.01, -0.01, 0.03)})
>>> figure.axes[0].get_yticklabels()[0].get_text()
'hinge'
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from rm_jax.report.plots import COLORS, CYCLE, legend_below, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = len(CYCLE)  # lines that can be told apart by colour
_INK, _MUTED, _BLUE = (COLORS[c] for c in ("ink", "muted", "blue"))


@styled
def forest(title: str, rows: Mapping[str, tuple[float, float, float]]) -> "Figure":
    """Differences from the baseline, each with its interval; the first row on top.

    Args:
      title: what differs.
      rows: label -> (mean, low, high); without an interval (NaN) the point is hollow.
    """
    figure, axes = _listed(title, "difference from the baseline", list(rows))
    axes.axvline(0, color=_MUTED, lw=1, ls=(0, (3, 3)))
    for at, (mean, low, high) in enumerate(rows.values()):
        color = _MUTED if low <= 0 <= high or low != low else _BLUE
        axes.plot([low, high], [at, at], color=color, lw=2)
        face = color if low == low else COLORS["paper"]
        axes.plot(mean, at, color=color, marker="o", ms=5, mfc=face)
    return figure


@styled
def scatter(title: str, rows: Mapping[str, Sequence[tuple[str, float]]]) -> "Figure":
    """The figure of every unit, and the mean of each condition as a stroke.

    Args:
      title: the figure.
      rows: label -> (seed, value) of its units. Seeds have a colour each, one for all
        where there are many.
    """
    figure, axes = _listed(title, title, list(rows))
    seeds = list(dict.fromkeys(seed for values in rows.values() for seed, _ in values))
    for n, seed in enumerate(seeds):
        own = [
            (v, at)
            for at, values in enumerate(rows.values())
            for s, v in values
            if s == seed
        ]
        color = CYCLE[n] if len(seeds) <= MANY else _BLUE
        label = seed if len(seeds) <= MANY else None
        axes.plot(
            *zip(*own, strict=True), "o", ms=4.5, alpha=0.7, color=color, label=label
        )
    for at, values in enumerate(rows.values()):
        mean = np.mean([v for _, v in values])
        axes.plot([mean, mean], [at - 0.3, at + 0.3], color=_INK, lw=1.6)
    if 1 < len(seeds) <= MANY:
        legend_below(figure)
    return figure


@styled
def curves(
    title: str,
    lines: Mapping[str, tuple[Int[np.ndarray, "n"], Float[np.ndarray, "s n"]]],
    marked: Sequence[str],
) -> "Figure":
    """A figure over steps: the mean of the seeds, and a band from lowest to highest.

    Args:
      title: the figure.
      lines: label -> (steps, values [seed, step]); NaN where a unit has none yet.
      marked: labels in colour and in the legend, at most MANY; the others are grey.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel="step", ylabel=title)
    order = sorted(lines, key=lambda label: label in marked)  # the marked ones on top
    for label in order:
        steps, values = lines[label]
        color = CYCLE[list(marked).index(label)] if label in marked else _MUTED
        mean = np.nanmean(values, axis=0)
        if label in marked:
            low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
            axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
            axes.plot(steps, mean, color=color, label=label, marker="o", ms=3)
        else:
            axes.plot(steps, mean, color=color, lw=0.8, alpha=0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend_below(figure)
    return figure


def _listed(title: str, x: str, labels: Sequence[str]) -> "tuple[Figure, Axes]":
    """Axes with one line a label, the first on top."""
    from matplotlib.figure import Figure

    texts = ["\n".join(textwrap.wrap(label, 34)) for label in labels]
    lines = max((text.count("\n") + 1 for text in texts), default=1)
    height = 1.1 + (0.06 + 0.15 * lines) * len(texts)
    figure = Figure(figsize=(4.8, height), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylim=(len(labels) - 0.4, -0.6))
    axes.set_yticks(range(len(labels)), texts)
    return figure, axes
