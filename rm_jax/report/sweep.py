"""The report of a sweep: what is known of a root so far, as text and as one page.

>>> known = look("runs/losses", show="test/accuracy")  # doctest: +SKIP
>>> print("\n".join(text_lines(known, "markdown")))  # doctest: +SKIP
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rm_jax.report import conditions, root, sweep_tables, tables, verdicts
from rm_jax.report.conditions import Choice, Row
from rm_jax.report.grids import FORMATS
from rm_jax.report.verdicts import Rule

# How a table is headed in a format.
HEADS = {"text": "{}", "markdown": "**{}**", "latex": "% {}"}


class World(NamedTuple):
    """The units of one world: where the claims may be true, or where they are false.

    Attributes:
      name: "" or "null world".
      table: `root.figures` of them.
      by_step: `root.figures_by_step` of them.
      rows: their conditions in the shown figure.
      choices: what was selected; () where nothing was asked for.
    """

    name: str
    table: Any
    by_step: Any
    rows: tuple[Row, ...]
    choices: tuple[Choice, ...]


class Sweep(NamedTuple):
    """Everything a report of a root shows.

    Attributes:
      root: what sweep.json says.
      progress: `root.progress`.
      show: the figure compared, "" while there is none.
      select: the figure selected by, "" of none.
      worlds: those with finished or running units.
      rules: with their verdicts.
    """

    root: root.Root
    progress: Any
    show: str
    select: str
    worlds: tuple[World, ...]
    rules: tuple[Rule, ...]

    @property
    def detectable(self) -> float:
        """The largest of the smallest differences that the seeds can find; NaN of none.

        Of the comparisons in the world that the experiment is about.
        """
        found = [r.difference for w in self.worlds if not w.name for r in w.rows]
        known = [d.detectable for d in found if d and d.detectable == d.detectable]
        return max(known, default=float("nan"))


def look(
    path: str,
    *,
    show: str = "",
    select: str = "",
    over: Sequence[str] = (),
    baseline: Mapping[str, str] | None = None,
) -> Sweep:
    """Reads a root, whatever of it is there.

    Args:
      path: the root.
      show: the figure to compare; by default the accuracy of test, else of the first
        set.
      select: a figure of a validation set to choose by, "" chooses nothing.
      over: keys that are chosen, or "step"; see `conditions.select`.
      baseline: key -> text of its value, of the condition to compare with.

    Raises:
      ValueError: no sweep there, no such figure, key or value, or a test set to
        select on.
    """
    found = root.load_root(path)
    if select:
        conditions.check_selection(select)
    table, by_step = root.figures(found), root.figures_by_step(found)
    show = show or _first_figure(table)
    given = None if baseline is None else _values(found, baseline)
    worlds = []
    for null, name in ((False, ""), (True, "null world")):
        own = table[table["null"] == null]
        steps = by_step[by_step["null"] == null]
        if not len(own) and not len(steps):
            continue
        rows, choices = [], []
        if len(own):
            rows = conditions.compared(own, show, found, given)
        if select and len(own):
            of = steps if "step" in over else own
            choices = conditions.select(of, select, show, found, over)
        worlds.append(World(name, own, steps, tuple(rows), tuple(choices)))
    rules = tuple(verdicts.load(found))
    progress = root.progress(found)
    return Sweep(found, progress, show, select, tuple(worlds), rules)


def text_lines(known: Sweep, form: str = "text") -> Iterator[str]:
    """What `rm-jax report` prints.

    Args:
      known: of `look`.
      form: of `grids.FORMATS`; but in "text", tables come without words around them.
    """
    words = form == "text"
    draw = lambda table, corner: FORMATS[form](sweep_tables.grid(table, corner))
    if words:
        yield known.root.question
        yield sweep_tables.counts(known.progress)
        yield from notes(known)
    for world in known.worlds:
        if not len(world.table):
            continue
        yield from ("", HEADS[form].format(world.name)) if world.name else ("",)
        yield draw(
            sweep_tables.levels(world.table, known.root, known.show), "condition"
        )
        if any(row.difference for row in world.rows):
            yield ""
            yield draw(sweep_tables.differences(world.rows), f"{known.show}")
        if world.choices:
            yield ""
            shown = sweep_tables.choices(world.choices, known.select, known.show)
            yield draw(shown, "group")
    if known.rules:
        yield ""
        yield draw(sweep_tables.rules(known.rules), "rule")


def notes(known: Sweep) -> Iterator[str]:
    """What a reader of the tables must know: seeds, what is missing, what failed."""
    if known.rules:
        missing = verdicts.not_reproduced(known.rules)
        yield f"not reproduced: {'; '.join(missing) or 'nothing'}"
    seeds = known.root.seeds
    for name, cells in sweep_tables.units(known.progress).rows.items():
        status, why = cells[0].value, cells[-1].value
        if status == "failed" or why.endswith("which failed"):
            yield f"{name} {status}: {why}"
    for world in known.worlds:
        where = f"{world.name}: " if world.name else ""
        for line in sweep_tables.unpaired(world.rows):
            yield f"{where}left out of the differences (a is the baseline): {line}"
    if known.detectable == known.detectable:
        yield (
            f"with these seeds ({', '.join(seeds)}) a true difference in {known.show} "
            f"of {known.detectable:.4f} is found with a power of .8, in the comparison "
            "that finds least"
        )
    elif known.show:
        yield (
            f"no comparison has two pairs of seeds ({', '.join(seeds)}) yet: nothing "
            "is sure"
        )


def _first_figure(table: Any) -> str:
    names = [c for c in table.columns if c.endswith("/accuracy") and c.count("/") == 1]
    head = tables.headline(dict.fromkeys(n.partition("/")[0] for n in names))
    rest = [c for c in table.columns if "/" in c]
    return next((n for n in (f"{head}/accuracy", *rest) if n in rest), "")


def _values(found: root.Root, given: Mapping[str, str]) -> dict[str, Any]:
    """The values of which the command line gives the texts."""
    conditions.check_keys(given, found.conditions, "--baseline")
    out = {}
    for key, text in given.items():
        known = {str(unit.keys[key]): unit.keys[key] for unit in found.units}
        if text not in known:
            raise ValueError(f"--baseline {key}={text}: it has {list(known)}")
        out[key] = known[text]
    return out
