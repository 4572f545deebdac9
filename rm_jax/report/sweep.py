r"""The report of a sweep: what is known of a root so far, as text and as one page.

>>> known = look("runs/losses", show="test/accuracy")  # doctest: +SKIP
>>> print("\n".join(text_lines(known, "markdown")))  # doctest: +SKIP
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rm_jax.report import compare, conditions, root, sweep_tables, verdicts
from rm_jax.report.conditions import Choice, Row
from rm_jax.report.grids import FORMATS
from rm_jax.report.verdicts import Rule


class World(NamedTuple):
    """The units of one world: where the claims may be true, or where they are false.

    Attributes:
      name: "" or "null world".
      table: `root.figures` of them.
      by_step: `root.figures_by_step` of them.
      baseline: key -> value that the conditions are compared with.
      rows: their conditions in the shown figure.
      choices: what was selected; () where nothing was asked for.
    """

    name: str
    table: Any
    by_step: Any
    baseline: Mapping[str, Any]
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
      missed: units that finished since the verdicts, or are no more.
    """

    root: root.Root
    progress: Any
    show: str
    select: str
    worlds: tuple[World, ...]
    rules: tuple[Rule, ...]
    missed: tuple[str, ...]

    @property
    def detectable(self) -> float:
        """The largest of the smallest differences that the seeds can find; NaN of none.

        Of the comparisons in the world that the experiment is about.
        """
        return conditions.detectable(
            [row for world in self.worlds if not world.name for row in world.rows]
        )


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
    show = show or conditions.first_figure(table)
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
        base = conditions.default_baseline(found, null) if given is None else given
        worlds.append(World(name, own, steps, base, tuple(rows), tuple(choices)))
    rules = tuple(verdicts.load(found))
    missed = tuple(verdicts.missed(found, set(table["unit"])))
    progress = root.progress(found)
    return Sweep(found, progress, show, select, tuple(worlds), rules, missed)


def text_lines(known: Sweep, form: str = "text") -> Iterator[str]:
    """What `rm-jax report` prints.

    Args:
      known: of `look`.
      form: of `grids.FORMATS`; but in "text", tables come without the `notes`.
    """
    words = form == "text"
    draw = lambda table, corner, caption="": FORMATS[form](
        sweep_tables.grid(table, corner, caption)
    )
    if words:
        yield known.root.question
        yield sweep_tables.counts(known.progress)
        yield from notes(known)
    for world in known.worlds:
        if not len(world.table):
            continue
        levels = sweep_tables.levels(world.table, known.root, known.show)
        yield ""
        yield draw(levels, "condition", world.name)
        if any(row.difference for row in world.rows):
            yield ""
            differences = sweep_tables.differences(world.rows)
            yield draw(differences, f"{known.show}", world.name)
        if world.choices:
            yield ""
            shown = sweep_tables.choices(world.choices, known.select, known.show)
            yield draw(shown, "group", world.name)
    if known.rules:
        yield ""
        yield draw(sweep_tables.rules(known.rules), "rule")


def notes(known: Sweep) -> Iterator[str]:
    """What a reader of the tables must know: seeds, what is missing, what failed."""
    if any(rule.judged for rule in known.rules):
        missing = verdicts.not_reproduced(known.rules)
        yield f"not reproduced: {'; '.join(missing) or 'nothing'}"
    if known.missed:
        yield earlier(known)
    seeds = known.root.seeds
    for name, cells in sweep_tables.units(known.progress).rows.items():
        status, why = cells[0].value, cells[-1].value
        if status == "failed" or why.endswith("which failed"):
            yield f"{name} {status}: {why}"
    for world in known.worlds:
        where = f"{world.name}: " if world.name else ""
        if any(row.difference for row in world.rows):
            yield f"{where}differences: {against(world)}"
        for line in sweep_tables.unpaired(world.rows):
            yield f"{where}left out of the differences (a is the baseline): {line}"
    if known.detectable == known.detectable:
        yield (
            f"with these seeds ({', '.join(seeds)}) a true difference in {known.show} "
            f"of {known.detectable:.4f} is found with a power of .8, in the comparison "
            "that finds least"
        )
    elif any(row.difference for world in known.worlds for row in world.rows):
        yield (
            f"no comparison has two pairs of seeds ({', '.join(seeds)}) yet: nothing "
            "is sure"
        )
    elif len([row for world in known.worlds for row in world.rows]) > 1:
        yield (
            "no condition differs from another in the keys of the baseline alone: "
            "--baseline KEY=VALUE compares with the condition that has it"
        )


def earlier(known: Sweep) -> str:
    """That the verdicts do not know all units as they are now."""
    n = len(known.missed)
    names = ", ".join(known.missed[:4]) + ", ..." * (n > 4)
    return (
        f"the verdicts are of an earlier state: {n} unit{'s' * (n != 1)} changed since "
        f"({names}); rm-jax sweep judges again"
    )


def against(world: World) -> str:
    """What the conditions of a world are compared with."""
    given = (f"{k}={compare.shown(v)}" for k, v in world.baseline.items())
    same = ", ".join(given) or "the same"
    return f"from the condition of {same} and otherwise equal keys"


def _values(found: root.Root, given: Mapping[str, str]) -> dict[str, Any]:
    """The values of which the command line gives the texts."""
    conditions.check_keys(given, found.conditions, "--baseline")
    out = {}
    for key, text in given.items():
        values = [unit.keys[key] for unit in found.units]
        known = {compare.shown(value): value for value in values}
        if text not in known and text not in map(str, values):
            raise ValueError(f"--baseline {key}={text}: it has {list(known)}")
        out[key] = (known | {str(value): value for value in values})[text]
    return out
