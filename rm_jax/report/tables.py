"""Tables of a run: figures beside what they should be compared with.

>>> cell({"nll": 0.61234, "nll_low": 0.6, "nll_high": 0.62}, "nll")
Cell(value='0.612', interval='0.600 – 0.620')
"""

import datetime
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from rm_jax.report import names, runs

# Metric of an eval set -> its heading, in the order of the table.
COLUMNS = {
    "n_pairs": "pairs",
    "accuracy": "accuracy",
    "length_baseline": "length alone",
    "length_matched_accuracy": "at equal length",
    "ceiling": "ceiling",
    "gold_accuracy": "gold accuracy",
    "nll": "NLL, nats",
    "brier": "Brier",
    "ece": "ECE",
    "tie_rate": "equal scores",
}
ALWAYS = ("n_pairs", "accuracy", "length_baseline")
PROBE_COLUMNS = {
    "annotator_bias": "bias injected",
    "model_bias": "bias measured",
    "gold_effect": "effect on gold",
    "annotator_effect": "effect on annotator",
    "model_effect": "effect on model",
    "n": "edits",
}
# The figures that reducers and single members are compared by.
REDUCER_COLUMNS = {"accuracy": "accuracy", "gold_accuracy": "gold accuracy",
                   "nll": "NLL, nats"}  # fmt: skip
DOUBT_COLUMNS = {
    "uncertainty/margin_std": "std of the margin",
    "uncertainty/auroc": "AUROC of it for errors",
    "uncertainty/aurc": "mean error by coverage",
    "uncertainty/accuracy_certain_half": "accuracy, surer half",
    "accuracy": "accuracy, all",
    "uncertainty/nll": "NLL corrected",
    "nll": "NLL plain",
    "uncertainty/ece": "ECE corrected",
    "ece": "ECE plain",
    "members/agreement": "two members agree",
    "members/error_corr": "their errors correlate",
}
# What evals.json holds of a set beside its metrics.
PARTS = (
    "alarms", "reliability", "margin_histogram", "score_histogram", "probes", "sources",
)  # fmt: skip


class Cell(NamedTuple):
    """A figure as text, and its 95 % interval or ""."""

    value: str
    interval: str = ""


class Table(NamedTuple):
    """Headings, and cells by row name."""

    headings: list[str]
    rows: dict[str, list[Cell]]


class Tile(NamedTuple):
    """A figure of the head of the page, and what to compare it with."""

    label: str
    cell: Cell
    against: str


def final_evals(run: runs.Run) -> tuple[dict[str, Mapping[str, Any]], str]:
    """Figures of each eval set; a note when they are not those of the end."""
    step = max((line["step"] for line in run.metrics), default=0)
    if run.evals:
        old = run.eval_step is not None and run.eval_step < step
        note = f"Figures of step {run.eval_step}; the run has gone on to step {step}."
        return dict(run.evals), note if old else ""
    found: dict[str, dict[str, Any]] = {}
    last, sources = 0, run.sources()
    for line in run.metrics:
        for key, value in line.items():
            where, source, figure = names.parts(key, sources)
            if where.startswith("eval/"):
                own = found.setdefault(where.removeprefix("eval/"), {})
                if source:
                    own = own.setdefault("sources", {}).setdefault(source, {})
                own[figure] = value
                last = line["step"]
    if not found:
        return {}, "No evaluation yet."
    return found, f"No final evaluation yet: these are the figures of step {last}."


def alarms(run: runs.Run) -> list[tuple[Mapping[str, Any], int]]:
    """The last alarm of each kind in each set, and how many there were before it.

    The kind is the message up to its first colon; numbers come after that.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for event in run.events:
        if event["event"] == "alarm":
            kind = event["message"].partition(":")[0]
            found.setdefault((event["name"], kind), []).append(event)
    return [(events[-1], len(events) - 1) for events in found.values()]


def headline(evals: Mapping[str, Any]) -> str:
    """The eval set that stands on top: test, else valid, else the first; "" if none."""
    return next((name for name in ("test", "valid", *evals) if name in evals), "")


def tiles(run: runs.Run, evals: Mapping[str, Mapping[str, Any]]) -> list[Tile]:
    """The figures of the head of the page."""
    name = headline(evals)
    values = evals.get(name, {})
    out = []
    if "accuracy" in values:
        baseline = cell(values, "length_baseline").value
        against = f"on {name}; length alone gives {baseline}"
        out.append(Tile("Accuracy", cell(values, "accuracy"), against))
        if values.get("ceiling"):
            share = Cell(f"{values['accuracy'] / values['ceiling']:.1%}")
            against = f"the ceiling is {cell(values, 'ceiling').value}"
            out.append(Tile("Share of the ceiling", share, against))
    for key, label, against in (
        ("gold_accuracy", "Gold accuracy", "against the true utility"),
        ("ece", "Calibration error", "ECE; 0 is calibrated"),
        ("nll", "NLL", "nats a pair; a coin has 0.693"),
    ):
        if key in values:
            out.append(Tile(label, cell(values, key), against))
    return out + _time(run)


def warnings(run: runs.Run, evals: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Alarms of the evaluation, and what is wrong on the face of the figures."""
    for name in run.names():
        steps, values = run.series(name)
        bad = ~np.isfinite(values)
        if bad.any():
            where = f"{bad.sum()} of {len(bad)} lines, first at step {steps[bad][0]}"
            yield f"{name} is not finite in {where}"
    for name, values in evals.items():
        yield from (f"{name}: {text}" for text in values.get("alarms") or ())
        low = values.get("accuracy_low", values.get("accuracy"))
        baseline = values.get("length_baseline")
        if low is not None and baseline is not None and low <= baseline:
            right, alone = cell(values, "accuracy"), cell(values, "length_baseline")
            yield (
                f"{name}: accuracy {right.value} ({right.interval or 'no interval'}) "
                f"is not clearly above the {alone.value} that length alone gives"
            )
    for name in run.prediction_names:
        bad = ~np.isfinite(runs.floats(run.predictions(name), "score"))
        if bad.any():
            yield f"{name}: {bad.sum()} of {len(bad)} scores are not finite"


def eval_table(evals: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row an eval set, and below it one a source of a mixture.

    A column that no set has is left out.
    """
    evals = {
        row: values
        for name, whole in evals.items()
        for row, values in ((name, whole), *_sources(name, whole))
    }
    keys = [k for k in COLUMNS if k in ALWAYS or any(k in v for v in evals.values())]
    rows = {name: [cell(v, k) for k in keys] for name, v in evals.items()}
    return Table([COLUMNS[k] for k in keys], rows)


def reducer_table(evals: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a reducer of each set with members, and one for a member alone."""
    rows = {}
    for name, values in evals.items():
        kinds = dict.fromkeys(names.kind(key)[0] for key in values)
        kinds = [k for k in kinds if k == "members" or k.startswith("reducer/")]
        for kind in sorted(kinds, key=lambda k: k != "members"):
            label = kind.removeprefix("reducer/").replace("members", "one member")
            figures = {k: values.get(f"{kind}/{k}") for k in REDUCER_COLUMNS}
            rows[f"{name}: {label}"] = figures
    keys = [k for k in REDUCER_COLUMNS if any(v[k] is not None for v in rows.values())]
    return Table(
        [REDUCER_COLUMNS[k] for k in keys],
        {name: [cell(v, k) for k in keys] for name, v in rows.items()},
    )


def doubt_table(evals: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a set whose scores come with an uncertainty."""
    sets = {name: v for name, v in evals.items() if "uncertainty/score_std" in v}
    keys = [k for k in DOUBT_COLUMNS if any(k in v for v in sets.values())]
    rows = {name: [cell(v, k) for k in keys] for name, v in sets.items()}
    return Table([DOUBT_COLUMNS[k] for k in keys], rows)


def _sources(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for source, own in (values.get("sources") or {}).items():
        yield f"{name} / {source}", own


def probe_table(evals: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a probe of a set: the bias measured beside the one injected."""
    found = {
        f"{probe} ({name})": values
        for name, parts in evals.items()
        for probe, values in (parts.get("probes") or {}).items()
    }
    seen = {k for v in found.values() for k in v if not k.endswith(("_low", "_high"))}
    keys = [k for k in PROBE_COLUMNS if k in seen]
    keys += sorted(seen - set(keys))
    headings = [PROBE_COLUMNS.get(k, k.replace("_", " ")) for k in keys]
    return Table(
        headings, {row: [cell(v, k) for k in keys] for row, v in found.items()}
    )


def data_table(info: Mapping[str, Any]) -> Table:
    """What was found in each data set: one row a finding, one column a set.

    Args:
      info: run.json; its `data` has `audit`, `counts` and `examples` of each set.
    """
    found = {}
    for name, data in _with_sources(info.get("data") or {}):
        audit = data.get("audit") or {}
        policy = audit.get("policy", {})
        found[name] = {
            "records read": audit.get("total"),
            "records kept": audit.get("kept"),
            "examples": data.get("examples"),
            **{f"{k} ({policy[k]})": n for k, n in audit.get("counts", {}).items()},
            **(data.get("counts") or {}),
        }
    keys = dict.fromkeys(key for values in found.values() for key in values)
    cells = lambda key: [Cell(_number(v.get(key), count=True)) for v in found.values()]
    return Table(list(found), {key: cells(key) for key in keys})


def _with_sources(sets: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each set, and after a mixture each of its sources."""
    for name, data in sets.items():
        yield name, data
        source = data.get("source") or {}
        for part in data.get("fingerprints") or {}:
            if part:
                yield f"{name} / {part}", source[part]


def metric_list(values: Mapping[str, Any]) -> dict[str, Cell]:
    """Every metric of an eval set, those inside others by dotted name."""
    flat = {k: v for k, v in values.items() if k not in PARTS}
    nested = [k for k, v in flat.items() if isinstance(v, Mapping)]
    for outer in nested:
        flat |= {f"{outer}.{k}": v for k, v in flat.pop(outer).items()}
    ends = ("_low", "_high")
    return {k: cell(flat, k) for k in sorted(flat) if not k.endswith(ends)}


def cell(values: Mapping[str, Any], key: str) -> Cell:
    """The figure with its interval, from `key`, `key_low` and `key_high`."""
    count = key.rpartition(".")[2].startswith("n_") or key == "n" or key.endswith("_n")
    low, high = values.get(f"{key}_low"), values.get(f"{key}_high")
    interval = "" if low is None else f"{_number(low)} – {_number(high)}"
    return Cell(_number(values.get(key), count), interval)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested JSON as dotted key -> text."""
    out = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out |= flatten(value, f"{prefix}{key}.")
        else:
            text = isinstance(value, str)
            out[f"{prefix}{key}"] = value if text else json.dumps(value)
    return out


def _time(run: runs.Run) -> list[Tile]:
    seconds = sum(line.get("seconds", 0.0) for line in run.timing)
    key = "pairs_per_s"
    rates = [line[key] for line in run.timing if key in line]
    if not seconds:
        return []
    took = str(datetime.timedelta(seconds=round(seconds)))
    speed = f"h:min:s; {np.median(rates):,.0f} pairs/s" if rates else "h:min:s"
    tiles = [Tile("Training time", Cell(took), speed)]
    shares = [line["run/goodput"] for line in run.timing if "run/goodput" in line]
    if shares:
        tiles.append(Tile("Goodput", Cell(f"{shares[-1]:.1%}"), "of the time in steps"))
    return tiles


def _number(value: Any, count: bool = False) -> str:
    """For reading: counts in full, other numbers to three places or three digits."""
    if value is None:
        return "—"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if count:
        return f"{value:,.0f}"
    if abs(value) >= 1000:
        return f"{value:,.1f}"
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
