"""Two conditions compared over their seeds: a difference and how sure it is.

>>> import pandas
>>> table = pandas.DataFrame(
...     [("a1", "bt", 0, 0.70), ("a2", "bt", 1, 0.72), ("b1", "hinge", 0, 0.73)],
...     columns=["unit", "loss.name", "init_seed", "test/accuracy"],
... )
>>> bt, hinge = {"loss.name": "bt"}, {"loss.name": "hinge"}
>>> print(paired(table, "test/accuracy", bt, hinge, ["init_seed"]))
+0.0300 (1 pair: no interval; unpaired: init_seed=1 (not in b))

Over few seeds a percentile bootstrap is far too narrow (its 95 % interval covers 75 %
at 3 seeds): these are Student's t on paired differences.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

LEVEL = 0.95


class Difference(NamedTuple):
    """The mean of b - a over pairs of units that share their seeds.

    Attributes:
      mean: of the differences; NaN of none.
      low, high: its 95 % interval; NaN below two pairs.
      n: pairs.
      p: two-sided, of no difference; NaN below two pairs.
      detectable: smallest true difference that a test with this spread and these seeds
        finds with a power of .8; NaN below two pairs.
      unpaired: what was left out because its partner is missing.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float
    detectable: float
    unpaired: tuple[str, ...] = ()

    def __str__(self) -> str:
        pairs = f"{self.n} pair{'s' * (self.n != 1)}"
        left = f"; unpaired: {', '.join(self.unpaired)}" if self.unpaired else ""
        if self.n < 2:
            return f"{self.mean:+.4f} ({pairs}: no interval{left})"
        return (
            f"{self.mean:+.4f} (95 %: {self.low:+.4f} to {self.high:+.4f}; {pairs}, "
            f"p = {self.p:.3g}; detectable {self.detectable:.4f}{left})"
        )


def paired(
    table: Any,
    metric: str,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    seeds: Sequence[str],
) -> Difference:
    """b - a over pairs of rows that share the values of all seeds; Student's t.

    Args:
      table: a DataFrame, one row a unit, as `rm_jax.report.root.figures` gives it.
      metric: a column of figures, "test/accuracy". A row without a value is missing.
      a, b: column -> value of the two conditions; None is a key that a unit lacks.
      seeds: columns that are repetitions.

    Raises:
      ValueError: an unknown column, a condition without rows, or two rows of one
        condition that share all seeds; names them.
    """
    cells, left = _pairs(table, metric, a, b, seeds)
    return _difference(_student(np.array(list(cells.values()))), len(cells), left)


def mixed(
    table: Any,
    metric: str,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    model_seed: str,
    data_seed: str,
) -> Difference:
    """b - a over model seeds × data seeds, each a random effect on the difference.

    d_ij = μ + M_i + D_j + ε_ij. The components come from the mean squares of the
    two-way ANOVA, those below 0 as 0; the degrees of freedom are Satterthwaite's. Where
    one seed alone varies, or the two only together, it is `paired`.

    Simulated cover of the 95 % interval: 93 to 99 % at 5 × 2 seeds and 96 to 99 % at
    5 × 5, by the components; down to 90 % at 10 × 2. Two data seeds are few.

    Args:
      table, metric, a, b: as in `paired`.
      model_seed, data_seed: the columns of the two seeds. Of a grid with holes the
        seeds with most holes are left out, and named.

    Raises:
      ValueError: as `paired`.

    Reference: Satterthwaite, An approximate distribution of estimates of variance
      components, Biometrics 2(6), 1946.
    """
    cells, left = _pairs(table, metric, a, b, (model_seed, data_seed))
    return _over_grid(cells, left, (model_seed, data_seed))


def difference(
    table: Any,
    metric: str,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    seeds: Sequence[str],
) -> Difference:
    """`mixed` where two seeds vary and are crossed in the table, else `paired`."""
    if two := crossed(table, seeds):
        return mixed(table, metric, a, b, *two)
    return paired(table, metric, a, b, seeds)


def level(
    table: Any, metric: str, where: Mapping[str, Any], seeds: Sequence[str]
) -> Difference:
    """A condition's own mean over its seeds, as `difference` from 0."""
    cells = _by_seed(table, metric, where, crossed(table, seeds) or seeds)
    return _over_grid(cells, [], crossed(table, seeds) or seeds)


def crossed(table: Any, seeds: Sequence[str]) -> tuple[str, ...]:
    """The two seeds that vary apart from each other; () where `paired` is the test."""
    varying = tuple(seed for seed in seeds if table[seed].nunique() > 1)
    if len(varying) != 2:
        return ()
    most = max(table[seed].nunique() for seed in varying)
    return varying if len(table[list(varying)].drop_duplicates()) > most else ()


def detectable(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true difference that the paired t test of n pairs finds so often.

    Solves P(|T'| > t) = power for the shift of a noncentral t with n - 1 degrees.

    Args:
      sd: of the differences of single pairs.
      n: pairs; NaN comes back for one, which cannot find anything.
      power: share of experiments that find it.
      alpha: level of the two-sided test.

    Raises:
      ValueError: sd below 0, n below 1, power or alpha not inside (alpha, 1).
    """
    if not (sd >= 0 and n >= 1 and 0 < alpha < power < 1):
        raise ValueError(
            f"detectable(sd={sd}, n={n}, power={power}, alpha={alpha}): want sd >= 0, "
            "n >= 1, 0 < alpha < power < 1"
        )
    return _detectable(sd / math.sqrt(n), n - 1, power, alpha)


def holm(p: Sequence[float]) -> list[float]:
    """p values made larger for there being many (Holm 1979); a NaN is not counted."""
    out, worst = [math.nan] * len(p), 0.0
    known = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    for rank, (value, i) in enumerate(known):
        worst = max(worst, min(1.0, value * (len(known) - rank)))
        out[i] = worst
    return out


def _pairs(
    table: Any,
    metric: str,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    seeds: Sequence[str],
) -> tuple[dict[tuple, float], list[str]]:
    """b - a by the values of the seeds, and what has no partner."""
    first, second = (_by_seed(table, metric, where, seeds) for where in (a, b))
    keys = dict.fromkeys([*first, *second])
    left = []
    for key in keys:
        if key not in first or key not in second:
            name = ", ".join(f"{s}={shown(v)}" for s, v in zip(seeds, key, strict=True))
            left.append(f"{name} (not in {'b' if key in first else 'a'})")
    both = [key for key in keys if key in first and key in second]
    return {key: second[key] - first[key] for key in both}, left


def _over_grid(
    cells: Mapping[tuple, float], left: list[str], seeds: Sequence[str]
) -> Difference:
    """Of a grid of two seeds; of one line, or without a grid, as of single values."""
    lines = [list(dict.fromkeys(values)) for values in zip(*cells, strict=True)]
    if len(cells) <= max(map(len, lines), default=0) or len(seeds) != 2:
        return _difference(_student(np.array(list(cells.values()))), len(cells), left)
    while holes := [key for key in itertools.product(*lines) if key not in cells]:
        share = lambda c: sum(h[c[0]] == c[1] for h in holes) / len(lines[1 - c[0]])
        i, worst = max(((i, v) for i in (0, 1) for v in lines[i]), key=share)
        lines[i].remove(worst)
        left.append(f"{seeds[i]}={shown(worst)} (its grid has holes)")
    grid = np.array([cells[key] for key in itertools.product(*lines)])
    grid = grid.reshape(*map(len, lines))
    return _difference(_crossed(grid), grid.size, left)


def _by_seed(
    table: Any, metric: str, where: Mapping[str, Any], seeds: Sequence[str]
) -> dict[tuple, float]:
    for name in (metric, *where, *seeds):
        if name not in table.columns:
            known = sorted(c for c in table.columns if ("/" in c) == ("/" in name))
            raise ValueError(f"no column {name!r}; known: {known}")
    rows = rows_of(table, where)
    found: dict[tuple, tuple[str, float]] = {}
    columns = [rows["unit"], rows[metric], *(rows[seed] for seed in seeds)]
    for unit, value, *key in zip(*columns, strict=True):
        key = tuple(map(plain, key))
        if key in found:
            raise ValueError(
                f"units {found[key][0]} and {unit} are both {dict(where)} with "
                f"{dict(zip(seeds, key, strict=True))}: name the keys that tell them "
                "apart"
            )
        found[key] = unit, float(value)
    return {key: value for key, (_, value) in found.items() if not math.isnan(value)}


def rows_of(table: Any, where: Mapping[str, Any]) -> Any:
    """The rows of a condition.

    Raises:
      ValueError: there are none; lists what a key has.
    """
    rows = table
    for key, value in where.items():
        rows = rows[[_same(found, value) for found in rows[key]]]
        if not len(rows):
            known = list(dict.fromkeys(map(plain, table[key])))
            raise ValueError(f"no finished unit has {dict(where)}; {key} has {known}")
    return rows


def plain(value: Any) -> Any:
    """A cell of a table as a Python value: NaN, which pandas puts, is None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is None or value != value else value


def shown(value: Any) -> str:
    """A value of a key as text, short: 0.3333 ... is 0.333333, a 7.0 of pandas 7."""
    value = plain(value)
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:g}"


def _same(a: Any, b: Any) -> bool:
    a, b = plain(a), plain(b)
    return a == b and isinstance(a, bool) == isinstance(b, bool)


class _Estimate(NamedTuple):
    """A mean, its standard error and the degrees of freedom of that."""

    mean: float
    se: float
    df: float

    def interval(self) -> tuple[float, float]:
        from scipy import stats

        if not self.se:
            return self.mean, self.mean
        half = float(stats.t.ppf((1 + LEVEL) / 2, self.df)) * self.se
        return self.mean - half, self.mean + half


def _student(d: Float[np.ndarray, "n"]) -> _Estimate:
    """Of independent values; NaN and 0 degrees of fewer than two."""
    n = len(d)
    if n < 2:
        return _Estimate(float(d[0]) if n else math.nan, math.nan, 0)
    return _Estimate(float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n), n - 1)


def _crossed(d: Float[np.ndarray, "m d"]) -> _Estimate:
    """Of a whole grid, model seeds × data seeds."""
    i, j = d.shape
    if min(d.shape) < 2:
        return _student(d.ravel())
    mean, rows, columns = d.mean(), d.mean(1, keepdims=True), d.mean(0, keepdims=True)
    square_m = j * ((rows - mean) ** 2).sum() / (i - 1)
    square_d = i * ((columns - mean) ** 2).sum() / (j - 1)
    rest = (i - 1) * (j - 1)
    square_e = ((d - rows - columns + mean) ** 2).sum() / rest
    total = square_e + sum(max(0.0, s - square_e) for s in (square_m, square_d))
    parts = ((square_m, i - 1), (square_d, j - 1), (square_e, rest))
    spread = sum(s**2 / df for s, df in parts)
    df = total**2 / spread if spread else rest
    return _Estimate(float(mean), math.sqrt(total / d.size), float(df))


def _difference(found: _Estimate, n: int, left: Sequence[str]) -> Difference:
    from scipy import stats

    low, high = found.interval()
    if not found.se:
        p = float(found.mean == 0)
    else:
        p = 2 * float(stats.t.sf(abs(found.mean) / found.se, found.df))
    smallest = _detectable(found.se, found.df, 0.8, 1 - LEVEL)
    return Difference(found.mean, low, high, n, p, smallest, tuple(left))


def _detectable(se: float, df: float, power: float, alpha: float) -> float:
    from scipy import optimize, stats

    if not df or not se:
        return 0.0 if df else math.nan
    t = stats.t.ppf(1 - alpha / 2, df)
    # The square of a noncentral t, which has both tails in one and no NaN far out.
    found = lambda shift: stats.ncf.sf(t**2, 1, df, shift**2)
    high = 1.0
    while found(high) < power:
        high *= 2
    return float(optimize.brentq(lambda shift: found(shift) - power, 0, high)) * se
