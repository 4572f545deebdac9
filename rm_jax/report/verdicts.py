"""What an experiment claims, and what came of it: ROOT/verdicts.json.

>>> rule = Rule("gain", "margins help", "a paper", False, False, 0.1, -1, 1, "", "")
>>> rule.verdict, not_reproduced([rule])
('does not hold', ['gain: margins help (a paper): does not hold'])
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from rm_jax import schemas, store
from rm_jax.report import runs
from rm_jax.report.root import Root

FILE = "verdicts.json"


class Rule(NamedTuple):
    """A claim of a paper and the verdict on it.

    Attributes:
      name, claim, source: as the experiment states them.
      null: whether it was tried in the world in which the claim is false.
      holds: None is undecided.
      estimate, low, high: ours, with its interval; NaN where there is none.
      text: what the rule says of itself.
      expected: the number of the paper, as text; "" where it gives none.
      judged: whether the sweep has got so far.
    """

    name: str
    claim: str
    source: str
    null: bool
    holds: bool | None
    estimate: float
    low: float
    high: float
    text: str
    expected: str
    judged: bool = True

    @property
    def verdict(self) -> str:
        """In words; in the null world a claim that holds is a false alarm."""
        if not self.judged:
            return "not judged yet"
        words = {True: "holds", False: "does not hold", None: "undecided"}
        if self.null:
            words = {True: "false alarm", False: "rightly denied", None: "undecided"}
        return words[self.holds]


def load(root: Root) -> list[Rule]:
    """The rules of a root, in each of its worlds; before the sweep's end not judged.

    Raises:
      ValueError: a damaged file, or one of a newer rm_jax.
    """
    path = store.join(root.path, FILE)
    if not store.exists(path):
        none = {"holds": None, "estimate": None, "low": None, "high": None, "text": ""}
        worlds = sorted({unit.null for unit in root.units})
        waiting = [{**c, **none, "null": w} for c in root.claims for w in worlds]
        rules = (_rule(rule, root.expected) for rule in waiting)
        return [rule._replace(judged=False) for rule in rules]
    found = schemas.checked(FILE, store.read_json(path), path)
    return [_rule(rule, root.expected) for rule in runs.unquote(found["rules"])]


def missed(root: Root, finished: Collection[str]) -> list[str]:
    """Units that the verdicts do not know as they are: finished since, or no more.

    Args:
      root: whose verdicts; where there are none, none were missed.
      finished: names of the units that have figures.
    """
    path = store.join(root.path, FILE)
    if not store.exists(path):
        return []
    found = schemas.checked(FILE, store.read_json(path), path)
    return sorted(set(finished) ^ set(found.get("units", ())))


def not_reproduced(rules: Sequence[Rule]) -> list[str]:
    """One line a claim that does not hold or is undecided, and a rule that cannot tell.

    A rule whose claim holds where it is false says nothing where it is true.
    """
    lines = []
    for rule in (rule for rule in rules if rule.judged):
        if rule.null and rule.holds:
            lines.append(f"{rule.name}: it holds in the null world, too: a false alarm")
        elif not rule.null and not rule.holds:
            lines.append(f"{rule.name}: {rule.claim} ({rule.source}): {rule.verdict}")
    return lines


def other_numbers(root: Root, rules: Sequence[Rule]) -> dict[str, str]:
    """Numbers of the paper that no rule of that name stands beside."""
    names = {rule.name for rule in rules}
    return {key: _text(v) for key, v in root.expected.items() if key not in names}


def _rule(rule: Mapping[str, Any], expected: Mapping[str, Any]) -> Rule:
    number = lambda key: math.nan if rule[key] is None else float(rule[key])
    return Rule(
        name=rule["name"],
        claim=rule["claim"],
        source=rule["source"],
        null=bool(rule["null"]),
        holds=rule["holds"],
        estimate=number("estimate"),
        low=number("low"),
        high=number("high"),
        text=rule["text"],
        expected=_text(expected.get(rule["name"], ""), rule["source"]),
    )


def _text(expected: Any, source: str = "") -> str:
    """Text of a number of the paper: "0.012: accuracy gained (table 2)".

    Args:
      expected: it, or {"value", "what", "source"}; a value of None is no number.
      source: one that stands beside the text already, and is not said again.
    """
    if not isinstance(expected, Mapping):
        many = isinstance(expected, list | tuple)
        return ", ".join(map(str, expected)) if many else str(expected)
    rest = dict(expected)
    value, what = rest.pop("value", None), rest.pop("what", "")
    own = rest.pop("source", "")
    number = "no number" if value is None else _text(value)
    more = [str(what)] * bool(what) + [f"{k} {_text(v)}" for k, v in rest.items()]
    text = f"{number}: {', '.join(more)}" if more else number
    return f"{text} ({own})" if own and own != source else text
