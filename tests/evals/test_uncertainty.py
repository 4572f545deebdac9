import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import mannwhitneyu, norm

from rm_jax.evals import by_source, evaluate, from_arrow, to_arrow
from rm_jax.evals.reducers import REDUCERS, reduce
from rm_jax.evals.table import ScoreTable, check, concat, pairs, take
from rm_jax.evals.uncertainty import (
    auroc,
    corrected,
    figures,
    margin_std,
    risk_coverage,
)

NAN = np.nan


@pytest.fixture
def make_members(random_table):
    """A random table with three members; the scores are their mean."""

    def make(seed, m=3, **more) -> ScoreTable:
        table = random_table(seed, **more)
        noise = np.random.default_rng(seed).normal(size=(m, *table.scores.shape))
        members = table.scores + noise
        return table._replace(members=members, scores=reduce("mean", members))

    return make


def test_two_members_by_hand(make_table):
    # Margins of the members: 1 and 3; -2 and 0; 1 and -1.
    members = np.array(
        [[[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]
    )
    table = make_table(members.mean(0), [[0, 1]] * 3, members=members)
    np.testing.assert_allclose(margin_std(table, pairs(table)), [1, 1, 1])
    got = figures(table)
    assert got["uncertainty/margin_std"] == 1
    # std of the scores: 1 0 | .5 .5 | .5 .5
    assert got["uncertainty/score_std"] == pytest.approx(0.5)
    # One member: right, wrong, right. The other: right, tied, wrong.
    assert got["members/accuracy"] == pytest.approx((2 / 3 + 1.5 / 3) / 2)
    assert got["members/agreement"] == pytest.approx(1 / 3)
    errors = np.corrcoef([1, 0, 1], [1, 0.5, 0])[0, 1]
    assert got["members/error_corr"] == pytest.approx(errors)
    # min of the members: 1 0 | 0 1 | 0 0
    assert got["reducer/min/accuracy"] == pytest.approx(1.5 / 3)
    # mean: margins 2, -1 and 0
    assert got["reducer/mean/accuracy"] == pytest.approx(1.5 / 3)
    assert got["reducer/mean/nll"] == pytest.approx(
        -np.log(expit([2.0, -1.0, 0.0])).mean()
    )


def test_members_are_compared_two_by_two(make_members):
    table = make_members(12, m=4)
    margins = table.members[:, :, 0] - table.members[:, :, 1]
    only = (table.ranks[:, :2] >= 0).all(1) & (table.ranks[:, 2] < 0)
    only &= (table.ranks[:, 0] != table.ranks[:, 1]) & (table.ranks[:, 3:] < 0).all(1)
    only &= table.lengths[:, 2] == 0  # one pair an example
    better = np.where(table.ranks[:, 0] < table.ranks[:, 1], 1, -1)
    right = (margins * better > 0)[:, only].astype(float)
    got = figures(take(table._replace(weight=np.ones(60)), only))
    two = np.triu_indices(4, 1)
    assert only.sum() > 5
    want = [(a == b).mean() for a, b in zip(*right[list(two)], strict=True)]
    assert got["members/agreement"] == pytest.approx(np.mean(want))
    corr = np.corrcoef(right)[two]
    assert got["members/error_corr"] == pytest.approx(corr.mean()) and corr.any()


def test_equal_scores_are_neither_right_nor_wrong_for_auroc(make_table):
    # Wrong with std 2, right with std 1, equal with std 0.
    half = np.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    away = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    table = make_table(half, [[0, 1]] * 3, members=np.stack([half - away, half + away]))
    assert figures(table)["uncertainty/auroc"] == 1


def test_figures_of_a_covariance_are_those_of_the_members_it_is_of(make_members):
    table = make_members(4)
    centred = table.members - table.members.mean(0)
    cov = np.einsum("mei,mej->eij", centred, centred) / 3
    other = table._replace(members=None, covariance=cov)
    np.testing.assert_allclose(
        margin_std(other, pairs(table)), margin_std(table, pairs(table)), rtol=1e-9
    )
    want = {k: v for k, v in figures(table).items() if k.startswith("uncertainty/")}
    assert figures(other) == pytest.approx(want)
    with pytest.raises(ValueError, match="no uncertainty"):
        margin_std(table._replace(members=None), pairs(table))


def test_one_member_is_the_single_model(make_members):
    table = make_members(5, m=1)
    plain = evaluate(table._replace(members=None), seed=0)
    got = evaluate(table, seed=0)
    of_members = ("members/", "reducer/", "uncertainty/")
    assert {k: v for k, v in got.items() if not k.startswith(of_members)} == plain
    for name in [f"reducer/{n}" for n in REDUCERS] + ["members"]:
        for figure in ("accuracy", "nll", "gold_accuracy"):
            assert got[f"{name}/{figure}"] == plain[figure]
    assert got["uncertainty/margin_std"] == 0 and got["uncertainty/auroc"] == 0.5
    assert got["uncertainty/nll"] == plain["nll"]  # nothing to correct
    assert "members/agreement" not in got and "members/error_corr" not in got


def test_auroc_is_mann_whitney_and_counts_weights():
    rng = np.random.default_rng(0)
    value, wrong = rng.integers(0, 9, 200) / 2, rng.random(200) < 0.3
    u = mannwhitneyu(value[wrong], value[~wrong]).statistic
    want = u / (wrong.sum() * (~wrong).sum())
    assert auroc(value, wrong, np.ones(200)) == pytest.approx(want)
    times = rng.integers(1, 4, 200)
    repeated = auroc(
        *(np.repeat(x, times) for x in (value, wrong)), np.ones(sum(times))
    )
    assert auroc(value, wrong, times.astype(float)) == pytest.approx(repeated)
    assert np.isnan(auroc(value, np.zeros(200, bool), np.ones(200)))


def test_risk_coverage_by_hand():
    # Least doubtful first: right (weight 2); then two of equal doubt, one wrong.
    got = risk_coverage(
        np.array([0.5, 0.1, 0.5]), np.array([1.0, 0.0, 0.0]), np.array([1.0, 2.0, 1.0])
    )
    np.testing.assert_allclose(got, [[0.5, 1.0], [0.0, 0.25]])


def test_certain_half_and_area(make_table):
    # Margins +-2 with std 0, 0, 1, 1; the last one is wrong.
    half = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [-2.0, 0.0]])
    away = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    table = make_table(half, [[0, 1]] * 4, members=np.stack([half - away, half + away]))
    got = figures(table)
    assert got["uncertainty/accuracy_certain_half"] == 1
    assert got["uncertainty/aurc"] == pytest.approx(0.5 * 0 + 0.5 * 0.25)
    assert got["uncertainty/auroc"] == pytest.approx((1 + 1 + 0.5) / 3)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("std", [0.0, 0.7, 3.0])
def test_corrected_probability_is_nearly_the_integral(std, temperature):
    for delta in (-4.0, 0.0, 0.3, 2.0):
        f = lambda z, d=delta: norm.pdf(z) * expit((d + std * z) / temperature)
        want = quad(f, -9, 9)[0]
        one = corrected(np.array([delta]), np.array([std]), temperature)[0]
        assert abs(expit(one / temperature) - want) < 0.02
        assert std or one == delta


def test_members_go_along(make_members, tmp_path):
    a, b = make_members(6), make_members(7, k=7)
    both = concat([a, b])
    check(both)
    assert both.members.shape == (3, 120, 7)
    np.testing.assert_array_equal(both.members[:, :60, :5], a.members)
    np.testing.assert_array_equal(take(both, np.arange(120) >= 60).members, b.members)
    with pytest.raises(ValueError, match="some of the tables have members, others"):
        concat([a, b._replace(members=None)])
    sources = np.where(np.arange(60) < 30, "x", "y")
    own = by_source(a._replace(source=sources), seed=0)
    assert "reducer/min/accuracy" in own["x"]


@pytest.mark.parametrize("kind", ["members", "covariance"])
def test_arrow_round_trip(make_members, tmp_path, kind):
    table = make_members(8)
    centred = table.members - table.members.mean(0)
    cov = np.einsum("mei,mej->eij", centred, centred) / 3
    if kind == "covariance":
        table = table._replace(members=None, covariance=cov)
    texts = [["a"] * 5 for _ in table.ids]
    pq.write_table(to_arrow(table, ["p"] * 60, texts), tmp_path / "p.parquet")
    back = from_arrow(pq.read_table(tmp_path / "p.parquet"))
    for name, x, y in zip(ScoreTable._fields, back, table, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def test_a_member_that_is_not_finite_is_named(make_members):
    table = make_members(9)
    table.members[2, 0, 0] = NAN
    with pytest.raises(ValueError, match=r"members \[2\] have scores not finite"):
        check(table)
    with pytest.raises(ValueError, match=r"members has shape \(3, 60, 4\)"):
        check(table._replace(members=table.members[:, :, :4]))


def test_a_temperature_scales_everything(make_members):
    table = make_members(10)
    scaled = table._replace(scores=table.scores * 3, members=table.members * 3)
    want, got = figures(table), figures(scaled, temperature=3.0)
    # A variance grows by the square of the scale.
    same = [k for k in want if "_std" not in k and "mean_minus_var" not in k]
    assert {k: got[k] for k in same} == pytest.approx({k: want[k] for k in same})
