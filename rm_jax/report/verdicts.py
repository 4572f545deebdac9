"""What an experiment claims, and what came of it: ROOT/verdicts.json.

>>> rule = Rule("gain", "margins help", "a paper", False, False, 0.1, -1, 1, "", "")
>>> rule.verdict, not_reproduced([rule])
('does not hold', ['gain: margins help (a paper): does not hold'])
"""

import math
from collections.abc import Mapping, Sequence
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

    @property
    def verdict(self) -> str:
        """In words; in the null world a claim that holds is a false alarm."""
        words = {True: "holds", False: "does not hold", None: "undecided"}
        if self.null:
            words = {True: "false alarm", False: "rightly denied", None: "undecided"}
        return words[self.holds]


def load(root: Root) -> list[Rule]:
    """The rules of a root; none where no verdict was written yet.

    Raises:
      ValueError: a damaged file, or one of a newer rm_jax.
    """
    path = store.join(root.path, FILE)
    if not store.exists(path):
        return []
    found = schemas.checked(FILE, store.read_json(path), path)
    return [_rule(rule, root.expected) for rule in runs.unquote(found["rules"])]


def not_reproduced(rules: Sequence[Rule]) -> list[str]:
    """One line a claim that does not hold or is undecided, and a rule that cannot tell.

    A rule whose claim holds where it is false says nothing where it is true.
    """
    lines = []
    for rule in rules:
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
        expected=_text(expected.get(rule["name"], "")),
    )


def _text(value: Any) -> str:
    """Text of a number: {"value": .012, "source": "table 2"} is "0.012 (table 2)"."""
    if isinstance(value, Mapping):
        rest = {k: v for k, v in value.items() if k not in ("value", "source")}
        more = [f"{k} {_text(v)}" for k, v in rest.items()]
        parts = [str(value["value"])] * ("value" in value) + more
        source = f" ({value['source']})" if value.get("source") else ""
        return ", ".join(parts) + source
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)
