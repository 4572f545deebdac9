import numpy as np
import pytest
import scipy.optimize
from scipy.special import expit, log_expit

from rm_jax.evals.calibration import (
    brier,
    ece,
    fit_temperature,
    mce,
    nll,
    reliability,
)
from rm_jax.evals.table import pairs


@pytest.fixture
def found(make_table):
    """Pairs of given margins, the better response first; ties and soft by column."""

    def make(deltas, ties=None, **columns):
        deltas = np.asarray(deltas, float)
        ranks = np.tile([0, 1], (len(deltas), 1))
        if ties is not None:
            ranks[np.asarray(ties)] = 0
        scores = np.stack([deltas, 0 * deltas], 1)
        return pairs(make_table(scores, ranks, **columns))

    return make


def test_nll_and_brier_by_hand(found):
    got = found([np.log(3), 0.0, -np.log(4)])
    np.testing.assert_allclose(nll(got).values, np.log([4 / 3, 2, 5]))
    np.testing.assert_allclose(brier(got).values, [1 / 16, 1 / 4, 16 / 25])
    np.testing.assert_allclose(
        nll(got, temperature=2.0).values, -log_expit(got.delta / 2)
    )


def test_ties_are_halves_and_soft_labels_are_mixtures(found):
    got = found([2.0, 2.0], ties=[0], soft=[np.nan, 0.3])
    a, b = -log_expit(2.0), -log_expit(-2.0)
    np.testing.assert_allclose(nll(got).values, [(a + b) / 2, 0.3 * a + 0.7 * b])
    p = expit(2.0)
    np.testing.assert_allclose(brier(got).values, [(p - 0.5) ** 2, (p - 0.3) ** 2])


def test_extremes_stay_exact(found):
    got = found([1e4, -1e4, 1e4, -1e4], ties=[2, 3])
    np.testing.assert_allclose(nll(got).values, [0, 1e4, 5e3, 5e3])
    np.testing.assert_array_equal(brier(got).values, [0, 1, 0.25, 0.25])
    bins = reliability(got)
    assert np.isfinite([ece(bins), mce(bins), fit_temperature(got)]).all()
    # One right, one wrong, both certain, and two ties: half of each is won everywhere.
    assert ece(bins) == pytest.approx(0.5)


def test_nll_of_tiny_differences_keeps_its_digits(found):
    assert nll(found([40.0])).values[0] == pytest.approx(np.exp(-40), rel=1e-12)


def test_ece_by_hand(found):
    # P = .75: three of four won. P = .9: one of two won.
    deltas = [np.log(3)] * 3 + [-np.log(3)] + [np.log(9), -np.log(9)]
    bins = reliability(found(deltas), bins=10)
    assert ece(bins) == pytest.approx((4 * 0 + 2 * 0.4) / 6)
    assert mce(bins) == pytest.approx(0.4)
    assert bins.n.sum() == 12
    assert bins.weight.sum() == pytest.approx(1)
    assert bins.confidence[7] == pytest.approx(0.75)
    assert bins.share[7] == bins.share[2] * 3 == pytest.approx(0.75)
    assert np.isnan(bins.share[4]) and bins.n[4] == 0


def test_certain_predictions_fall_in_the_end_bins(found):
    bins = reliability(found([1e4, 1e4]), bins=4)
    np.testing.assert_array_equal(bins.n, [2, 0, 0, 2])
    assert ece(bins) == 0


def test_calibrated_scores_have_small_ece_and_temperature_one(found):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, 40_000)
    won = rng.random(len(logits)) < expit(logits)
    got = found(np.where(won, logits, -logits))
    assert ece(reliability(got)) < 0.008
    assert fit_temperature(got) == pytest.approx(1, abs=0.03)
    # Three times too sure: the error shows, the fit finds it and repairs it.
    loud = got._replace(delta=3 * got.delta)
    assert ece(reliability(loud)) > 0.08
    assert fit_temperature(loud) == pytest.approx(3 * fit_temperature(got), rel=1e-4)
    assert ece(reliability(loud, fit_temperature(loud))) < 0.008


def test_orientation_of_pairs_does_not_matter(make_table):
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(500, 2))
    first = make_table(scores, np.tile([0, 1], (500, 1)))
    turn = rng.random(500) < 0.5
    other = first._replace(
        scores=np.where(turn[:, None], scores[:, ::-1], scores),
        ranks=np.where(turn[:, None], [[1, 0]], [[0, 1]]),
    )
    # As (P, y) with y random, through soft labels, so that no order is known.
    soft = first._replace(
        scores=other.scores,
        ranks=np.zeros((500, 2), int),
        soft=np.where(turn, 0.0, 1.0),
    )
    want = ece(reliability(pairs(first)))
    assert ece(reliability(pairs(other))) == pytest.approx(want, abs=1e-12)
    assert ece(reliability(pairs(soft))) == pytest.approx(want, abs=1e-12)


def test_temperature_is_the_minimum_of_the_nll(found):
    rng = np.random.default_rng(2)
    got = found(rng.normal(1, 2, 300), weight=rng.integers(1, 5, 300) * 1.0)
    fitted = fit_temperature(got)
    brute = scipy.optimize.brute(
        lambda b: np.average(-log_expit(got.delta * b[0]), weights=got.weight),
        [(0.01, 5)],
        Ns=500,
    )
    assert fitted == pytest.approx(1 / brute[0], rel=1e-3)


def test_temperature_at_its_ends(found):
    assert fit_temperature(found([0.0, 0.0])) == 1
    assert fit_temperature(found([2.0, 2.0])) == pytest.approx(2e-3)
    assert fit_temperature(found([-2.0, -2.0])) == pytest.approx(2e3)


def test_bad_arguments_are_refused(found):
    with pytest.raises(ValueError, match="temperature is 0.0"):
        nll(found([1.0]), temperature=0.0)
    with pytest.raises(ValueError, match="temperature is nan"):
        reliability(found([1.0]), temperature=np.nan)
    nothing = type(found([1.0]))(*(c[:0] for c in found([1.0])))
    with pytest.raises(ValueError, match="no labelled pairs"):
        reliability(nothing)
    with pytest.raises(ValueError, match="no labelled pairs"):
        fit_temperature(nothing)
