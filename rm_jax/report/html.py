"""One run, one html page that needs nothing else: tables, figures, worst mistakes.

>>> write_report("runs/quickstart")  # doctest: +SKIP
'runs/quickstart/report.html'
"""

import datetime
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
import numpy as np

from rm_jax import store
from rm_jax.report import doubts, names, plots, runs, tables
from rm_jax.report.plots import Picture

# Title, unit, metric, level to compare with. The sets of a metric are drawn together,
# the sources of a set in a figure of their own.
_COIN_NLL, _COIN = (math.log(2), "coin"), (0.5, "coin")
Curve = tuple[str, str, str, tuple[float, str] | None]
Lines = dict[str, tuple[np.ndarray, np.ndarray]]  # legend -> steps, values
CURVES: tuple[Curve, ...] = (
    ("Training loss", "loss", "loss", None),
    ("Negative log-likelihood", "nats a pair", "nll", _COIN_NLL),
    ("Accuracy", "share of pairs", "accuracy", _COIN),
    ("Learning rate", "rate", "learning_rate", None),
    ("Gradient norm", "global norm", "grad_norm", None),
)


def write_report(
    run_dir: str,
    out: str | None = None,
    *,
    now: datetime.datetime | None = None,
) -> str:
    """Writes the report of a run; one that is still going has what there is so far.

    Args:
      run_dir: a run directory, or the directory of an evaluation.
      out: where to; run_dir/report.html when None.
      now: the date in the head, the only thing in the page that is not in the run.

    Returns:
      The path of the page.

    Raises:
      ValueError: `run_dir` holds no run.
      ImportError: no jinja2 or matplotlib; names the extra.
    """
    run = runs.load_run(run_dir)
    out = str(out or store.join(run_dir, "report.html"))
    context = _context(run, now or datetime.datetime.now())
    store.write_text(out, render("report.html.j2", context))
    return out


def visible(text: str | None) -> str:
    """The text with control characters, line ends and tabs apart, as their pictures."""
    return re.sub(
        r"[\x00-\x08\x0b-\x1f]", lambda m: chr(0x2400 + ord(m[0])), text or ""
    )


def render(template: str, context: Mapping[str, Any]) -> str:
    """A page of a template beside this file; every text in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
        autoescape=True,  # the texts of a data set are somebody's input
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    environment.globals["colors"] = plots.COLORS
    return environment.get_template(template).render(context)


def _context(run: runs.Run, now: datetime.datetime) -> dict[str, Any]:
    evals, note = tables.final_evals(run)
    return {
        "title": run.config.get("name") or os.path.basename(store.absolute(run.path)),
        "date": now.strftime("%Y-%m-%d %H:%M"),
        "commits": _distinct(run.info, "commit"),
        "diffs": _distinct(run.info, "dirty_diff"),
        "step": max((line["step"] for line in run.metrics), default=None),
        "scored": _scored(run),
        "tiles": tables.tiles(run, evals),
        "alarms": tables.alarms(run),
        "warnings": list(tables.warnings(run, evals)),
        "events": [(e["step"], e["event"], _details(e)) for e in run.events],
        "eval_note": note,
        "eval_table": tables.eval_table(evals),
        "reducers": tables.reducer_table(evals),
        "doubts": tables.doubt_table(evals),
        "doubt_pictures": list(doubts.pictures(run, evals)),
        "curves": list(_curves(run)),
        "short": [key for key, _, lines in _lines(run) if _short(lines)],
        "sets": [
            _eval_set(run, name, evals.get(name, {}))
            for name in dict.fromkeys([*evals, *run.prediction_names])
        ],
        "headline": tables.headline(evals),
        "probes": tables.probe_table(evals),
        "data": tables.data_table(run.info),
        "provenance": tables.flatten(_facts(run.info)),
        "settings": {
            "Configuration": tables.flatten(run.config),
            "Scoring contract": tables.flatten(run.contract),
            "Architecture": tables.flatten(run.arch),
        },
    }


def _scored(run: runs.Run) -> str:
    """How the scores came about: of which step of which run, by which reducer."""
    members = run.config.get("members", {})
    reducer = run.info.get("reducer") or members.get("reducer", "")
    checkpoint = run.info.get("evaluated", "")
    said = [f"scores of {checkpoint}"] * bool(checkpoint)
    if members.get("count", 1) > 1:
        said.append(f"the {reducer} of {members['count']} members is the score")
    if run.info.get("uncertainty"):
        said.append(f"uncertainty by {run.info['uncertainty']}")
    line = "; ".join(said)
    return line[:1].upper() + line[1:] + "." * bool(line)


def _distinct(info: Mapping[str, Any], key: str) -> list[str]:
    """What the sessions of a run.json say of their code, each answer once."""
    found = (session["code"][key] for session in info.get("sessions", ()))
    return [value for value in dict.fromkeys(found) if value]


def _facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """run.json without what the page shows elsewhere."""
    facts = dict(info)
    if "sessions" in facts:
        facts["sessions"] = {
            str(number): {
                **session,
                "code": {k: v for k, v in session["code"].items() if k != "dirty_diff"},
            }
            for number, session in enumerate(facts["sessions"], 1)
        }
    if "data" in facts:
        shown = ("audit", "counts")
        facts["data"] = {
            name: {k: v for k, v in data.items() if k not in shown}
            for name, data in facts["data"].items()
        }
    return facts


def _details(event: Mapping[str, Any]) -> dict[str, str]:
    return tables.flatten(
        {k: v for k, v in event.items() if k not in ("step", "event")}
    )


def _eval_set(run: runs.Run, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of one eval set; mistakes are None without predictions."""
    pictures, mistakes = list(_summaries(values)), None
    if "uncertainty/score_std" not in values:  # else it stands by the uncertainty
        pictures += doubts.of_choice(name, values)
    if name in run.prediction_names:
        predictions = run.predictions(name)
        pictures += _score_pictures(predictions)
        mistakes = runs.worst_mistakes(predictions)
    return {
        "name": name,
        "metrics": tables.metric_list(values),
        "pictures": pictures,
        "mistakes": mistakes,
    }


def _lines(run: runs.Run) -> Iterator[tuple[str, Curve, Lines]]:
    """What was logged, as (title, curve, lines) of each figure of the page."""
    sources = run.sources()
    for curve in CURVES:
        together: dict[str, Lines] = {}
        for name in run.names():
            whole, source, figure = names.parts(name, sources)
            if figure == curve[2]:
                key = f"{curve[0]}, sources of {whole}" if source else curve[0]
                together.setdefault(key, {})[source or whole] = run.series(name)
        yield from ((key, curve, together[key]) for key in sorted(together))


def _short(lines: Lines) -> bool:
    """Whether no line has two points: there is no curve to draw."""
    return all(len(steps) < 2 for steps, _ in lines.values())


def _curves(run: runs.Run) -> Iterator[Picture]:
    for key, (_, unit, _, level), lines in _lines(run):
        if not _short(lines):
            figure = plots.curve(key, unit, lines, level)
            caption = f"{key} ({unit}), first to last value: {_ends(lines)}."
            yield Picture(plots.to_svg(figure, caption), caption)


def _ends(lines: Lines) -> str:
    return ", ".join(
        f"{label} {values[0]:.3g} to {values[-1]:.3g}"
        for label, (_, values) in lines.items()
    )


def _summaries(values: Mapping[str, Any]) -> Iterator[Picture]:
    """Figures of what evals.json holds of a set."""
    points = [p for p in values.get("reliability") or () if p[2]]
    if points:
        gap = max(points, key=lambda p: abs(p[0] - p[1]))
        caption = (
            "Every pair in both orders. On the dashed line the model is right as often "
            "as it says. Widest gap: it says "
            f"{gap[0]:.2f}, the share won is {gap[1]:.2f} ({gap[2]:,.0f} pairs)."
        )
        yield Picture(plots.to_svg(plots.reliability(points), caption), caption)
    margins = values.get("margin_histogram")
    if margins:
        figure = plots.margin_histogram(margins["edges"], margins["counts"])
        caption = (
            f"{sum(margins['counts']):,.0f} pairs by margin; left of 0 the model "
            "prefers the rejected response."
        )
        yield Picture(plots.to_svg(figure, caption), caption)


def _score_pictures(predictions: Any) -> Iterator[Picture]:
    """Figures of the scores of single responses."""
    score, length = (runs.floats(predictions, name) for name in ("score", "length"))
    pairs = runs.find_pairs(predictions)
    finite = np.isfinite(score)
    both = finite[pairs.chosen] & finite[pairs.rejected]
    if both.any():
        chosen, rejected = score[pairs.chosen[both]], score[pairs.rejected[both]]
        weight = pairs.weight[both]
        means = [np.average(s, weights=weight) for s in (chosen, rejected)]
        caption = (
            f"Scores of the two sides of {both.sum():,} pairs, each prompt counting "
            f"once. Mean: chosen {means[0]:.2f}, rejected {means[1]:.2f}."
        )
        figure = plots.score_histogram(chosen, rejected, weight)
        yield Picture(plots.to_svg(figure, caption), caption)
    if finite.any():
        length, score = length[finite], score[finite]
        caption = (
            f"{len(score):,} responses, darker where there are more; each point of the "
            f"line is the mean of about a twelfth. {_correlation(length, score)}"
        )
        figure = plots.score_against_length(length, score)
        yield Picture(plots.to_svg(figure, caption), caption)


def _correlation(length: np.ndarray, score: np.ndarray) -> str:
    if not (np.ptp(length) and np.ptp(score)):
        return "Lengths or scores are all the same."
    return f"Correlation over all responses {np.corrcoef(length, score)[0, 1]:.2f}."
