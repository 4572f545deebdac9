"""Figures of a run: data in, matplotlib figure out; `to_svg` for a page.

>>> figure = reliability([[0.1, 0.2, 50], [0.9, 0.8, 50]])
>>> to_svg(figure, "two points").startswith('<svg role="img" aria-label="two points"')
True
"""

import functools
import hashlib
import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each colour becomes the CSS variable of that name, so that figures follow the page.
COLORS = {
    "ink": "#1f2430",
    "muted": "#6b7180",
    "grid": "#e3e5ea",
    "paper": "#ffffff",
    "blue": "#2a63d6",
    "orange": "#d9730d",
    "green": "#12876f",
    "purple": "#8a4bd0",
    "pink": "#c63d7c",
}
_INK, _MUTED, _BLUE, _ORANGE = (COLORS[c] for c in ("ink", "muted", "blue", "orange"))
CYCLE = tuple(COLORS[c] for c in ("blue", "orange", "green", "purple", "pink"))
KEPT = 0.02  # where a curve of risk by coverage begins
DASHES = ("-", "--", ":")  # 15 lines look different
STYLE = {
    "axes.edgecolor": COLORS["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": COLORS["muted"],
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": COLORS["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "grid.color": COLORS["grid"],
    "grid.linewidth": 0.8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": COLORS["ink"],
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "rm_jax",
    "text.parse_math": False,
    "xtick.color": COLORS["muted"],
    "xtick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.color": COLORS["muted"],
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
}


class Picture(NamedTuple):
    """A figure as SVG and the sentence below it."""

    svg: str
    caption: str


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a drawing function in the style above.

    Raises:
      ImportError: no matplotlib; names the extra.
    """

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        try:
            import matplotlib
        except ImportError as error:
            raise ImportError(
                "figures need matplotlib: pip install 'rm_jax[report]'"
            ) from error
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


@styled
def curve(
    title: str,
    unit: str,
    lines: Mapping[str, tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]],
    level: tuple[float, str] | None = None,
) -> "Figure":
    """One metric over steps.

    Args:
      title: what it is.
      unit: label of the vertical axis.
      lines: legend -> (steps, values); values that are not finite leave a gap.
      level: (value, label) of a horizontal line to compare with.
    """
    figure, axes = _axes(title, "step", unit)
    for n, (label, (steps, values)) in enumerate(lines.items()):
        look = {"color": CYCLE[n % len(CYCLE)], "ls": DASHES[n // len(CYCLE) % 3]}
        marker = "o" if len(steps) <= 20 else None
        axes.plot(steps, values, label=label, marker=marker, ms=3.5, **look)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if level:
        axes.axhline(level[0], color=_MUTED, lw=1, ls=(0, (3, 3)), label=level[1])
    if len(lines) > 1 or level:
        legend_below(figure)
    return figure


@styled
def reliability(points: Sequence[Sequence[float]]) -> "Figure":
    """Share of pairs won against the probability given, and below the pairs of a bin.

    Args:
      points: (mean confidence, share won, number of pairs) of each bin.
    """
    confidence, share, count = np.array(points, np.float64).reshape(-1, 3).T
    figure = _figure(3.6)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color=_MUTED, lw=1, ls=(0, (3, 3)))
    axes.plot(confidence, share, color=_BLUE, marker="o", ms=4.5)
    _labels(axes, "Reliability", "", "share of pairs won")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    below.bar(confidence, count, width=0.03, color=_BLUE)
    _labels(below, "", "probability given by the model", "pairs")
    return figure


@styled
def margin_histogram(edges: Sequence[float], counts: Sequence[float]) -> "Figure":
    """Pairs by margin, r(chosen) - r(rejected); those below 0 in another colour."""
    edges, counts = np.array(edges, np.float64), np.array(counts, np.float64)
    figure, axes = _axes("Margins", "reward of chosen − reward of rejected", "pairs")
    wrong = (edges[:-1] + edges[1:]) / 2 < 0
    colors = [_ORANGE if w else _BLUE for w in wrong]
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colors)
    axes.axvline(0, color=_INK, lw=1)
    return figure


@styled
def score_histogram(
    chosen: Float[np.ndarray, "p"],
    rejected: Float[np.ndarray, "p"],
    weight: Float[np.ndarray, "p"],
    bins: int = 40,
) -> "Figure":
    """Scores of the chosen and of the rejected response of each pair, as shares."""
    figure, axes = _axes("Scores", "reward", "share of pairs")
    edges = np.histogram_bin_edges(np.concatenate([chosen, rejected]), bins)
    sides = (("chosen", chosen, _BLUE), ("rejected", rejected, _ORANGE))
    for label, scores, color in sides:
        counts, _ = np.histogram(scores, edges, weights=weight)
        share = counts / weight.sum()
        axes.stairs(share, edges, color=color, lw=1.6, label=label)
        axes.stairs(share, edges, color=color, alpha=0.15, fill=True)
    axes.legend()
    return figure


@styled
def score_against_length(
    lengths: Int[np.ndarray, "n"], scores: Float[np.ndarray, "n"]
) -> "Figure":
    """Density of (length, score) of single responses, and mean scores by length."""
    from matplotlib.colors import LinearSegmentedColormap

    figure, axes = _axes("Score against length", "tokens of the response", "reward")
    shades = LinearSegmentedColormap.from_list(
        "shades", [(0, (_BLUE, 0.12)), (1, (_BLUE, 0.9))]
    )
    axes.hexbin(
        lengths,
        scores,
        gridsize=(22, 13),
        mincnt=1,
        bins="log",
        cmap=shades,
        lw=0.1,
        clip_on=False,  # else the SVG repeats the clip for every hexagon
    )
    mean = mean_by_length(lengths, scores)
    axes.plot(
        mean[:, 0], mean[:, 1], color=_ORANGE, marker="o", ms=3.5, label="mean score"
    )
    axes.legend()
    return figure


@styled
def risk_coverage(
    title: str,
    lines: Mapping[str, tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]],
    flat: float,
) -> "Figure":
    """Error of the pairs that are kept, against their share; the last line is dotted.

    From a share of KEPT on: the error of fewer pairs is noise.

    Args:
      title: what it is.
      lines: legend -> (coverage in (0, 1], error).
      flat: the error of all pairs, a dashed line.
    """
    figure, axes = _axes(title, "share of pairs kept, surest first", "error")
    for n, (label, (coverage, error)) in enumerate(lines.items()):
        last = n == len(lines) - 1
        look = {"color": _MUTED, "ls": ":"} if last else {"color": CYCLE[n], "ls": "-"}
        at = np.searchsorted(coverage, KEPT)
        x, y = np.insert(coverage[at:], 0, KEPT), np.insert(error[at:], 0, error[at])
        axes.plot(x, y, label=label, **look)
    axes.axhline(flat, color=_MUTED, lw=1, ls=(0, (3, 3)), label="any order")
    axes.set(xlim=(0, 1))
    axes.set_ylim(bottom=0)
    legend_below(figure)
    return figure


@styled
def best_of_n(title: str, lines: Mapping[str, Mapping[int, float]]) -> "Figure":
    """Gold of the best of n against n, which doubles from tick to tick.

    Args:
      title: what it is.
      lines: legend -> n -> gold; the first is drawn broad, for another may equal it.
    """
    figure, axes = _axes(title, "n, responses to choose from", "gold of the chosen one")
    for i, (label, gold) in enumerate(lines.items()):
        look = {"lw": 5, "alpha": 0.35} if i == 0 else {"marker": "o", "ms": 3.5}
        axes.plot(*zip(*sorted(gold.items()), strict=True), label=label, **look)
        axes.lines[-1].set_color(CYCLE[i % len(CYCLE)])
    axes.set_xscale("log", base=2)
    ticks = sorted({n for gold in lines.values() for n in gold})
    axes.set_xticks(ticks, map(str, ticks))
    if len(lines) > 1:
        legend_below(figure)
    return figure


def mean_by_length(
    lengths: Int[np.ndarray, "n"], scores: Float[np.ndarray, "n"], bins: int = 12
) -> Float[np.ndarray, "b 3"]:
    """(mean length, mean score, n) in up to `bins` groups of about equal size."""
    if not len(lengths):
        return np.zeros((0, 3))
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)))
    group = np.searchsorted(edges[1:-1], lengths, side="right")
    count = np.bincount(group)
    sums = [np.bincount(group, weights=v)[count > 0] for v in (lengths, scores)]
    count = count[count > 0]
    return np.stack([sums[0] / count, sums[1] / count, count], axis=1)


@styled
def to_svg(figure: "Figure", alt: str) -> str:
    """The figure as an <svg> element for a page: no address, no script, no fixed size.

    Args:
      figure: the figure.
      alt: what it shows, for those who do not see it.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    box = re.search(r'viewBox="[^"]*"', text).group()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.S)
    # Ids are unique in a file, not in a page of several.
    mark = hashlib.sha256(body.encode()).hexdigest()[:8]
    body = re.sub(r'\bid="', f'id="{mark}-', body)
    body = re.sub(r'(url\(|xlink:href=")#', rf"\1#{mark}-", body)
    body = body.replace("xlink:href", "href")
    for name, color in COLORS.items():
        body = body.replace(color, f"var(--{name})")
    return f'<svg role="img" aria-label="{html.escape(alt)}" {box}>{body.strip()}'


def legend_below(figure: "Figure") -> None:
    """A legend below the axes, never over the lines, in columns that fit the page."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    labels = [textwrap.fill(label, 52) for label in labels]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = max(1, min(3, 62 // (longest + 8)))
    lines = max(label.count("\n") + 1 for label in labels)
    lines *= math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * (lines - 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _figure(height: float = 3.0) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(4.8, height), layout="constrained")


def _axes(title: str, x: str, y: str) -> "tuple[Figure, Axes]":
    figure = _figure()
    axes = figure.subplots()
    _labels(axes, title, x, y)
    return figure, axes


def _labels(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
