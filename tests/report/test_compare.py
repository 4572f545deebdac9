"""Differences between conditions: known tests, cover by simulation, what is refused."""

import itertools
import math

import numpy as np
import pandas
import pytest
from scipy import stats

from rm_jax.experiment import above, below
from rm_jax.report import compare

A, B = {"loss.name": "bt"}, {"loss.name": "hinge"}
GRID = ("init_seed", "data_seed")
DRAWS = 2000


def table(a, b, seeds=("init_seed",)):
    """Two conditions; `a` and `b` map seeds, a number or a tuple, to a figure."""
    rows = []
    for name, values in (("bt", a), ("hinge", b)):
        for key, value in values.items():
            key = key if isinstance(key, tuple) else (key,)
            row = {"unit": f"{name}{key}", "null": False, "loss.name": name}
            rows.append(
                row | dict(zip(seeds, key, strict=True)) | {"test/accuracy": value}
            )
    return pandas.DataFrame(rows)


def grid(values, seeds=GRID):
    """A table of differences, one axis a seed, against zeros."""
    keys = list(itertools.product(*map(range, np.shape(values))))
    zeros = dict.fromkeys(keys, 0.0)
    return table(zeros, {key: values[key] for key in keys}, seeds)


def test_paired_is_the_t_test_of_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.7, 0.02, 5), rng.normal(0.72, 0.02, 5)
    both = table(dict(enumerate(x)), dict(enumerate(y)))
    both = both.sample(frac=1, random_state=1)  # the order of the rows is nothing
    found = compare.paired(both, "test/accuracy", A, B, ["init_seed"])
    want = stats.ttest_rel(y, x)
    interval = want.confidence_interval(0.95)
    assert found.mean == pytest.approx((y - x).mean(), rel=1e-12)
    assert found.p == pytest.approx(want.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(interval), rel=1e-9)
    assert found.n == 5 and found.unpaired == ()
    sd = (y - x).std(ddof=1)
    assert found.detectable == pytest.approx(compare.detectable(sd, 5), rel=1e-9)
    turned = compare.paired(both, "test/accuracy", B, A, ["init_seed"])
    assert turned.mean == pytest.approx(-found.mean)


def test_one_pair_has_no_interval_and_says_so():
    found = compare.paired(
        table({0: 0.7}, {0: 0.75}), "test/accuracy", A, B, ["init_seed"]
    )
    assert found.mean == pytest.approx(0.05) and found.n == 1
    assert all(map(math.isnan, (found.low, found.high, found.p, found.detectable)))
    assert str(found) == "+0.0500 (1 pair: no interval)"


def test_what_has_no_partner_is_named():
    both = table({0: 0.7, 1: 0.7, 2: 0.8}, {1: 0.75, 2: math.nan, 3: 0.8})
    found = compare.paired(both, "test/accuracy", A, B, ["init_seed"])
    assert found.mean == pytest.approx(0.05) and found.n == 1
    assert found.unpaired == (
        "init_seed=0 (not in b)",
        "init_seed=2 (not in b)",
        "init_seed=3 (not in a)",
    )
    assert "unpaired: init_seed=0 (not in b)" in str(found)
    none = compare.paired(
        table({0: 0.7}, {1: 0.7}), "test/accuracy", A, B, ["init_seed"]
    )
    assert none.n == 0 and math.isnan(none.mean)


def no_interval(found):
    return all(map(math.isnan, (found.low, found.high, found.p, found.detectable)))


def test_equal_pairs_are_no_difference():
    both = table({0: 0.5, 1: 0.25}, {0: 0.5, 1: 0.25})
    found = compare.paired(both, "test/accuracy", A, B, ["init_seed"])
    assert found[:6] == (0, 0, 0, 2, 1, 0)
    found = compare.difference(grid(np.zeros((2, 2))), "test/accuracy", A, B, GRID)
    assert found[:6] == (0, 0, 0, 4, 1, 0)


@pytest.mark.parametrize("gain", [0.25, 1 / 60])
def test_differences_without_spread_are_not_sure(gain):
    # .1 + 1/60 and .7 + 1/60 are rounded: their differences are not the same bits.
    low = {0: 0.1, 1: 0.7, 2: 0.25}
    both = table(low, {seed: x + gain for seed, x in low.items()})
    found = compare.paired(both, "test/accuracy", A, B, ["init_seed"])
    assert found.mean == pytest.approx(gain) and found.n == 3 and no_interval(found)
    assert str(found) == f"{gain:+.4f} (3 pairs: no spread seen over 3 pairs)"
    for claim in (above, below):
        assert claim(found).holds is None
    wide = compare.mixed(grid(np.full((3, 3), gain)), "test/accuracy", A, B, *GRID)
    assert wide.mean == pytest.approx(gain) and no_interval(wide)
    own = compare.level(grid(np.full((3, 3), gain)), "test/accuracy", A, GRID)
    assert own[0] == 0 and no_interval(own)  # zeros of one condition are no two equal


def test_a_spread_of_one_pair_in_a_hundred_thousand_is_one():
    both = table({0: 0.5, 1: 0.5}, {0: 0.6, 1: 0.60001})
    found = compare.paired(both, "test/accuracy", A, B, ["init_seed"])
    assert found.low < 0.1 < found.high < 0.101


def test_two_units_of_the_same_seeds_are_refused():
    both = table({(0, 0): 0.7, (0, 1): 0.8}, {(0, 0): 0.7}, ("init_seed", "noise"))
    with pytest.raises(ValueError, match=r"units bt\(0, 0\) and bt\(0, 1\) are both"):
        compare.paired(both, "test/accuracy", A, B, ["init_seed"])
    found = compare.paired(both, "test/accuracy", A | {"noise": 0}, B, ["init_seed"])
    assert found.n == 1


@pytest.mark.parametrize(
    ("metric", "where", "text"),
    [
        ("test/acuracy", B, r"'test/acuracy'; known: \['test/accuracy'\]"),
        ("test/accuracy", {"loss": "bt"}, r"'loss'; known: \['init_seed', 'loss.name'"),
        ("test/accuracy", {"loss.name": "odin"}, r"loss.name has \['bt', 'hinge'\]"),
    ],
)
def test_what_is_not_there_is_refused(metric, where, text):
    with pytest.raises(ValueError, match=text):
        compare.paired(table({0: 1}, {0: 1}), metric, A, where, ["init_seed"])


def test_a_key_that_a_unit_lacks_is_none():
    both = table({(0, None): 0.7}, {(0, 1.0): 0.8}, ("init_seed", "loss.margin"))
    a, b = {"loss.margin": None}, {"loss.margin": 1}
    found = compare.paired(both, "test/accuracy", a, b, ["init_seed"])
    assert found.mean == pytest.approx(0.1)
    with pytest.raises(ValueError, match="has"):  # a number is no truth value
        compare.paired(both, "test/accuracy", a, {"loss.margin": True}, ["init_seed"])


def test_mixed_by_hand():
    # d = rows (-2, 0, 2) + columns (-3, 0, 3) + 4 + ε, ε = ±1 in the corners: its rows
    # and columns are 0. MS_M = 3·8/2 = 12, MS_D = 3·18/2 = 27, MS_E = 4/4 = 1.
    # Var of the mean = (12 + 27 - 1) / 9; df = 38² / (144/2 + 729/2 + 1/4) = 3.305.
    rest = np.array([[1, 0, -1], [0, 0, 0], [-1, 0, 1]])
    values = np.add.outer([-2.0, 0, 2], [-3.0, 0, 3]) + 4 + rest
    found = compare.mixed(grid(values), "test/accuracy", A, B, *GRID)
    df = 38**2 / (72 + 364.5 + 0.25)
    half = stats.t.ppf(0.975, df) * math.sqrt(38 / 9)
    assert found[:2] == pytest.approx((4, 4 - half), rel=1e-12) and found.n == 9
    assert found.p == pytest.approx(2 * stats.t.sf(4 / (38 / 9) ** 0.5, df), rel=1e-12)


def test_mixed_has_the_degrees_of_the_fewer_seeds_at_least():
    # Rows and columns are all equal: MS_M = MS_D = 0, total = 0 + MS_E = 1, and
    # Satterthwaite's df is that of the rest, 4. With MS_M = .5 and MS_D = .5 below
    # MS_E = 1 the sum stays 1, and 1 / (.125 + .125 + .25) = 2.
    rest = np.array([[1, 0, -1], [0, 0, 0], [-1, 0, 1.0]])
    assert compare._crossed(rest).df == pytest.approx(4)
    side = np.array([-1, 0, 1]) * math.sqrt(0.5 / 3)
    both = np.add.outer(side, side) + rest
    assert compare._crossed(both).df == pytest.approx(2)
    side = np.array([-1, 0, 1]) * math.sqrt(0.999 / 3)
    assert compare._crossed(np.add.outer(side, side) + rest).df == 2  # 1/1.25 = .8


@pytest.mark.parametrize(
    ("shape", "few"),
    [((2, 2), "init_seed and of data_seed"), ((5, 2), "data_seed"), ((2, 3), GRID[0])],
)
def test_two_crossed_seeds_have_no_interval(shape, few):
    values = grid(np.random.default_rng(0).normal(0.7, 0.02, shape))
    text = f"two of {few} are too few for an interval"
    for found in (
        compare.mixed(values, "test/accuracy", A, B, *GRID),
        compare.level(values, "test/accuracy", B, GRID),
    ):
        assert found.n == math.prod(shape) and no_interval(found)
        assert str(found) == f"{found.mean:+.4f} ({found.n} pairs: {text})"
        assert above(found).holds is None is below(found).holds


def test_pairs_that_share_a_seed_are_averaged_first():
    # The data seed makes 0 or .3, the init seed nothing: two repetitions, not six.
    keys = [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1)]
    d = dict(zip(keys, [0.09, 0.1, 0.11, 0.39, 0.41], strict=True))
    nested = table(dict.fromkeys(keys, 0.0), d, GRID)
    want = stats.ttest_1samp([0.1, 0.4], 0)
    for found in (
        compare.paired(nested, "test/accuracy", A, B, GRID),
        compare.paired(nested, "test/accuracy", A, B, GRID[::-1]),
        compare.difference(nested, "test/accuracy", A, B, GRID),
        compare.mixed(nested, "test/accuracy", A, B, *GRID),
        compare.level(nested, "test/accuracy", B, GRID),
    ):
        assert found.mean == pytest.approx(0.25) and found.n == 5
        assert found.p == pytest.approx(want.pvalue)
        assert "those that share data_seed are averaged: 2 groups" in str(found)


def test_seeds_that_say_nothing_new_are_no_further_seeds():
    values = np.random.default_rng(4).normal(size=(3, 3))
    both = grid(values)
    want = compare.mixed(both, "test/accuracy", A, B, *GRID)
    twin = both.assign(dropout_seed=both["init_seed"] + 7)  # varies with the init seed
    own = both.assign(dropout_seed=[*range(9)] * 2)  # one of each repetition
    for more in (twin, own):
        seeds = [*GRID, "dropout_seed"]
        assert compare.crossed(more, seeds) == GRID
        assert compare.difference(more, "test/accuracy", A, B, seeds) == want
        assert compare.level(more, "test/accuracy", B, seeds) == want


def test_three_crossed_seeds_have_no_interval():
    seeds = (*GRID, "dropout_seed")
    both = grid(np.random.default_rng(5).normal(size=(2, 2, 2)), seeds)
    found = compare.difference(both, "test/accuracy", A, B, seeds)
    assert found.n == 8 and no_interval(found)
    text = "no interval, all hang together by init_seed, data_seed, dropout_seed"
    assert text in str(found)


def test_mixed_is_paired_where_one_seed_varies():
    rng = np.random.default_rng(1)
    for shape in ((4, 1), (1, 4)):
        values = grid(rng.normal(size=shape))
        seeds = ["init_seed", "data_seed"]
        found = compare.mixed(values, "test/accuracy", A, B, *seeds)
        assert found == compare.paired(values, "test/accuracy", A, B, seeds)
    together = {(i, i): v for i, v in enumerate(rng.normal(size=4))}
    both = table(dict.fromkeys(together, 0.0), together, ("init_seed", "data_seed"))
    found = compare.mixed(both, "test/accuracy", A, B, *seeds)
    assert found == compare.paired(both, "test/accuracy", A, B, seeds)
    assert compare.crossed(both, seeds) == () == compare.crossed(values, seeds)
    assert compare.crossed(grid(np.zeros((2, 2))), seeds) == tuple(seeds)
    assert compare.crossed(grid(np.zeros((2, 2))), seeds[:1]) == ()


def test_the_test_is_chosen_by_the_seeds():
    values = np.random.default_rng(4).normal(size=(3, 3))
    seeds = ["init_seed", "data_seed"]
    both = grid(values).assign(dropout_seed=0)
    found = compare.difference(both, "test/accuracy", A, B, [*seeds, "dropout_seed"])
    assert found == compare.mixed(both, "test/accuracy", A, B, *seeds)
    own = compare.level(both, "test/accuracy", B, seeds)  # the others are zeros
    assert own == found
    one = both[both["data_seed"] == 0]
    found = compare.difference(one, "test/accuracy", A, B, seeds)
    assert found == compare.paired(one, "test/accuracy", A, B, seeds)
    assert compare.level(one, "test/accuracy", B, seeds) == found


def test_a_grid_with_holes_leaves_out_the_seed_that_has_most():
    values = np.random.default_rng(2).normal(size=(4, 3))
    holed = grid(values)
    holed = holed[holed["unit"] != "hinge(0, 1)"]
    found = compare.mixed(holed, "test/accuracy", A, B, "init_seed", "data_seed")
    whole = grid(values[1:])
    want = compare.mixed(whole, "test/accuracy", A, B, "init_seed", "data_seed")
    assert found[:6] == pytest.approx(want[:6])
    assert found.unpaired == (
        "init_seed=0, data_seed=1 (not in b)",
        "init_seed=0 (its grid has holes)",
    )


def covered(estimates):
    """Share of the 95 % intervals that hold 0."""
    mean, se, df = np.array(list(estimates)).T
    return np.mean(np.abs(mean) <= stats.t.ppf(0.975, df) * se)


SLACK = 3 * math.sqrt(0.95 * 0.05 / DRAWS)  # three standard errors of a share of 95 %


@pytest.mark.parametrize("n", [3, 5])
def test_the_paired_interval_covers_95_percent(n):
    draws = np.random.default_rng(n).normal(size=(DRAWS, n))
    assert abs(covered(map(compare._student, draws)) - 0.95) < SLACK


@pytest.mark.parametrize("spread", [(1, 1, 1), (1, 0, 1), (0, 1, 1), (0, 2, 1)])
def test_the_mixed_interval_of_5_by_3_seeds_covers_95_percent(spread):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=(DRAWS, *shape))
    model, data, rest = spread
    d = model * draw(5, 1) + data * draw(1, 3) + rest * draw(5, 3)
    assert covered(map(compare._crossed, d)) > 0.95 - SLACK
    naive = covered(compare._student(one.ravel()) for one in d)
    assert not data or naive < 0.85  # what fifteen independent pairs would claim


def test_the_interval_of_nested_seeds_covers_95_percent():
    rng, keys = np.random.default_rng(0), [(i, i // 4) for i in range(12)]
    d = rng.normal(size=(500, 3, 1)) + rng.normal(size=(500, 3, 4))

    def held(one):
        both = dict(zip(keys, one.ravel().tolist(), strict=True))
        cells = compare._Cells(GRID, both, (), 0.0, False)
        found = compare._over_groups(cells)
        return found.low <= 0 <= found.high

    share = np.mean([held(one) for one in d])
    assert abs(share - 0.95) < SLACK * 2  # a quarter of the draws
    assert covered(compare._student(one.ravel()) for one in d) < 0.8


@pytest.mark.parametrize(
    ("sd", "n", "power"), [(1.0, 3, 0.8), (0.02, 5, 0.8), (2, 8, 0.5)]
)
def test_what_is_detectable_is_found_so_often(sd, n, power):
    true = compare.detectable(sd, n, power)
    d = np.random.default_rng(n).normal(true, sd, (20_000, n))
    found = (stats.ttest_1samp(d, 0, axis=1).pvalue < 0.05).mean()
    assert abs(found - power) < 3 * math.sqrt(power * (1 - power) / 20_000)


def test_detectable_at_its_limits():
    # Cohen's d of 33.4 pairs is .5 (the table of Cohen 1988 rounds to 34).
    assert compare.detectable(1.0, 34) == pytest.approx(0.4946, abs=5e-4)
    assert compare.detectable(0.0, 3) == 0 and math.isnan(compare.detectable(1.0, 1))
    for wrong in ((-1, 3), (1, 0), (math.nan, 3)):
        with pytest.raises(ValueError, match="want sd >= 0"):
            compare.detectable(*wrong)
    with pytest.raises(ValueError, match="alpha < power"):
        compare.detectable(1, 3, power=0.05)


def test_holm_by_hand():
    nan = math.nan
    # Sorted .01 .02 .04: ×3 = .03, ×2 = .04, ×1 = .04.
    assert compare.holm([0.04, nan, 0.01, 0.02]) == pytest.approx(
        [0.04, nan, 0.03, 0.04], nan_ok=True
    )
    assert compare.holm([0.5, 0.9]) == [1.0, 1.0] and compare.holm([]) == []
