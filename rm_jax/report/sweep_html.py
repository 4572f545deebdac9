"""The report of a sweep as one html page that needs nothing else.

>>> write_page(look("runs/losses"))  # doctest: +SKIP
'runs/losses/report.html'
"""

import datetime
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from rm_jax import store
from rm_jax.report import (
    compare,
    conditions,
    plots,
    sweep_plots,
    sweep_tables,
    verdicts,
)
from rm_jax.report.html import render
from rm_jax.report.plots import Picture
from rm_jax.report.sweep import Sweep, World, against, earlier
from rm_jax.report.tables import Cell, Table, Tile

# Condition -> steps, values [unit, step] of a figure as it was logged.
Lines = dict[str, tuple[np.ndarray, np.ndarray]]


def write_page(
    known: Sweep, out: str | None = None, *, now: datetime.datetime | None = None
) -> str:
    """Writes the page and returns its path, ROOT/report.html unless `out` says.

    Raises:
      ImportError: no jinja2 or matplotlib; names the extra.
    """
    out = str(out or store.join(known.root.path, "report.html"))
    context = _context(known, now or datetime.datetime.now())
    store.write_text(out, render("sweep.html.j2", context))
    return out


def _context(known: Sweep, now: datetime.datetime) -> dict[str, Any]:
    root = known.root
    name = os.path.basename(root.experiment).replace(".py", "")
    return {
        "title": name or os.path.basename(store.absolute(root.path)),
        "question": root.question,
        "date": now.strftime("%Y-%m-%d %H:%M"),
        "counts": sweep_tables.counts(known.progress),
        "tiles": _tiles(known),
        "rules": sweep_tables.rules(known.rules),
        "judged": any(rule.judged for rule in known.rules),
        "earlier": earlier(known) if known.missed else "",
        "missing": verdicts.not_reproduced(known.rules),
        "expected": verdicts.other_numbers(root, known.rules),
        "show": known.show,
        "worlds": [_world(known, world) for world in known.worlds],
        "units": sweep_tables.units(known.progress),
        "all": {
            unit.name: ", ".join(
                f"{k}={compare.shown(v)}" for k, v in unit.keys.items()
            )
            + ", null world" * unit.null
            for unit in root.units
        },
    }


def _tiles(known: Sweep) -> list[Tile]:
    root, total = known.root, len(known.root.units)
    done = int((known.progress["status"] == "finished").sum())
    real = known.progress[~known.progress["null"].astype(bool)]
    found = conditions.conditions(real, root.conditions)
    tiles = [
        Tile("Units", Cell(f"{done} of {total}"), "finished"),
        Tile("Conditions", Cell(str(len(found))), ", ".join(root.conditions) or "one"),
    ]
    for seed in root.seeds:
        values = known.progress[seed].nunique()
        tiles.append(Tile("Seeds", Cell(str(values)), seed))
    if known.detectable == known.detectable:
        against = (
            f"in {known.show}, with a power of .8, of the comparison finding least"
        )
        cell = Cell(sweep_tables.number(known.detectable))
        tiles.append(Tile("Detectable difference", cell, against))
    return tiles


def _world(known: Sweep, world: World) -> dict[str, Any]:
    empty = Table([], {})
    table, root = world.table, known.root
    some = len(table) > 0
    different = any(row.difference for row in world.rows)
    return {
        "name": world.name,
        "levels": sweep_tables.levels(table, root, known.show) if some else empty,
        "differences": sweep_tables.differences(world.rows) if different else empty,
        "how": _how(known, world) if some else "",
        "unpaired": sweep_tables.unpaired(world.rows),
        "choices": sweep_tables.choices(world.choices, known.select, known.show)
        if world.choices
        else None,
        "pictures": list(_pictures(known, world)),
        "short": [metric for metric, lines in _lines(known, world) if _short(lines)],
    }


def _how(known: Sweep, world: World) -> str:
    two = compare.crossed(world.table, known.root.seeds)
    test = "Student's t on paired differences"
    if two:
        test = f"two random effects, {two[0]} and {two[1]}, on paired differences"
    return (
        f"Differences {against(world)}. By {test}. p (Holm) is larger for there being "
        "many conditions; detectable is the smallest true difference that these seeds "
        "find with a power of .8."
    )


def _pictures(known: Sweep, world: World) -> Iterator[Picture]:
    drawn = {
        row.label: row.difference[:3]
        for row in world.rows
        if row.difference and row.difference.n
    }
    if drawn:
        sure = sum(low > 0 or high < 0 for _, low, high in drawn.values())
        caption = (
            f"{known.show}, differences {against(world)}, 95 % intervals: {sure} of "
            f"{len(drawn)} exclude 0, before any correction for their number. Hollow: "
            "one pair, no interval."
        )
        figure = sweep_plots.forest(known.show, drawn)
        yield Picture(plots.to_svg(figure, caption), caption)
    if world.rows:
        yield _scatter(known, world)
    for metric, lines in _lines(known, world):
        if not _short(lines):
            yield _curves(metric, lines)


def _scatter(known: Sweep, world: World) -> Picture:
    seeds = [s for s in known.root.seeds if world.table[s].nunique() > 1]
    rows = {}
    for row in world.rows:
        own = compare.rows_of(world.table, row.keys).dropna(subset=[known.show])
        named = (
            ", ".join(f"{s}={compare.shown(r[s])}" for s in seeds)
            for r in own.to_dict("records")
        )
        if len(own):
            rows[row.label] = list(zip(named, own[known.show], strict=True))
    count = sum(map(len, rows.values()))
    caption = f"{known.show} of {count} units, one point each; strokes are means."
    return Picture(
        plots.to_svg(sweep_plots.scatter(known.show, rows), caption), caption
    )


def _lines(known: Sweep, world: World) -> Iterator[tuple[str, Lines]]:
    """What was logged of the shown figure and of the one selected by."""
    for metric in dict.fromkeys((known.show, known.select)):
        if metric not in world.by_step:
            continue
        table, lines = world.by_step.dropna(subset=[metric]), {}
        found = conditions.conditions(table, known.root.conditions)
        for label, keys in zip(conditions.labels(found), found, strict=True):
            own = compare.rows_of(table, keys)
            wide = own.pivot_table(index="unit", columns="step", values=metric)
            lines[label] = wide.columns.to_numpy(), wide.to_numpy(np.float64)
        if lines:
            yield metric, lines


def _short(lines: Lines) -> bool:
    """Whether no line has two points: there is no curve to draw."""
    return all(len(steps) < 2 for steps, _ in lines.values())


def _curves(metric: str, lines: Lines) -> Picture:
    marked = _marked(lines, metric)
    rest = len(lines) - len(marked)
    grey = f" In grey the other {rest} conditions." if rest else ""
    caption = (
        f"{metric} as logged on the way, of the first examples of the set: mean over "
        f"the units, and the band from the lowest to the highest.{grey}"
    )
    figure = sweep_plots.curves(metric, lines, marked)
    return Picture(plots.to_svg(figure, caption), caption)


def _marked(lines: Lines, metric: str) -> list[str]:
    """All conditions; of many the first, which is the baseline, and the last best."""
    if len(lines) <= sweep_plots.MANY:
        return list(lines)
    sign = conditions.BETTER.get(metric.rpartition("/")[2], 1)
    first, *rest = lines
    last = lambda label: sign * np.nanmean(lines[label][1][:, -1])
    return [first, *sorted(rest, key=last, reverse=True)[: sweep_plots.MANY - 1]]
