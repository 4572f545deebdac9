"""What a sweep will do, for a reader: a line a program, or every unit's command."""

from collections.abc import Iterator, Sequence

from rm_jax import store
from rm_jax.experiment import Experiment
from rm_jax.launch import claims, units
from rm_jax.launch.plan import Plan
from rm_jax.launch.units import Unit
from rm_jax.launch.worker import Group, command

FILE = "plan.txt"  # in the root


def commands(planned: Plan, root: str) -> Iterator[str]:
    """Every unit with the exact command that trains it, under that of its program."""
    named = {unit.name: unit for unit in planned.units}
    for group in planned.groups:
        if len(group) > 1:
            yield f"{len(group)} units in one program: {command(root, group)}"
        for name in group:
            done = "finished: " if units.finished(root, name) else ""
            yield f"{done}{named[name]}"
            yield f"  {units.command(root, name, alone=len(group) == 1)}"


def programs(planned: Plan, root: str) -> Iterator[str]:
    """One line a program: how far it is, its units, and what they change."""
    named = {unit.name: unit for unit in planned.units}
    left = unfinished(planned, root)
    for group in planned.groups:
        state = "to run" if group in left else "finished"
        count = "1 unit" if len(group) == 1 else f"{len(group)} units"
        yield f"{state}: {count}, {group[0]}: {_changes([named[n] for n in group])}"


def totals(
    experiment: Experiment, planned: Plan, root: str, workers: int
) -> Iterator[str]:
    """How many there are, and what their seeds detect."""
    null = sum(unit.null for unit in planned.units)
    yield (
        f"{len(planned.units)} units, {null} of them of the null world, in "
        f"{len(planned.groups)} programs; {len(unfinished(planned, root))} programs to "
        f"run, {workers} at a time"
    )
    yield claims.smallest(experiment, root)


def write(planned: Plan, root: str) -> str:
    """Writes `commands` to ROOT/plan.txt and returns its path."""
    path = store.join(root, FILE)
    store.write_text(path, "".join(f"{line}\n" for line in commands(planned, root)))
    return path


def unfinished(planned: Plan, root: str) -> list[Group]:
    """The groups of which a unit has no figures."""
    done = lambda group: all(units.finished(root, name) for name in group)
    return [group for group in planned.groups if not done(group)]


def _changes(group: Sequence[Unit]) -> str:
    """What units change: every value that a key has in one of them.

    >>> from types import SimpleNamespace as Unit
    >>> changes = [{"loss.name": "bt", "init_seed": n} for n in (0, 1)]
    >>> _changes([Unit(changes=c, null=False) for c in changes])
    'loss.name=bt init_seed=0,1'
    """
    found: dict[str, dict[str, None]] = {}
    for unit in group:
        for key, value in unit.changes.items():
            found.setdefault(key, {})[str(value)] = None
    null = sum(unit.null for unit in group)
    world = f"({null} of the null world)" if null < len(group) else "(null world)"
    parts = [f"{key}={','.join(values)}" for key, values in found.items()]
    return " ".join([*parts, *[world] * bool(null)])
