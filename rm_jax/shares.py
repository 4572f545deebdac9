"""What a training mixture may say: its sources, and how much of each there is.

>>> quotas({"a": 2, "b": 1})
{'a': 6667, 'b': 3333}
"""

import re
from collections.abc import Mapping
from typing import Any

from rm_jax.limits import MOST, ConfigError

ROUND = (
    10_000  # examples of a round of a weighted mixture: weights are exact to 1/ROUND
)
AMOUNTS = ("weight", "count")
KEYS = ("spec", *AMOUNTS, "columns")
KEY = "config.data.train"


def check_train(train: Any) -> None:
    """Checks config.data.train: a SPEC, or a mixture of sources.

    Args:
      train: text, or name -> {spec, weight or count, perhaps columns}.

    Raises:
      ConfigError: names the key, the value and what is wanted.
    """
    if isinstance(train, str) and train and not train.lstrip().startswith("{"):
        return
    if not isinstance(train, Mapping) or not train:
        raise ConfigError(
            f"{KEY} = {train!r:.200}: want a SPEC or a mixture, name -> "
            "{spec, weight} or name -> {spec, count}, no text of it"
        )
    for name, source in train.items():
        _check_source(name, source)
    kinds = {kind for source in train.values() for kind in AMOUNTS if kind in source}
    if len(kinds) > 1:
        raise ConfigError(
            f"{KEY}: some sources have a weight and some a count: give all of them the "
            "same"
        )
    if kinds == {"weight"}:
        quotas({name: source["weight"] for name, source in train.items()})


def _check_source(name: Any, source: Any) -> None:
    where = f"{KEY}.{name}"
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name):
        raise ConfigError(f"{where}: call it by letters, digits, _ and - only")
    if not isinstance(source, Mapping) or not source:
        raise ConfigError(
            f"{where} = {source!r:.80}: want {{spec, weight}} or {{spec, count}}"
        )
    if unknown := sorted(str(key) for key in source if key not in KEYS):
        raise ConfigError(f"{where}.{unknown[0]}: unknown; a source has {KEYS}")
    spec = source.get("spec")
    if not isinstance(spec, str) or not spec:
        raise ConfigError(f"{where}.spec = {spec!r:.80}: want a SPEC")
    _check_amount(where, source)
    _check_columns(where, source.get("columns", {}))


def _check_amount(where: str, source: Mapping[str, Any]) -> None:
    given = [kind for kind in AMOUNTS if kind in source]
    if len(given) != 1:
        found = " and ".join(given) or "no amount"
        raise ConfigError(f"{where} has {found}: want weight or count")
    amount = source[given[0]]
    kind = int if given[0] == "count" else int | float
    ok = isinstance(amount, kind) and not isinstance(amount, bool)
    most = MOST if kind is int else 1e308
    if not ok or not 0 < amount <= most:
        want = "a whole number" if kind is int else "a number"
        raise ConfigError(
            f"{where}.{given[0]} = {amount!r:.80}: want {want} above 0, at most {most}"
        )


def _check_columns(where: str, columns: Any) -> None:
    if not isinstance(columns, Mapping):
        raise ConfigError(
            f"{where}.columns = {columns!r:.80}: want field -> column, e.g. "
            '{"prompt": "question"}'
        )
    for field, column in columns.items():
        if not isinstance(field, str) or not isinstance(column, str) or not column:
            raise ConfigError(
                f"{where}.columns.{field} = {column!r:.80}: want text in quotes, the "
                "name of a column"
            )


def quotas(weights: Mapping[str, float]) -> dict[str, int]:
    """ROUND shared out by weight; the largest remainders get what rounding leaves.

    Args:
      weights: source -> its weight, finite and above 0.

    Raises:
      ConfigError: a share that rounds to no example of a round.
    """
    most = max(weights.values())  # first: a sum of large ones is infinite
    total = sum(w / most for w in weights.values())
    exact = {name: ROUND * (w / most) / total for name, w in weights.items()}
    found = {name: int(x) for name, x in exact.items()}
    rest = sorted(exact, key=lambda name: found[name] - exact[name])
    for name in rest[: ROUND - sum(found.values())]:
        found[name] += 1
    for name, n in found.items():
        if n == 0:
            raise ConfigError(
                f"{KEY}.{name}.weight = {weights[name]:g} is less than 1/{ROUND} of "
                "all weights together: no example of it would be taken: leave the "
                "source out, or raise it"
            )
    return found
