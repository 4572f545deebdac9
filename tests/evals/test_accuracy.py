import numpy as np
import pytest
import scipy.stats

from rm_jax.evals.accuracy import (
    accuracy,
    best_of_k,
    kendall_tau,
    length_baseline,
    length_matched,
    longer_chosen,
    shorter_chosen,
    tie_rate,
)
from rm_jax.evals.intervals import Sample, intervals
from rm_jax.evals.summary import evaluate, histograms
from rm_jax.evals.table import ScoreTable, gold_pairs, pairs

NAN = np.nan


def permuted(table: ScoreTable, seed: int) -> ScoreTable:
    """The same table with its response columns (and soft labels) in another order."""
    order = np.random.default_rng(seed).permutation(table.scores.shape[1])
    wide = ("scores", "ranks", "lengths", "gold")
    table = table._replace(soft=np.full(len(table.ids), NAN))
    return table._replace(**{name: getattr(table, name)[:, order] for name in wide})


def test_accuracy_by_hand(make_table):
    table = make_table(
        [[2.0, 1.0], [1.0, 1.0], [0.0, 3.0], [5.0, 4.0]],
        [[0, 1], [0, 1], [0, 1], [0, 0]],
        weight=[1.0, 1.0, 2.0, 7.0],
    )
    found = pairs(table)
    assert accuracy(found).mean() == (1 + 0.5) / 4
    assert tie_rate(found).mean() == 1 / 4
    assert len(accuracy(found).values) == 3


def test_accuracy_counts_each_prompt_once(make_table):
    # First prompt: 3 pairs, all right. Second: one pair, wrong.
    table = make_table([[3.0, 2.0, 1.0], [0.0, 1.0, NAN]], [[0, 1, 2], [0, 1, -1]])
    assert accuracy(pairs(table)).mean() == pytest.approx(0.5)


def test_gold_accuracy(make_table):
    table = make_table([[1.0, 0.0]] * 2, [[0, 1]] * 2, gold=[[1, 0], [0, 1]])
    assert accuracy(gold_pairs(table)).mean() == 0.5


def test_length_figures_by_hand(make_table):
    table = make_table(
        [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]],
        [[0, 1]] * 5,
        # better longer, longer, longer, shorter, equal
        [[30, 10], [20, 19], [40, 10], [10, 40], [10, 10]],
    )
    found = pairs(table)
    assert length_baseline(found) == 3.5 / 5
    assert longer_chosen(found).mean() == pytest.approx(2 / 3)
    assert shorter_chosen(found).mean() == 1
    assert list(length_matched(found).values) == [1, 0]
    out = evaluate(table, seed=0)
    assert out["length_balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert out["length_matched_n"] == 2
    assert out["length_matched_accuracy"] == 0.5


def test_length_baseline_takes_the_better_rule(make_table):
    table = make_table([[1.0, 0.0]] * 4, [[0, 1]] * 4, [[1, 9]] * 3 + [[9, 1]])
    assert length_baseline(pairs(table)) == 0.75


def test_length_tolerance_is_of_the_mean(make_table):
    # |ΔL| = 10; means 100 (in) and 99 (out).
    table = make_table([[1.0, 0.0]] * 2, [[0, 1]] * 2, [[105, 95], [104, 94]])
    assert len(length_matched(pairs(table)).values) == 1


def test_best_of_k_by_hand(make_table):
    table = make_table(
        [
            [3.0, 1.0, 1.0, 9.0],  # top of the ranked ones is best: 1
            [2.0, 2.0, 1.0, NAN],  # tied top, one of them best: 1/2
            [2.0, 2.0, 2.0, 2.0],  # all tied, two of four best: 1/2
            [1.0, 5.0, 2.0, NAN],  # wrong: 0
            [1.0, 5.0, NAN, NAN],  # K = 2: not counted
            [1.0, 5.0, 2.0, NAN],  # all best: not counted
        ],
        [
            [0, 1, 2, -1],
            [0, 1, 1, -1],
            [0, 1, 0, 3],
            [0, 1, 1, -1],
            [0, 1, -1, -1],
            [0, 0, 0, -1],
        ],
    )
    np.testing.assert_allclose(best_of_k(table).values, [1, 0.5, 0.5, 0])


def test_kendall_tau_is_scipys(random_table):
    table = random_table(4, e=200)
    want = []
    for scores, ranks in zip(table.scores, table.ranks, strict=True):
        use = ranks >= 0
        if use.sum() >= 3 and len(set(ranks[use])) > 1:
            want.append(scipy.stats.kendalltau(scores[use], -ranks[use]).statistic)
    assert len(want) > 30
    np.testing.assert_allclose(kendall_tau(table).values, np.nan_to_num(want))


def test_kendall_tau_of_equal_scores_is_zero(make_table):
    assert kendall_tau(make_table([[1.0, 1.0, 1.0]], [[0, 1, 2]])).mean() == 0


def test_interval_covers_what_it_says():
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        # 60 prompts of 5 pairs that are right or wrong together: p = .7.
        values = np.repeat(rng.random(60) < 0.7, 5).astype(float)
        sample = Sample(values, np.ones(300), np.repeat(np.arange(60), 5))
        low, high = intervals({"x": sample}, seed, draws=200)["x"]
        hits += low <= 0.7 <= high
    assert 0.90 <= hits / 200 <= 0.99  # 7 of 10 if pairs were taken as independent


def test_interval_width_is_that_of_the_clusters():
    rng = np.random.default_rng(0)
    values = rng.normal(size=2000)
    ones, rows = np.ones(2000), np.arange(2000)
    alone = Sample(values, ones, rows)
    fourfold = Sample(np.repeat(values, 4), np.ones(8000), np.repeat(rows, 4))
    got = intervals({"alone": alone, "fourfold": fourfold}, seed=1)
    want = 2 * 1.96 * values.std() / np.sqrt(2000)
    assert np.diff(got["alone"])[0] == pytest.approx(want, rel=0.08)
    np.testing.assert_allclose(got["alone"], got["fourfold"])


def test_interval_where_all_agree_and_where_nothing_can_be_said():
    def get(values, clusters):
        values = np.array(values, float)
        sample = Sample(values, np.ones(len(values)), np.array(clusters, int))
        return intervals({"x": sample}, seed=0)["x"]

    # Exact binomial bound of 10 of 10 (scipy), of one prompt, and of none of 10.
    exact = scipy.stats.binomtest(10, 10).proportion_ci(method="exact")
    assert get([1] * 10, range(10)) == pytest.approx((exact.low, 1.0))
    assert get([0] * 10, range(10)) == pytest.approx((0.0, 1 - exact.low))
    assert get([1, 1], [7, 7]) == pytest.approx((0.025, 1.0))
    assert np.isnan(get([0.25, 0.5], [7, 7])).all()
    assert np.isnan(get([], [])).all()


def test_intervals_are_seeded():
    rng = np.random.default_rng(0)
    sample = {"x": Sample(rng.random(50), np.ones(50), np.arange(50))}
    assert intervals(sample, seed=3) == intervals(sample, seed=3)
    assert intervals(sample, seed=3) != intervals(sample, seed=4)


def test_evaluate_does_not_depend_on_the_order_of_responses(random_table):
    table = random_table(5)._replace(soft=np.full(60, NAN))
    want, got = evaluate(table, seed=0), evaluate(permuted(table, 1), seed=0)
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert got[name] == pytest.approx(value, abs=1e-9), name


def test_evaluate_does_not_see_an_offset_of_a_prompt(random_table):
    table = random_table(6)
    offset = np.random.default_rng(0).integers(-64, 64, (60, 1)) * 1.0
    want = evaluate(table, seed=0)
    got = evaluate(table._replace(scores=table.scores + offset), seed=0)
    moved = {k for k in want if got[k] != pytest.approx(want[k], abs=1e-9)}
    assert moved == {"score_mean", "score_std", "score_length_corr_across"}


def test_evaluate_keys_and_determinism(random_table, make_table):
    table = random_table(7)
    out = evaluate(table, seed=0)
    assert out == evaluate(table, seed=0)
    assert all(np.isfinite(v) for v in out.values())
    assert out["accuracy_low"] <= out["accuracy"] <= out["accuracy_high"]
    assert {"gold_accuracy", "best_of_k", "kendall_tau", "n_best_of_k"} <= out.keys()
    plain = evaluate(make_table([[1.0, 0.0]] * 3, [[0, 1]] * 3), seed=0)
    assert not {"gold_accuracy", "best_of_k", "score_length_corr"} & plain.keys()
    assert plain["accuracy"] == 1 and plain["accuracy_low"] < 0.5
    assert (plain["margin_mean"], plain["margin_std"]) == (1, 0)
    assert (plain["score_mean"], plain["score_std"]) == (0.5, 0.5)


def test_evaluate_only_ties(make_table):
    out = evaluate(make_table([[1.0, 0.0], [0.0, 1.0]], [[0, 0]] * 2), seed=0)
    assert "accuracy" not in out
    assert (out["n_pairs"], out["n_ties"]) == (0, 2)


def test_evaluate_without_labels_raises(make_table):
    with pytest.raises(ValueError, match="none of the 2 examples has two ranked"):
        evaluate(make_table([[1.0, 0.0]] * 2, [[-1, -1]] * 2), seed=0)


def test_histograms_hold_every_value(random_table):
    table = random_table(8)
    got = histograms(table, bins=7)
    assert got["score"].counts.sum() == (table.lengths > 0).sum()
    assert got["margin"].counts.sum() == evaluate(table, seed=0)["n_pairs"]
    assert len(got["score"].edges) == 8
