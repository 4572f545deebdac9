import numpy as np
import pytest
import scipy.stats

from rm_jax.evals.alarms import alarms, identical_share
from rm_jax.evals.bias import length_correlation, probe_effects, swap_check

NAN = np.nan


def test_length_correlation_is_scipys(make_table):
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 50, (80, 3))
    gold = rng.normal(size=(80, 3)) + lengths / 20
    offset = rng.normal(0, 3, (80, 1))
    scores = gold + offset + rng.normal(size=(80, 3))
    table = make_table(scores, np.tile([0, 1, 2], (80, 1)), lengths, gold=gold)
    got = length_correlation(table)
    s, l, g = (x - x.mean(1, keepdims=True) for x in (scores, lengths, gold))
    s, l, g = s.ravel(), l.ravel(), g.ravel()
    assert got["within"] == pytest.approx(scipy.stats.pearsonr(s, l).statistic)
    across = scipy.stats.pearsonr(scores.ravel(), lengths.ravel()).statistic
    assert got["across"] == pytest.approx(across)
    left = [v - g * (v @ g) / (g @ g) for v in (s, l)]
    assert got["within_given_gold"] == pytest.approx(
        scipy.stats.pearsonr(*left).statistic
    )
    assert got["within"] > 0.3 > abs(got["within_given_gold"])


def test_length_correlation_by_hand(make_table):
    # Longer always scores higher within a prompt, lower across prompts.
    table = make_table([[1.0, 2.0], [11.0, 12.0]], [[0, 1]] * 2, [[50, 60], [5, 15]])
    got = length_correlation(table)
    assert got["within"] == pytest.approx(1)
    assert got["across"] < -0.9
    assert np.isnan(got["within_given_gold"])


def test_correlation_of_a_constant_is_nan_not_rounding(make_table):
    # Three times .1 sums to a bit more than .3.
    scores = [[0.1, 0.1, 0.1], [0.7, 0.7, 0.7]]
    table = make_table(scores, [[0, 1, 2]] * 2, [[1, 2, 3], [9, 8, 7]])
    assert np.isnan(length_correlation(table)["within"])
    same = make_table([[0.1, 0.1, 0.1]], [[0, 1, 2]], [[1, 2, 3]])
    assert np.isnan(length_correlation(same)["across"])


def test_missing_responses_do_not_enter_correlations(make_table):
    full = make_table([[1.0, 2.0], [5.0, 3.0]], [[0, 1]] * 2, [[9, 4], [2, 8]])
    gaps = make_table(
        [[1.0, NAN, 2.0], [5.0, 3.0, NAN]],
        [[0, -1, 1], [0, 1, -1]],
        [[9, 0, 4], [2, 8, 0]],
    )
    assert length_correlation(gaps) == pytest.approx(
        length_correlation(full), nan_ok=True
    )


def test_probe_effects_by_hand():
    model, gold = np.array([1.0, 2.0, 3.0, 2.0]), np.array([0.0, 1.0, 0.5, 0.5])
    got = probe_effects(model, gold, gold + 0.75, np.arange(4), seed=0)
    assert got["n"] == 4
    assert (got["model_effect"], got["gold_effect"]) == (2, 0.5)
    assert (got["model_bias"], got["annotator_bias"]) == (1.5, 0.75)
    # The annotator's bias is the same on every probe: paired, no doubt is left.
    assert got["annotator_bias_low"] == got["annotator_bias_high"] == 0.75
    assert 1 <= got["model_bias_low"] < 1.5 < got["model_bias_high"] <= 2.5
    assert got["annotator_effect_low"] < got["annotator_effect_high"]


def test_probe_effects_refuse_bad_input():
    ok, rows = np.ones(3), np.arange(3)
    # TypeError where the shape hook runs.
    with pytest.raises((ValueError, TypeError), match="gold"):
        probe_effects(ok, np.ones(2), ok, rows, seed=0)
    with pytest.raises(ValueError, match="annotator delta of probe 1 is nan"):
        probe_effects(ok, ok, np.array([1.0, NAN, 1.0]), rows, seed=0)
    with pytest.raises(ValueError, match="n > 0"):
        probe_effects(ok[:0], ok[:0], ok[:0], rows[:0], seed=0)


def test_swap_check_by_hand():
    scores = np.array([[1.0, 2.0, 3.0], [1.0, 0.5, NAN]])
    assert swap_check(scores, scores) == {"max_difference": 0, "flipped_share": 0}
    swapped = np.array([[2.5, 2.0, 3.0], [1.0, 1.0, NAN]])
    assert swap_check(scores, swapped) == {"max_difference": 1.5, "flipped_share": 0.5}


def test_swap_check_refuses_holes():
    with pytest.raises(ValueError, match="example 0, response 1: NaN in one"):
        swap_check(np.array([[1.0, 2.0]]), np.array([[1.0, NAN]]))
    # TypeError where the shape hook runs.
    with pytest.raises((ValueError, TypeError), match="swapped"):
        swap_check(np.ones((1, 2)), np.ones((2, 1)))


def test_identical_share_by_hand(make_table):
    table = make_table([[1.0, 1.0, 2.0], [1.0, 0.0, NAN]], [[0, 1, -1], [0, 1, -1]])
    assert identical_share(table) == 1 / 4


def good(make_table, n=100, right=80, margin=1.0, **columns):
    delta = np.where(np.arange(n) < right, margin, -margin)
    return make_table(
        np.stack([delta, 0 * delta], 1), np.tile([0, 1], (n, 1)), **columns
    )


def test_no_alarm_without_reason(make_table):
    assert alarms(good(make_table), progress=0.05, human=True) == []


def test_identical_scores_alarm(make_table):
    table = good(make_table)
    table.scores[:2] = 0.0
    assert alarms(table, identical=0.02) == []
    (alarm,) = alarms(table)
    assert alarm.startswith("identical scores: 2.0% of the pairs")


@pytest.mark.parametrize(
    ("progress", "human", "fires"),
    [(0.05, False, True), (0.5, False, False), (0.5, True, True), (1.0, False, False)],
)
def test_too_good_alarm(make_table, progress, human, fires):
    got = alarms(good(make_table, right=97), progress=progress, human=human)
    assert [a.split(":")[0] for a in got] == ["too good"] * fires
    assert alarms(good(make_table, right=95), progress=progress, human=human) == []


def test_saturated_alarm(make_table):
    assert alarms(good(make_table, margin=16.9)) == []
    assert alarms(good(make_table, margin=17.0))[0].startswith("saturated: 100.0%")
    assert np.float32(1) / (1 + np.exp(np.float32(-17.0))) == 1


def test_scores_that_are_not_finite_alarm_instead_of_raising(make_table):
    table = good(make_table)
    table.scores[3, 1] = NAN
    table.scores[4, 0] = np.inf
    lengths = np.full((100, 2), 10)
    got = alarms(table._replace(lengths=lengths))
    assert got == ["2 scores are not finite, first in example 'row3'"]
