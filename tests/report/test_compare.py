"""Differences between conditions: known tests, cover by simulation, what is refused."""

import itertools
import math

import numpy as np
import pandas
import pytest
from scipy import stats

from rm_jax.report import compare

A, B = {"loss.name": "bt"}, {"loss.name": "hinge"}
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


def grid(values, seeds=("init_seed", "data_seed")):
    """A table of differences m × d, against zeros."""
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


def test_equal_pairs_are_no_difference():
    both = table({0: 0.5, 1: 0.25}, {0: 0.5, 1: 0.25})
    found = compare.paired(both, "test/accuracy", A, B, ["init_seed"])
    assert found[:6] == (0, 0, 0, 2, 1, 0)
    both = table({0: 0.5, 1: 0.25}, {0: 0.75, 1: 0.5})
    found = compare.paired(both, "test/accuracy", A, B, ["init_seed"])
    assert found[:6] == (0.25, 0.25, 0.25, 2, 0, 0)


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
    # d = [[1, 3], [2, 6]]: mean 3; rows 2, 4; columns 1.5, 4.5.
    # MS_M = 2·(1 + 1) = 4, MS_D = 2·(2.25 + 2.25) = 9, MS_E = 4·(.5²) = 1.
    # Var of the mean = (4 + 9 − 1) / 4 = 3; df = 12² / (16 + 81 + 1) = 144 / 98.
    values = np.array([[1.0, 3.0], [2.0, 6.0]])
    found = compare.mixed(grid(values), "test/accuracy", A, B, "init_seed", "data_seed")
    half = stats.t.ppf(0.975, 144 / 98) * math.sqrt(3)
    assert found[:2] == pytest.approx((3, 3 - half), rel=1e-12) and found.n == 4
    assert found.p == pytest.approx(2 * stats.t.sf(3**0.5, 144 / 98), rel=1e-12)


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
    values = np.random.default_rng(4).normal(size=(3, 2))
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
    values = np.random.default_rng(2).normal(size=(3, 2))
    holed = grid(values)
    holed = holed[holed["unit"] != "hinge(0, 1)"]
    found = compare.mixed(holed, "test/accuracy", A, B, "init_seed", "data_seed")
    whole = grid(values[1:])
    want = compare.mixed(whole, "test/accuracy", A, B, "init_seed", "data_seed")
    assert found[:6] == want[:6]
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


@pytest.mark.parametrize("spread", [(1, 1, 1), (1, 0, 1), (0, 1, 1), (0.3, 1, 1)])
def test_the_mixed_interval_of_5_by_2_seeds_covers_95_percent(spread):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=(DRAWS, *shape))
    model, data, rest = spread
    d = model * draw(5, 1) + data * draw(1, 2) + rest * draw(5, 2)
    assert covered(map(compare._crossed, d)) > 0.95 - SLACK
    naive = covered(compare._student(one.ravel()) for one in d)
    assert not data or naive < 0.85  # what ten independent pairs would claim


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
