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
from jaxtyping import Float, Int

LEVEL = 0.95


class Difference(NamedTuple):
    """The mean of b - a over pairs of units that share their seeds.

    Attributes:
      mean: of the differences; NaN of none.
      low, high: its 95 % interval; NaN where there is none.
      n: pairs.
      p: two-sided, of no difference; NaN without interval.
      detectable: smallest true difference that a test with this spread and these seeds
        finds with a power of .8; NaN without interval.
      unpaired: what was left out because its partner is missing.
      note: why there is no interval, or what was averaged before it.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float
    detectable: float
    unpaired: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        pairs = f"{self.n} pair{'s' * (self.n != 1)}"
        left = f"; unpaired: {', '.join(self.unpaired)}" if self.unpaired else ""
        if math.isnan(self.low):
            return f"{self.mean:+.4f} ({pairs}: {self.note}{left})"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.mean:+.4f} (95 %: {self.low:+.4f} to {self.high:+.4f}; {pairs}, "
            f"p = {self.p:.3g}; detectable {self.detectable:.4f}{note}{left})"
        )


def paired(
    table: Any,
    metric: str,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    seeds: Sequence[str],
) -> Difference:
    """b - a over pairs of rows that share the values of all seeds; Student's t.

    Pairs that share a value of any seed that varies are not independent: they are
    averaged first, and t has the degrees of the groups that share none. Seeds 0 to 5 on
    data seeds 0 0 0 1 1 1 are two groups. Where all pairs hang together, as those of
    two crossed seeds (`mixed`) or three, there is no interval.

    Simulated cover of the 95 % interval: 94 to 96 % over 2 × 5, 3 × 3 and 5 × 3 nested
    seeds; as independent pairs 55 to 83 %.

    Differences that are all the same number say nothing about their spread: no
    interval, either. But where a = b exactly in every pair it is 0 to 0: conditions
    that are one program are equal, and this is how they look.

    Args:
      table: a DataFrame, one row a unit, as `rm_jax.report.root.figures` gives it.
      metric: a column of figures, "test/accuracy". A row without a value is missing.
      a, b: column -> value of the two conditions; None is a key that a unit lacks.
      seeds: columns that are repetitions.

    Raises:
      ValueError: an unknown column, a condition without rows, or two rows of one
        condition that share all seeds; names them.
    """
    return _over_groups(_pairs(table, metric, a, b, seeds))


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
    two-way ANOVA, those below 0 as 0; the degrees of freedom are Satterthwaite's, at
    least those of the seed that has fewer values. Where one seed alone varies, or the
    two only together, it is `paired`.

    Simulated cover of the 95 % interval: 95 to 99.8 % at 3 × 3 and 5 × 3 seeds, 95 to
    99.4 % at 5 × 5, 94 to 99.6 % at 10 × 3; widest where neither seed has an effect.
    Two values of a seed, as in 5 × 2 or 10 × 2, give no interval: by one degree of
    freedom it would be tens of times too wide, by more it misses too often (90 %).

    Args:
      table, metric, a, b: as in `paired`.
      model_seed, data_seed: the columns of the two seeds. Of a grid with holes the
        seeds with most holes are left out, and named.

    Raises:
      ValueError: as `paired`.

    Reference: Satterthwaite, An approximate distribution of estimates of variance
      components, Biometrics 2(6), 1946.
    """
    return _over_grid(_pairs(table, metric, a, b, (model_seed, data_seed)))


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
    over = crossed(table, seeds) or tuple(seeds)
    values = _by_seed(table, metric, where, over)
    return _over_grid(_Cells(over, values, (), _rounding(values), False))


def crossed(table: Any, seeds: Sequence[str]) -> tuple[str, ...]:
    """The two seeds that vary apart from each other; () where `paired` is the test.

    A seed that varies together with another counts once; one with a value of its own in
    every repetition does not count.
    """
    varying = [seed for seed in seeds if table[seed].nunique() > 1]
    rows = table[varying].drop_duplicates()
    count = lambda *names: len(rows[list(names)].drop_duplicates())
    found: list[str] = []
    for seed in varying:
        twin = any(count(seed) == count(other) == count(seed, other) for other in found)
        if count(seed) < len(rows) and not twin:
            found.append(seed)
    return tuple(found) if len(found) == 2 and count(*found) == len(rows) else ()


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


class _Cells(NamedTuple):
    """The values that are compared.

    Attributes:
      seeds: names.
      values: values of the seeds -> b - a.
      left: what has no partner.
      rounding: what the last digits of the figures make of a difference.
      same: whether a and b are equal in every pair.
    """

    seeds: tuple[str, ...]
    values: Mapping[tuple, float]
    left: tuple[str, ...]
    rounding: float
    same: bool


def _rounding(*figures: Mapping[tuple, float]) -> float:
    values = [abs(value) for some in figures for value in some.values()]
    return 8 * float(np.finfo(np.float64).eps) * max(values, default=0.0)


def _pairs(
    table: Any,
    metric: str,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    seeds: Sequence[str],
) -> _Cells:
    first, second = (_by_seed(table, metric, where, seeds) for where in (a, b))
    keys = dict.fromkeys([*first, *second])
    left = []
    for key in keys:
        if key not in first or key not in second:
            name = ", ".join(f"{s}={shown(v)}" for s, v in zip(seeds, key, strict=True))
            left.append(f"{name} (not in {'b' if key in first else 'a'})")
    both = {k: second[k] - first[k] for k in keys if k in first and k in second}
    same = not any(both.values())
    return _Cells(tuple(seeds), both, tuple(left), _rounding(first, second), same)


def _over_grid(cells: _Cells) -> Difference:
    """Of a grid of two seeds; of one line, or without a grid, as `_over_groups`."""
    values, seeds, left = cells.values, cells.seeds, list(cells.left)
    lines = [list(dict.fromkeys(own)) for own in zip(*values, strict=True)]
    if len(values) <= max(map(len, lines), default=0) or len(seeds) != 2:
        return _over_groups(cells)
    while holes := [key for key in itertools.product(*lines) if key not in values]:
        share = lambda c: sum(h[c[0]] == c[1] for h in holes) / len(lines[1 - c[0]])
        i, worst = max(((i, v) for i in (0, 1) for v in lines[i]), key=share)
        lines[i].remove(worst)
        left.append(f"{seeds[i]}={shown(worst)} (its grid has holes)")
    grid = np.array([values[key] for key in itertools.product(*lines)])
    grid = grid.reshape(*map(len, lines))
    few = [s for s, own in zip(seeds, lines, strict=True) if len(own) == 2]
    note = f"two of {' and of '.join(few)} are too few for an interval"
    note = note if min(grid.shape) == 2 else ""
    cells = cells._replace(left=tuple(left))
    return _difference(_crossed(grid), cells, grid.size, note)


def _over_groups(cells: _Cells) -> Difference:
    """Of the means of the groups of pairs that share no value of a seed."""
    n, of = len(cells.values), _groups(list(cells.values))
    d = np.array(list(cells.values.values()))
    means = np.array([d[of == group].mean() for group in np.unique(of)])
    note = "" if n > 1 else "no interval"
    if len(means) < n:
        columns = zip(cells.seeds, zip(*cells.values, strict=True), strict=True)
        shared = [s for s, own in columns if 1 < len(set(own)) < n]
        note = (
            f"those that share {' or '.join(shared)} are averaged: {len(means)} groups"
            if len(means) > 1
            else f"no interval, all hang together by {', '.join(shared)}"
        )
    return _difference(_student(means), cells, n, note)


def _groups(keys: Sequence[tuple]) -> Int[np.ndarray, "n"]:
    """The group of each key; keys that share a value of a seed that varies are in one.

    >>> _groups([(0, 0), (1, 0), (2, 1), (3, 1)]).tolist()
    [0, 0, 2, 2]
    """
    found = np.arange(len(keys))
    for column in zip(*keys, strict=True):
        for value in set(column) if len(set(column)) > 1 else ():
            own = found[[i for i, other in enumerate(column) if other == value]]
            found[np.isin(found, own)] = own.min()
    return found


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

        half = float(stats.t.ppf((1 + LEVEL) / 2, self.df)) * self.se
        return self.mean - half, self.mean + half


def _student(d: Float[np.ndarray, "n"]) -> _Estimate:
    """Of independent values; NaN and 0 degrees of fewer than two."""
    n = len(d)
    if n < 2:
        return _Estimate(float(d[0]) if n else math.nan, math.nan, 0)
    return _Estimate(float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n), n - 1)


def _crossed(d: Float[np.ndarray, "m d"]) -> _Estimate:
    """Of a whole grid, model seeds × data seeds; NaN where there are two of one."""
    i, j = d.shape
    if min(d.shape) < 2:
        return _student(d.ravel())
    if min(d.shape) == 2:
        return _Estimate(float(d.mean()), math.nan, 0)
    mean, rows, columns = d.mean(), d.mean(1, keepdims=True), d.mean(0, keepdims=True)
    square_m = j * ((rows - mean) ** 2).sum() / (i - 1)
    square_d = i * ((columns - mean) ** 2).sum() / (j - 1)
    rest = (i - 1) * (j - 1)
    square_e = ((d - rows - columns + mean) ** 2).sum() / rest
    total = square_e + sum(max(0.0, s - square_e) for s in (square_m, square_d))
    parts = ((square_m, i - 1), (square_d, j - 1), (square_e, rest))
    spread = sum(s**2 / df for s, df in parts)
    df = max(total**2 / spread, min(i, j) - 1) if spread else rest
    return _Estimate(float(mean), math.sqrt(total / d.size), float(df))


def _difference(found: _Estimate, cells: _Cells, n: int, note: str) -> Difference:
    from scipy import stats

    nan, left = math.nan, cells.left
    if cells.same and n > 1:
        return Difference(0.0, 0.0, 0.0, n, 1.0, 0.0, left)
    if not found.df:
        return Difference(
            found.mean, nan, nan, n, nan, nan, left, note or "no interval"
        )
    if found.se <= cells.rounding:
        note = f"no spread seen over {n} pairs"
        return Difference(found.mean, nan, nan, n, nan, nan, left, note)
    low, high = found.interval()
    p = 2 * float(stats.t.sf(abs(found.mean) / found.se, found.df))
    smallest = _detectable(found.se, found.df, 0.8, 1 - LEVEL)
    return Difference(found.mean, low, high, n, p, smallest, left, note)


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
