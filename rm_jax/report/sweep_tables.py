"""Tables of a sweep, for the page and for a terminal.

>>> level(Difference(0.7123, 0.7, 0.7246, 3, 0.0, 0.01))
'0.7123 ± 0.0123'
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rm_jax.report import compare, conditions
from rm_jax.report.compare import Difference
from rm_jax.report.conditions import Choice, Row
from rm_jax.report.grids import Grid
from rm_jax.report.root import Root
from rm_jax.report.tables import Cell, Table
from rm_jax.report.verdicts import Rule

NONE = "—"


def number(value: float | None, sign: bool = False) -> str:
    """To four places; a dash of what is not there."""
    if value is None or math.isnan(value):
        return NONE
    return f"{value:{'+' if sign else ''}.4f}".replace("-", "−")


def chance(p: float) -> str:
    """A p value; those that would read 0 as a bound."""
    return f"< {1e-4:.4f}" if p < 5e-5 else number(p)


def level(found: Difference) -> str:
    """A mean and half the width of its 95 % interval."""
    half = "" if math.isnan(found.low) else f" ± {number(found.high - found.mean)}"
    return number(found.mean) + half


def interval(low: float, high: float) -> str:
    """From low to high; "" without."""
    if math.isnan(low):
        return ""
    return f"{number(low, sign=True)} to {number(high, sign=True)}"


def levels(table: Any, root: Root, show: str) -> Table:
    """One row a condition: units, the shown figure, the accuracy of each set."""
    metrics = [show, *(c for c in table.columns if c.count("/") == 1 and c != show)]
    metrics = [m for m in metrics if m == show or m.endswith("/accuracy")]
    found = conditions.conditions(table, root.conditions)
    rows = {}
    for label, keys in zip(conditions.labels(found), found, strict=True):
        own = [compare.level(table, m, keys, root.seeds) for m in metrics]
        rows[label] = [Cell(str(own[0].n)), *(Cell(level(one)) for one in own)]
    return Table(["units", *metrics], rows)


def differences(rows: Sequence[Row]) -> Table:
    """One row a condition: its difference from the baseline, and how sure it is."""
    out = {}
    for row in rows:
        d = row.difference
        if d is None:
            what = "baseline" if row.baseline else "no baseline"
            out[row.label] = [Cell(what), *[Cell(NONE)] * 4]
            continue
        out[row.label] = [
            Cell(number(d.mean, sign=True), interval(d.low, d.high)),
            Cell(str(d.n)),
            Cell(chance(d.p)),
            Cell(chance(row.p)),
            Cell(number(d.detectable)),
        ]
    heads = ["difference, 95 %", "pairs", "p", "p (Holm)", "detectable"]
    return Table(heads, out)


def unpaired(rows: Sequence[Row]) -> list[str]:
    """What the differences leave out, one line a condition."""
    return [
        f"{row.label}: {', '.join(row.difference.unpaired)}"
        for row in rows
        if row.difference and row.difference.unpaired
    ]


def choices(found: Sequence[Choice], metric: str, show: str) -> Table:
    """One row a group: what was chosen, by what, and the figure of it."""
    rows = {}
    for n, one in enumerate(found):
        given = {k: v for k, v in one.chosen.items() if v is not None}
        chosen = ", ".join(f"{k}={compare.shown(v)}" for k, v in given.items())
        among = f"{one.among} + {one.fewer} of fewer seeds" if one.fewer else one.among
        cells = [chosen, f"{among}", level(one.selected), level(one.shown)]
        rows[one.label or str(n)] = [Cell(text) for text in (*cells, str(one.shown.n))]
    return Table(
        ["chosen", "of", f"selected by {metric}", f"its {show}", "units"], rows
    )


def rules(found: Sequence[Rule]) -> Table:
    """One row a rule: the claim, the paper's number, ours, and the verdict."""
    rows = {}
    for rule in found:
        ours = Cell(number(rule.estimate, sign=True), interval(rule.low, rule.high))
        cells = (rule.claim, f"{rule.source}", rule.expected or NONE)
        name = f"{rule.name}, null world" if rule.null else rule.name
        rows[name] = [*map(Cell, cells), ours, Cell(rule.verdict), Cell(rule.text)]
    heads = ["claim", "source", "paper", "ours, 95 %", "verdict", "why"]
    return Table(heads, rows)


def units(progress: Any) -> Table:
    """One row a unit that is not finished, with how far it is."""
    rows = {}
    for row in progress[progress["status"] != "finished"].to_dict("records"):
        of = NONE if compare.plain(row["of"]) is None else f"{row['of']:.0f}"
        cells = (row["status"], f"{row['step']} of {of}", f"{row['seconds']:,.0f}")
        counts = (str(row["skips"]), str(row["alarms"]), row["why"])
        rows[row["unit"]] = [Cell(text) for text in (*cells, *counts)]
    return Table(["status", "step", "seconds", "skips", "alarms", "why"], rows)


def counts(progress: Any) -> str:
    """ "12 of 18 units finished, 3 running, 1 failed, 2 not started"."""
    found = Counter(progress["status"])
    rest = [
        f", {found[s]} {s}" for s in ("running", "failed", "not started") if found[s]
    ]
    return f"{found['finished']} of {len(progress)} units finished{''.join(rest)}"


def grid(table: Table, corner: str, caption: str = "") -> Grid:
    """A table for a terminal or a paper: an interval in brackets behind its figure."""
    text = lambda c: f"{c.value} [{c.interval}]" if c.interval else c.value
    rows = ((name, *map(text, cells)) for name, cells in table.rows.items())
    return Grid((corner, *table.headings), tuple(rows), caption)
