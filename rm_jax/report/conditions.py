"""The conditions of a sweep over their seeds: levels, differences, and a fair choice.

>>> direction("valid/nll"), direction("test/accuracy")
(-1, 1)
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rm_jax.report import compare, tables
from rm_jax.report.compare import Difference
from rm_jax.report.root import Root

Keys = dict[str, Any]

# Last part of a metric's name -> whether more of it is better.
BETTER = {
    "accuracy": 1,
    "accuracy_certain_half": 1,
    "auroc": 1,
    "best_of_k": 1,
    "gold": 1,
    "gold_accuracy": 1,
    "kendall_tau": 1,
    "length_balanced_accuracy": 1,
    "length_matched_accuracy": 1,
    "aurc": -1,
    "brier": -1,
    "ece": -1,
    "mce": -1,
    "nll": -1,
}
VALIDATION = ("valid", "validation", "val", "dev")  # sets that may be selected on


class Row(NamedTuple):
    """One condition in one metric.

    Attributes:
      label: what tells it from the others.
      keys: key -> value.
      level: its mean over the seeds.
      baseline: the condition that it is compared with, perhaps itself; None without.
      difference: from another one, None otherwise.
      p: of the difference, made larger for the number of conditions (Holm).
    """

    label: str
    keys: Keys
    level: Difference
    baseline: Keys | None
    difference: Difference | None
    p: float


class Choice(NamedTuple):
    """What was selected in a group of conditions, and what it shows.

    Attributes:
      label: of the group.
      chosen: key -> value, of the keys that were selected over.
      among: conditions that it was chosen from: those with most finished seeds.
      fewer: conditions that were left out, having fewer.
      selected: the metric that selected.
      shown: the metric to be shown.
    """

    label: str
    chosen: Keys
    among: int
    fewer: int
    selected: Difference
    shown: Difference


def direction(metric: str) -> int:
    """1 where more of the metric is better, -1 where less is.

    Raises:
      ValueError: it is not known; lists those that are.
    """
    name = metric.rpartition("/")[2]
    if name not in BETTER:
        raise ValueError(
            f"{metric!r}: it is not known whether more of it is better; "
            f"known: {sorted(BETTER)}"
        )
    return BETTER[name]


def conditions(table: Any, keys: Sequence[str]) -> list[Keys]:
    """The different values of these columns, in the order of the table."""
    rows = zip(*(map(compare.plain, table[key]) for key in keys), strict=True)
    found = list(dict.fromkeys(rows)) if keys else [()] * bool(len(table))
    return [dict(zip(keys, values, strict=True)) for values in found]


def labels(found: Sequence[Keys]) -> list[str]:
    """A short text of each condition: the keys that tell them apart, without sections.

    >>> labels([{"loss.name": "bt", "noise": 0}, {"loss.name": "odin", "noise": 0}])
    ['bt', 'odin']
    """
    keys = found[0] if found else ()
    keys = [key for key in keys if len({str(one[key]) for one in found}) > 1]
    keys.sort(key=lambda key: not key.endswith(".name"))
    last = [_short(key) for key in keys]
    short = {
        key: name if last.count(name) == 1 else key
        for key, name in zip(keys, last, strict=True)
    }
    for text in (_brief, compare.shown, str):  # until no two are alike
        out = [_label(one, short, text) for one in found]
        if len(set(out)) == len(out):
            break
    return out


def _brief(value: Any) -> str:
    """As shown; of "after KEY=VALUE ...: PATH", another unit's, the path alone."""
    text = compare.shown(value)
    if not text.startswith("after ") or "=" not in text:
        return text
    _, colon, path = text.rpartition(": ")
    return f"after another: {path}" if colon else "after another"


def _label(one: Keys, short: Keys, text: Callable[[Any], str]) -> str:
    given = ((name, text(one[k])) for k, name in short.items() if one[k] is not None)
    parts = (value if name == "name" else f"{name}={value}" for name, value in given)
    return ", ".join(parts) or "all units"


def _short(key: str) -> str:
    """Its last part; of loss.regularizers.pos_reg.weight the last two."""
    parts = key.split(".")
    return ".".join(parts[-2 if len(parts) > 3 else -1 :])


def find_baseline(found: Sequence[Keys], given: Keys, of: Keys) -> Keys | None:
    """The condition that `of` is compared with: as `given`, and else like `of`.

    A key that the baseline does not have may have any value in `of`: "bt" has no margin
    and is the baseline of every margin. None where no condition, or more than one, is.
    """
    own = [key for key in of if key not in given]
    all_fit = [one for one in found if all(one[k] == v for k, v in given.items())]
    for fits in (
        [one for one in all_fit if all(one[key] == of[key] for key in own)],
        [one for one in all_fit if all(one[key] in (None, of[key]) for key in own)],
    ):
        if len(fits) == 1:
            return fits[0]
    return None


def default_baseline(over: Root, null: bool) -> Keys:
    """The first key of a world's sweep with its first value; {} where none differs.

    First is the key that changes least often from unit to unit, as the first of a
    product does. Keys that change with it alone, as those of a zip, go with it.
    """
    units = [unit.keys for unit in over.units if unit.null == null]
    turns = {
        key: sum(a[key] != b[key] for a, b in itertools.pairwise(units))
        for key in over.conditions
    }
    turns = {key: n for key, n in turns.items() if n}
    key = min(turns, key=turns.get, default=None)
    if key is None:
        return {}
    own = lambda unit, name: compare.plain(unit[name])
    pairs = lambda name: {(own(unit, key), own(unit, name)) for unit in units}
    with_it = [name for name in turns if len(pairs(name)) == len(pairs(key))]
    return {name: own(units[0], name) for name in with_it}


def compared(
    table: Any, metric: str, over: Root, baseline: Keys | None = None
) -> list[Row]:
    """One row a condition that has finished units: its level and its difference.

    Args:
      table: of `root.figures`, of one world.
      metric: a column of it.
      over: the sweep.
      baseline: some keys of the condition to compare with. A condition's baseline has
        these, and its own of the others. By default `default_baseline`; a condition
        that has it is compared with the one that lacks what the first unit lacks.

    Raises:
      ValueError: no such metric, key or baseline; lists those that are there.
    """
    check_metric(table, metric)
    found = conditions(table, over.conditions)
    base_of = _bases(table, found, over, baseline)
    rows = []
    for label, keys in zip(labels(found), found, strict=True):
        own = compare.level(table, metric, keys, over.seeds)
        base, difference = base_of(keys), None
        if base is not None and base != keys:
            difference = compare.difference(table, metric, base, keys, over.seeds)
        rows.append(Row(label, keys, own, base, difference, math.nan))
    adjusted = compare.holm(
        [r.difference.p if r.difference else math.nan for r in rows]
    )
    return [row._replace(p=p) for row, p in zip(rows, adjusted, strict=True)]


def _bases(
    table: Any, found: Sequence[Keys], over: Root, given: Keys | None
) -> Callable[[Keys], Keys | None]:
    """What gives the baseline of a condition."""
    if given is not None:
        check_keys(given, over.conditions, "the baseline")
        if found and not any(all(f[k] == v for k, v in given.items()) for f in found):
            known = {key: list(dict.fromkeys(f[key] for f in found)) for key in given}
            raise ValueError(
                f"no finished unit is the baseline {dict(given)}; there are {known}"
            )
        return lambda keys: find_baseline(found, given, keys)
    null = bool(len(table) and table["null"].iloc[0])
    first = next((unit.keys for unit in over.units if unit.null == null), {})
    given = default_baseline(over, null)

    def base_of(keys: Keys) -> Keys | None:
        base = find_baseline(found, given, keys)
        if base is not None and base != keys:
            return base
        lacking = {k: None for k in keys if compare.plain(first.get(k)) is None}
        bare = {**keys, **lacking, **given}
        return bare if bare in found else base

    return base_of


def detectable(rows: Sequence[Row]) -> float:
    """The smallest true difference that every comparison finds; NaN of none.

    The largest of those of the rows: of the comparison that finds least.
    """
    found = [row.difference.detectable for row in rows if row.difference]
    return max((value for value in found if value > 0), default=math.nan)


def first_figure(table: Any) -> str:
    """The accuracy of test, else of the first set, else the first figure, else ""."""
    names = [c for c in table.columns if c.endswith("/accuracy") and c.count("/") == 1]
    head = tables.headline(dict.fromkeys(n.partition("/")[0] for n in names))
    rest = [c for c in table.columns if "/" in c]
    return next((n for n in (f"{head}/accuracy", *rest) if n in rest), "")


def select(
    table: Any, metric: str, show: str, over: Root, keys: Sequence[str]
) -> list[Choice]:
    """Chooses the best of each group by one metric, and shows another of it.

    Args:
      table: of one world; of `root.figures_by_step` to choose the step of each unit.
      metric: a figure of a validation set.
      show: the figure that the choice is reported by.
      over: the sweep.
      keys: that may be chosen, () for all keys; conditions that differ in other keys
        are groups. The mean over the seeds decides, among the conditions with most
        finished seeds: one lucky seed is no choice. "step" is chosen in every unit on
        its own, before the others.

    Raises:
      ValueError: a metric that nothing may be selected by, or an unknown key.
    """
    check_selection(metric)
    for name in (metric, show):
        check_metric(table, name)
    check_keys(keys, (*over.conditions, "step"), "--over")
    if "step" in keys:
        table = _best_steps(table, metric)
    keys = [key for key in keys or over.conditions if key != "step"]
    groups = conditions(table, [key for key in over.conditions if key not in keys])
    return [
        Choice(label, *_choice(rows, metric, show, over.seeds, keys))
        for group, label in zip(groups, labels(groups), strict=True)
        for rows in [compare.rows_of(table, group)]
    ]


def check_selection(metric: str) -> None:
    """Refuses to select on anything but a validation set.

    Raises:
      ValueError: says why.
    """
    name = metric.partition("/")[0]
    if name.rstrip("0123456789_-") not in VALIDATION:
        raise ValueError(
            f"--select {metric}: {name!r} is a test set: what is chosen on it looks "
            "better on it than it is. Select on a validation set, as valid/nll, and "
            f"--show {metric} (validation sets are called {VALIDATION})"
        )
    direction(metric)


def check_metric(table: Any, metric: str) -> None:
    """Refuses a metric that no unit has; lists those that are there."""
    known = sorted(c for c in table.columns if "/" in c)
    if len(table) and metric not in known:
        near = [m for m in known if m.rpartition("/")[2] in BETTER]
        raise ValueError(f"no figure {metric!r}; known: {near or known}")


def check_keys(keys: Sequence[str] | Keys, known: Sequence[str], what: str) -> None:
    """Refuses a key that the sweep does not change."""
    for key in keys:
        if key not in known:
            raise ValueError(f"{what}: {key!r} is no key of the sweep; {list(known)}")


def _choice(
    rows: Any, metric: str, show: str, seeds: Sequence[str], keys: Sequence[str]
) -> tuple[Keys, int, int, Difference, Difference]:
    """The best of these conditions, how many there were, and its two levels."""
    found = conditions(rows, keys)
    levels = [compare.level(rows, metric, chosen, seeds) for chosen in found]
    seeds_of = [level.n for level in levels]
    whole = [i for i, n in enumerate(seeds_of) if n == max(seeds_of)]
    best = max(whole, key=lambda i: direction(metric) * levels[i].mean)
    chosen = found[best]
    shown = compare.level(rows, show, chosen, seeds)
    if "step" in rows:
        steps = compare.rows_of(rows, chosen)["step"]
        chosen = chosen | {"step": ", ".join(map(str, steps))}
    fewer = len(found) - len(whole)
    return chosen, len(whole), fewer, levels[best], shown


def _best_steps(table: Any, metric: str) -> Any:
    """The row of the best step of each unit; the earliest of equal ones."""
    known = table[table[metric].notna()]
    worth = known[metric] * direction(metric)
    return known.loc[worth.groupby(known["unit"], sort=False).idxmax()]
