"""The parts of a metric's name, which every table and every figure goes by.

>>> parts("eval/valid/web/nll", {"valid": ["web"]})
Parts(where='eval/valid', source='web', figure='nll')
>>> parts("eval/valid/uncertainty/nll", {"valid": ["web"]})
Parts(where='eval/valid', source='', figure='uncertainty/nll')
>>> kind("reducer/min/best_of_4/gold")
('reducer/min', 'best_of_4/gold')
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Figures that are several of one name: of the reducers, of a level of strength ...
_KIND = re.compile(
    r"(members|uncertainty|against_gold|swap|(?:reducer|strength|probes)/[^/]+)/(.+)"
)
_BEST = re.compile(r"best_of_(\d+)/gold")


class Parts(NamedTuple):
    """A metric's name taken apart.

    Attributes:
      where: "train" or "eval/SET"; "" of a name without a slash.
      source: of the mixture; "" of all of it.
      figure: the rest: "nll", "reducer/min/accuracy".
    """

    where: str
    source: str
    figure: str


def parts(name: str, sources: Mapping[str, Sequence[str]]) -> Parts:
    """The name of a line of metrics.jsonl, taken apart.

    Args:
      name: "train/FIGURE", "eval/SET/FIGURE", either with SOURCE/ before the FIGURE.
      sources: set -> the sources of its mixture; nothing else is taken for one.
    """
    at = 2 if name.startswith("eval/") else 1
    pieces = name.split("/")
    where, rest = "/".join(pieces[:at]), pieces[at:]
    if not rest:
        return Parts("", "", name)
    of = sources.get(where.removeprefix("eval/"), ())
    source = rest.pop(0) if len(rest) > 1 and rest[0] in of else ""
    return Parts(where, source, "/".join(rest))


def kind(figure: str) -> tuple[str, str]:
    """What a figure is of ("members", "reducer/min", "" of the model), and the rest."""
    found = _KIND.fullmatch(figure)
    return (found[1], found[2]) if found else ("", figure)


def best_of(figure: str) -> int | None:
    """n of "best_of_n/gold"; None of any other figure."""
    found = _BEST.fullmatch(figure)
    return int(found[1]) if found else None
