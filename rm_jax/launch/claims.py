"""What the figures of a sweep say of its claims, and what its seeds could ever show."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rm_jax import schemas, store
from rm_jax.data.mixture import specs_of, world_of
from rm_jax.data.world import WORLD_DEFAULTS
from rm_jax.experiment import Experiment, Rule, Verdict
from rm_jax.needs import condition
from rm_jax.report import compare, conditions, verdicts
from rm_jax.report import root as roots
from rm_jax.writer import to_json

METRIC = "test/accuracy"  # of the guess before anything is trained


def judge(root: str, rules: Sequence[Rule]) -> tuple[list[str], bool]:
    """The verdict of every rule, in each world of its own, into ROOT/verdicts.json.

    Returns:
      lines for a reader; whether every rule could be applied. One that raises is
      undecided, and says what it raised.
    """
    known = roots.load_root(root)
    table = roots.figures(known)
    worlds = sorted({unit.null for unit in known.units})
    found, sound = [], True
    for rule in rules:
        for null in worlds:
            verdict, fine = _decide(rule, table[table["null"] == null])
            sound &= fine
            head = {"name": rule.name, "claim": rule.claim, "source": rule.source}
            found.append({**head, "null": null, **verdict._asdict()})
    units = sorted(table["unit"])
    value = schemas.stamped(verdicts.FILE, {"units": units, "rules": to_json(found)})
    store.write_sealed(store.join(root, verdicts.FILE), value)
    return [line for rule in verdicts.load(known) for line in _lines(rule)], sound


def _decide(rule: Rule, table: Any) -> tuple[Verdict, bool]:
    try:
        verdict = rule.decide(table.reset_index(drop=True))
        if not isinstance(verdict, Verdict):
            raise TypeError(f"decide gave {verdict!r:.80}, want a Verdict")
        numbers = (float(x) for x in verdict[1:4])
        holds = None if verdict.holds is None else bool(verdict.holds)
        return Verdict(holds, *numbers, str(verdict.text)), True
    except Exception as error:  # of the author of the rule: the others still stand
        why = f"{type(error).__name__}: {error}"
        return Verdict(None, math.nan, math.nan, math.nan, why), False


def _lines(rule: verdicts.Rule) -> tuple[str, str]:
    """The verdict and ours; then the claim, the paper's number and the rule's text."""
    world = ", null world" if rule.null else ""
    level = "no estimate" if math.isnan(rule.estimate) else f"{rule.estimate:+.4f}"
    if not math.isnan(rule.low):
        level += f", 95 %: {rule.low:+.4f} to {rule.high:+.4f}"
    expected = f"; the paper: {rule.expected}" if rule.expected else ""
    text = f"; {rule.text}" if rule.text else ""
    return (
        f"rule {rule.name}{world}: {rule.verdict}: {level}",
        f"  {rule.claim} ({rule.source}){expected}{text}",
    )


def smallest(experiment: Experiment, root: str) -> str:
    """A line: the smallest difference that the seeds detect, with a power of .8.

    Of finished units the spread is that of their paired differences. Before, it is
    guessed: two models of accuracy .5 on a test set of n pairs differ by a standard
    deviation of √(2·.25/n) at most; seeds that share the test set by less.
    """
    if seen := _seen(root):
        return seen
    line = f"smallest difference that {_pairs(experiment)} seeds detect in {METRIC}: "
    n = _test_pairs(experiment)
    if not n:
        return line + "known when units of two conditions have finished"
    sd = math.sqrt(2 * 0.25 / n)
    found = compare.detectable(sd, _pairs(experiment))
    if math.isnan(found):
        return line + "none; give two seeds or more"
    return line + f"about {found:.4f} (if only the {n} pairs of the test set matter)"


def _seen(root: str) -> str:
    """The line by finished units, as a report has it; "" without a comparison."""
    if not store.exists(store.join(root, roots.SWEEP)):
        return ""
    known = roots.load_root(root)
    table = roots.figures(known)
    table = table[~table["null"].astype(bool)]
    show = conditions.first_figure(table)
    if not show or not len(table):
        return ""
    least = conditions.detectable(conditions.compared(table, show, known))
    if math.isnan(least):
        return ""
    return (
        f"smallest difference that the seeds detect in {show}: {least:.4f}, in the "
        "comparison that finds least"
    )


def _pairs(experiment: Experiment) -> int:
    """Repetitions of the condition that has fewest."""
    counts = Counter(
        str(sorted((k, str(v)) for k, v in condition(unit, experiment.seeds).items()))
        for unit in experiment.units
    )
    return min(counts.values())


def _test_pairs(experiment: Experiment) -> int:
    """Pairs of the test set where it is of the synthetic world; 0 is not known."""
    data = experiment.base.data
    found = world_of(specs_of(data).get("test", {}), data.world)
    if found is None or found.split != "test":
        return 0
    return int(found.knobs.get("test", WORLD_DEFAULTS["test"]))
